"""The diagnostics of each run of a suite: its codebook's figures, and a page that shows them. Torch-free.

    reports/<suite>/diagnostics.md                                         all figures, and what is missing and why
    reports/<suite>/diagnostics/<label>-<train_id>/<figure>.svg .png .csv  the csv: what is plotted
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.files import replace_file
from bench.report.drawing import natural, to_csv, write
from bench.report.formats import escape_markdown
from bench.report.series import run_colours
from bench.results import Record

MOST_RUNS = 24              # runs that are drawn unless more are asked for
#: figure -> (what it shows, the monitor that records it, whether it needs a codebook)
RECORDED_BY = {
    "code_counts": ("how often each code is chosen", "codebook_usage", False),
    "code_age": ("the age of the codes", "code_age", False),
    "code_norms": ("code norms", "codebook_norms", True),
    "code_norms_over_time": ("code norms over training", "codebook_norms", True),
    "code_gradients": ("gradient norms", "codebook_gradients", True),
    "code_movement": ("the movement of codes", "codebook_movement", True),
    "latents": ("latents in two dimensions", "latents", False),
    "quantization_error": ("the quantization error", "quantization_error", False),
}
#: figure -> the array that it is drawn from, where an archive holds it whole
ARRAYS = {"code_norms": "code_norms", "code_gradients": "code_gradient_norms", "code_movement": "code_movement"}


def render_diagnostics(
    name: str, records: Iterable[Record], diagnostics: Path, curves: Path | None, reports: Path, *,
    most: int | None = MOST_RUNS,
) -> list[Path]:
    """Write the figures of at most `most` runs (None: all) and the page that shows them; returns the files.

    `diagnostics` is the folder results/<suite>/diagnostics, `curves` the file results/<suite>/curves.parquet. Runs in
    order of their labels. Nothing is written where no run has an archive. The same files with the same matplotlib
    give the same bytes; unchanged files are not touched.
    """
    from bench.diagnostics import read_archive
    from bench.report.code_figures import every
    from bench.report.code_panels import Subject

    every_run = list(records)
    runs = [r for r in every_run if r.trained and not r.debug] or [r for r in every_run if r.trained]
    runs.sort(key=lambda r: (natural(r.label), r.train_id))
    if not any((diagnostics / f"{r.train_id}.npz").is_file() for r in runs):
        return []
    shown, left = runs[:most], runs[most:] if most is not None else []
    colours = run_colours(every_run)
    errors = _errors(curves, {r.train_id for r in shown})
    written: list[Path] = []
    page = [f"# {escape_markdown(name)}: codebook diagnostics\n"]
    for run in shown:
        archive = read_archive(diagnostics / f"{run.train_id}.npz")
        drawn: list[str] = []
        where = f"diagnostics/{folder_of(run)}"
        if archive:
            subject = Subject(run.label, colours[run.train_id], archive)
            for figure, (picture, header, rows) in every(subject, errors.get(run.train_id, ())):
                written += write(reports / name / where, figure, picture, to_csv(header, rows))
                drawn.append(figure)
            _remove_others(reports / name / "diagnostics", run, every_run)
        page.append(f"## {escape_markdown(run.label)} ({run.train_id[:6]})\n")
        page += [f"- {escape_markdown(sentence)}" for sentence in missing(run, archive, drawn)]
        page.append("\n" + "\n".join(f"![{f.replace('_', ' ')}]({where}/{f}.png)" for f in drawn) + "\n")
    if left:
        page.append(f"Not drawn: {len(left)} further runs ({escape_markdown(_few([r.label for r in left]))}).\n")
    path = reports / name / "diagnostics.md"
    replace_file(path, "\n".join(page))
    return [*written, path]


def folder_of(run: Record) -> str:
    """The name of a run's folder: its label in characters that every file system takes, and the beginning of its id."""
    slug = re.sub(r"[^a-z0-9]+", "-", run.label.lower()).strip("-")[:60].rstrip("-")
    return f"{slug or 'run'}-{run.train_id[:6]}"


def _remove_others(folder: Path, run: Record, runs: Sequence[Record]) -> None:
    """The figures of this run under a label that it had before: the suite has other axes now."""
    theirs = {folder_of(r) for r in runs}
    for other in folder.glob(f"*-{run.train_id[:6]}"):
        if other.name not in theirs and other.is_dir():
            for path in other.iterdir():
                if path.suffix in (".svg", ".png", ".csv"):
                    path.unlink()
            if not any(other.iterdir()):
                other.rmdir()


def missing(run: Record, archive: Mapping[str, Any], drawn: Sequence[str]) -> list[str]:
    """A sentence for what is not drawn of a run: which of it the quantizer has not got, and which was not recorded."""
    if not archive:
        return ["Nothing was recorded: a suite asks for it with train.watch_every and monitors "
                f"({', '.join(dict.fromkeys(m for _, m, _ in RECORDED_BY.values()))})."]
    from bench.diagnostics import suffixes
    from bench.report.code_panels import MOST_LEVELS

    continuous = run.layout.get("vocab_sizes") == []
    implicit = not continuous and run.layout.get("dims") == []
    found = []
    if (levels := len(suffixes(archive))) > MOST_LEVELS:
        found.append(f"The first {MOST_LEVELS} of {levels} levels are shown.")
    if continuous:
        found.append("Its latents are continuous: it has no codes, and so no use, age, norms or gradients of them.")
    elif implicit:
        found.append("Its codes are implicit: there is no codebook, and so no norms, gradients or movement of codes.")
    no_gradient = any(n.startswith("code_gradient_norms") and (n.endswith(".none") or a.size == 0)
                      for n, a in archive.items()) and "code_gradients" not in drawn
    if no_gradient and not implicit and not continuous:
        instead = "; its movement is shown instead" if "code_movement" in drawn else ""
        found.append(f"Its codebook does not learn by gradient: there are no gradient norms{instead}.")
    for figure, (what, monitor, needs_codebook) in RECORDED_BY.items():
        by_code = figure.startswith("code_")
        there = figure in drawn or (continuous and by_code) or (implicit and needs_codebook)
        if there or (figure == "code_gradients" and no_gradient):
            continue
        if any(n.partition("/")[0] == ARRAYS.get(figure) and a.size for n, a in archive.items()):
            found.append(f"Recorded, but nowhere finite: {what}.")
        elif figure == "code_norms_over_time" and "code_norms" in drawn:
            found.append("Code norms over training need more than one watched step (train.watch_every).")
        elif figure != "code_norms_over_time" and not (figure == "code_movement" and "code_gradients" in drawn):
            found.append(f"Not recorded: {what}, by the monitor {monitor}.")
    return found


def _errors(curves: Path | None, train_ids: set[str]) -> dict[str, list[tuple[int, float]]]:
    if curves is None or not curves.is_file():
        return {}
    import pyarrow.parquet as pq

    rows = pq.read_table(curves, columns=["train_id", "step", "name", "value"],
                         filters=[("name", "==", "quantization_error")]).to_pydict()
    found: dict[str, list[tuple[int, float]]] = {}
    for train_id, step, value in zip(rows["train_id"], rows["step"], rows["value"], strict=True):
        if train_id in train_ids and value is not None and math.isfinite(value):
            found.setdefault(train_id, []).append((step, value))
    return {train_id: sorted(points) for train_id, points in found.items()}


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
