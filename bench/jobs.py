"""Runs that one process runs one after another, and where their job is. Torch-free."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
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
    after: tuple[str, ...] = ()         # train ids of other jobs' runs, from whose weights one of these begins

    def __post_init__(self) -> None:
        if not len(self.run_files) == len(self.labels) == len(self.train_ids) > 0:
            raise ValueError("a job needs as many run files as labels and train ids, and at least one")


def pack(runs: Iterable[tuple[str, str, str]], resources: Resources, parents: Mapping[str, str] | None = None) -> list[Job]:
    """(run file, label, train id) of runs with equal resources -> jobs of `resources.pack` runs each.

    parents: train id of a run -> of the one that it begins from."""
    runs, parents = list(runs), parents or {}
    parts = [runs[i : i + resources.pack] for i in range(0, len(runs), resources.pack)]
    return [
        Job(tuple(r[0] for r in part), tuple(r[1] for r in part), tuple(r[2] for r in part), resources,
            tuple(dict.fromkeys(parents[r[2]] for r in part if r[2] in parents)))
        for part in parts
    ]


def packed(files: Iterable[tuple[str, Run]]) -> list[Job]:
    """(run file, run) -> jobs, each of runs with equal resources, in the order of their first runs; those that begin from
    another run's weights come after it, in jobs of their own."""
    files = list(files)
    parents = {run.train_id: run.parent for _, run in files if run.parent is not None}
    groups: dict[tuple[int, Resources], list[tuple[str, str, str]]] = {}
    for file, run in files:
        depth, above = 0, run.train_id
        while (above := parents.get(above)) is not None:
            depth += 1
        groups.setdefault((depth, run.resources), []).append((file, run.label, run.train_id))
    return [job for (_, resources), members in sorted(groups.items(), key=lambda group: group[0][0])
            for job in pack(members, resources, parents)]


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
