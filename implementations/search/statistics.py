"""Counts and sums per code, without a one-hot table."""

from __future__ import annotations

import torch
from torch import Tensor

from implementations.search.kernel import library
from implementations.search.shares import in_shares

CHUNK = 16                  # columns that are worth a thread: a cache line
LEAST_NUMBERS = 2**16       # numbers that are worth two threads


def compiled_takes(*tensors: Tensor) -> bool:
    """Whether the compiled kernel can work on these: on a CPU, contiguous, fp32 (or codes)."""
    return all(t.device.type == "cpu" and t.is_contiguous() and t.dtype in (torch.float32, torch.int64)
               for t in tensors) and library() is not None


def add_rows(sums: Tensor, codes: Tensor, rows: Tensor) -> None:
    """In place: sums [K, D] += rows [N, D] by their codes [N], which must be below K.

    Compiled, each sum is added up in order of the rows whatever the number of threads: they share columns.
    """
    if not compiled_takes(sums, codes, rows) or codes.dtype != torch.int64 or sums.dtype != rows.dtype:
        sums.index_add_(0, codes, rows)
        return
    compiled, (n, d) = library(), rows.shape
    chunks = -(-d // CHUNK) if rows.numel() >= LEAST_NUMBERS else 1

    def add(first: int, last: int) -> None:
        to = d if last == chunks else last * CHUNK
        compiled.add_rows(rows.data_ptr(), n, d, codes.data_ptr(), first * CHUNK, to, sums.data_ptr())

    in_shares(add, chunks, 1)


def add_statistics(counts: Tensor, sums: Tensor, codes: Tensor, latents: Tensor) -> None:
    """In place: counts [K] += hits of each code; sums [K, D] += latents [N, D] that chose it."""
    ones = latents.new_ones(()).expand(len(codes))
    counts.scatter_add_(0, codes, ones.to(counts.dtype))
    add_rows(sums, codes, latents)
