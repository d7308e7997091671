"""Watch runs until nobody has them in hand any more: from their folders, whoever runs them. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.places import Places
from bench.plan import OPEN, Planned, plan
from bench.run import Run

SLOWLY = 5.0                # seconds between two looks where the scheduler is asked at each
QUICKLY = 0.5


def follow(
    runs: Sequence[Run], places: Places, name: str, show: Callable[[list[Planned]], None],
) -> list[Planned]:
    """How the runs stand once none is pending or running; `show` sees them after each look."""
    stand = {p.run.train_id: p for p in plan(runs, places, name)}
    while True:
        began = time.monotonic()
        open_ones = [p.run for p in stand.values() if p.status in OPEN]
        stand |= {p.run.train_id: p for p in plan(open_ones, places, name)} if open_ones else {}
        show([stand[run.train_id] for run in runs])
        if not any(p.status in OPEN for p in stand.values()):
            return [stand[run.train_id] for run in runs]
        slurm = any(p.submission is not None and p.submission.ticket is not None and p.submission.ticket.launcher == "slurm"
                    for p in stand.values() if p.status in OPEN)
        time.sleep(max(SLOWLY if slurm else QUICKLY, 5 * (time.monotonic() - began)))
