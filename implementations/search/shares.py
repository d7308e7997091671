"""One share of the rows per thread, instead of torch's own threads, which meet after every single operation."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from bench.threads import pool


def in_shares(function: Callable[[int, int], None], rows: int, least: int) -> None:
    """function(first, last) for consecutive ranges of rows, side by side: as many as torch has threads, each of at
    least `least` rows. Inside, torch uses one thread. What the function raises is raised."""
    threads = torch.get_num_threads()
    share = max(-(-rows // threads), least, 1)
    if share >= rows:
        function(0, rows)
        return
    starts = range(0, rows, share)
    for _ in pool(threads, os.getpid()).map(function, starts, [min(rows, at + share) for at in starts]):
        pass
