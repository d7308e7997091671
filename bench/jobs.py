"""Runs that one process runs one after another, and where their job is. Torch-free."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.resources import Resources

if TYPE_CHECKING:
    from bench.run import Run


@dataclass(frozen=True, slots=True)
class Job:
    """Runs that one process (or one group of them) runs one after another, and what it gets."""

    run_files: tuple[str, ...]          # JSON files, each one resolved run
    labels: tuple[str, ...]
    train_ids: tuple[str, ...]
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if not len(self.run_files) == len(self.labels) == len(self.train_ids) > 0:
            raise ValueError("a job needs as many run files as labels and train ids, and at least one")


def pack(runs: Iterable[tuple[str, str, str]], resources: Resources) -> list[Job]:
    """(run file, label, train id) of runs with equal resources -> jobs of `resources.pack` runs each."""
    runs = list(runs)
    parts = [runs[i : i + resources.pack] for i in range(0, len(runs), resources.pack)]
    return [
        Job(tuple(r[0] for r in part), tuple(r[1] for r in part), tuple(r[2] for r in part), resources)
        for part in parts
    ]


def packed(files: Iterable[tuple[str, Run]]) -> list[Job]:
    """(run file, run) -> jobs, each of runs with equal resources, in the order of their first runs."""
    groups: dict[Resources, list[tuple[str, str, str]]] = {}
    for file, run in files:
        groups.setdefault(run.resources, []).append((file, run.label, run.train_id))
    return [job for resources, members in groups.items() for job in pack(members, resources)]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a job is, as its ticket says it (bench/submissions.py)."""

    launcher: str
    job: str
    cluster: str = ""
    log: str | None = None              # relative to the folder of runs


class JobFolders:
    """<runs>/_jobs/<time>-<process>-<n>, one for each job or array, so that no two share logs and pickles."""

    def __init__(self, runs: Path) -> None:
        self.root = runs / "_jobs"
        self.stamp, self.n = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", 0

    def new(self) -> Path:
        while True:
            folder = self.root / f"{self.stamp}-{self.n}"
            self.n += 1
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
