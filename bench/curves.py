"""The curves of a run: long-form rows (step, name, value), one columnar file per stretch between checkpoints.

A stretch is written just before the checkpoint that ends it. A run that resumes at step s drops the stretches that
begin at s or later, so what is on disk is what an uninterrupted run has. Torch-free.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from bench.files import write_atomic


class Curves:
    """Collects rows in memory and writes them as curves/<first step>.parquet."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.begin = folder, step
        self.rows: list[tuple[int, str, float]] = []
        for path in folder.glob("*.parquet"):
            if int(path.stem) >= step:
                path.unlink(missing_ok=True)        # every process of the run does this

    def add(self, step: int, row: dict[str, float]) -> None:
        self.rows += [(step, name, value) for name, value in row.items()]

    def flush(self, step: int) -> None:
        """Write the stretch that ends at `step`, and begin the next one there."""
        if self.rows:
            _write(self.folder / f"{self.begin:09d}.parquet", self.rows)
        self.rows, self.begin = [], step

    def compact(self) -> None:
        """All stretches in one file."""
        paths = sorted(self.folder.glob("*.parquet"))
        if len(paths) > 1:
            _write(self.folder / f"{0:09d}.parquet", read_curves(self.folder))
            for path in paths:
                if int(path.stem):
                    path.unlink()


def read_curves(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of a run in order; a point that stands twice counts once."""
    import pyarrow.parquet as pq

    points: dict[tuple[int, str], float] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path).to_pydict()
        points |= {(s, n): v for s, n, v in zip(table["step"], table["name"], table["value"], strict=True)}
    return [(s, n, v) for (s, n), v in sorted(points.items(), key=lambda p: p[0][0])]


def _write(path: Path, rows: Iterable[tuple[int, str, float]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps, names, values = zip(*rows, strict=True)
    table = pa.table({"step": pa.array(steps, pa.int64()), "name": pa.array(names).dictionary_encode(),
                      "value": pa.array(values, pa.float64())})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())


def thinned(rows: list[tuple[int, str, float]], points: int = 200) -> list[tuple[int, str, float]]:
    """At most so many points per name, evenly spaced, the last one always among them."""
    by_name: dict[str, list[tuple[int, str, float]]] = {}
    for row in rows:
        by_name.setdefault(row[1], []).append(row)
    kept: list[tuple[int, str, float]] = []
    for series in by_name.values():
        if len(series) <= points:
            kept += series
        else:
            kept += [series[round(i * (len(series) - 1) / (points - 1))] for i in range(points)]
    return kept
