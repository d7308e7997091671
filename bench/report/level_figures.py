"""diagnostics/<run>/levels.png of a suite: how each run's levels, scales or groups decode, with headings. Torch-free.

Cut out of images/levels.png, which the evaluation leaves in a run's folder, and shown in the run's section of index.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bench.files import replace_file
from bench.report.diagnostics import MOST_RUNS, folder_of
from bench.report.drawing import natural
from bench.report.series import shown_runs
from bench.report.strips import GRID_BORDER, Column, compressed
from bench.results import Record

FILE = "levels.png"


def render_levels(name: str, records: Iterable[Record], runs_folder: Path, reports: Path) -> list[Path]:
    """Write the figure of each trained run that has such a picture on this machine, at most MOST_RUNS; returns the files."""
    runs = sorted((r for r in shown_runs(records) if r.trained), key=lambda r: (natural(r.label), r.train_id))
    written: list[Path] = []
    for run in runs:
        if len(written) == MOST_RUNS:
            break
        try:
            columns = read_levels(runs_folder / run.train_id / "images" / FILE)
        except (OSError, ValueError, KeyError):
            continue
        path = reports / name / "diagnostics" / folder_of(run) / FILE
        replace_file(path, compressed(columns, [run.label], len(columns[0].pictures))[0])
        written.append(path)
    return written


def read_levels(path: Path) -> list[Column]:
    """The columns of a run's picture. Raises OSError, KeyError or ValueError for a file that is no such picture."""
    from PIL import Image

    with Image.open(path) as file:
        headings = json.loads(file.text["columns"])     # type: ignore[attr-defined]
        sheet = np.asarray(file.convert("RGB"))[:-GRID_BORDER, :-GRID_BORDER]
    side = sheet.shape[1] // len(headings)
    cells = sheet.reshape(sheet.shape[0] // side, side, len(headings), side, 3)[:, GRID_BORDER:, :, GRID_BORDER:]
    return [Column(heading, (), np.ascontiguousarray(cells[:, :, i])) for i, heading in enumerate(headings)]
