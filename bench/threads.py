"""Work on many images, one share a thread: instead of torch's own threads, which share every single operation.

Those wait for each other after each of the dozens of short operations that a metric makes of a block. On two idle
cores that costs some time; where something else runs on one of them, each wait is for a turn of the scheduler, and
the whole takes a hundred times as long. A thread with a share of its own waits for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def in_shares(function: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor, least: int = 1) -> Tensor:
    """function(one, other), computed in shares of the first dimension and joined along the last of the results.

    As many shares as torch has threads, none smaller than `least` but where all are fewer. Only on a CPU.
    """
    threads = torch.get_num_threads()
    if one.device.type != "cpu" or threads == 1:
        return function(one, other)
    share = max(-(-len(one) // threads), least)
    try:
        # the number of threads belongs to the thread that sets it: each of these uses one
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(function, one.split(share), other.split(share))), -1)
    finally:
        torch.set_num_threads(threads)          # ... but for what torch remembers for threads to come
