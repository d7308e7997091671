"""Work on many images, one share a thread: instead of torch's own threads, which share every single operation.

Those wait for each other after each of the dozens of short operations that a metric makes of a block. On two idle
cores that costs some time; where something else runs on one of them, each wait is for a turn of the scheduler, and
the whole takes a hundred times as long. A thread with a share of its own waits for nobody.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

#: values of a share below which a second thread costs more than it saves: 21 images of 256 x 256, 341 of 64 x 64
LEAST = 1 << 22


def in_shares(function: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor) -> Tensor:
    """function(one, other), computed in shares of the first dimension and joined along the last of the results.

    On a CPU at most as many shares as torch has threads, and each in a thread that uses no others; else all at once.
    """
    threads = torch.get_num_threads()
    if one.device.type != "cpu" or threads == 1:
        return function(one, other)
    share = max(-(-len(one) // threads), LEAST * len(one) // max(1, one.numel()), 1)
    return torch.cat(list(pool(threads, os.getpid()).map(function, one.split(share), other.split(share))), -1)


@functools.cache
def pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process that wait for work, for each of which torch has one thread."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)                # of the thread that says so ...
        started.wait()

    pool = ThreadPoolExecutor(threads, "share", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)              # ... but for what torch remembers for threads to come
    return pool
