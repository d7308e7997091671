"""One share of the rows per thread, instead of torch's own threads, which meet after every single operation."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def in_shares(function: Callable[[int, int], None], rows: int, least: int) -> None:
    """function(first, last) for consecutive ranges of rows, side by side: as many as torch has threads, each of at
    least `least` rows. Inside, torch uses one thread. What the function raises is raised."""
    threads = torch.get_num_threads()
    share = max(-(-rows // threads), least, 1)
    if share >= rows:
        function(0, rows)
        return
    starts = range(0, rows, share)
    for _ in _pool(threads, os.getpid()).map(function, starts, [min(rows, at + share) for at in starts]):
        pass


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process that wait for work, for each of which torch has one thread."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)                # of the thread that says so ...
        started.wait()

    pool = ThreadPoolExecutor(threads, "search", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)              # ... but for what torch remembers for threads to come
    return pool
