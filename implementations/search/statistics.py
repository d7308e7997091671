"""Counts and sums per code, without a one-hot table."""

from __future__ import annotations

from torch import Tensor


def add_statistics(counts: Tensor, sums: Tensor, codes: Tensor, latents: Tensor) -> None:
    """In place: counts [K] += hits of each code; sums [K, D] += latents [N, D] that chose it."""
    ones = latents.new_ones(()).expand(len(codes))
    counts.scatter_add_(0, codes, ones.to(counts.dtype))
    sums.index_add_(0, codes, latents)
