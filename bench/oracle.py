"""Codes against a brute-force search in float64, in blocks: what every timed search has to agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.distributed import derived_seed

Assignment = Literal["l2", "cosine", "dot"]
BLOCK_BYTES = 64 * 2**20
ROWS = 2048                 # latents that are compared of a large size


@dataclass(frozen=True, slots=True)
class Check:
    """Of `checked` latents, `differing` have another code than the oracle, `wrong` of them beyond float32's rounding."""

    checked: int
    differing: int
    wrong: int

    def __add__(self, other: Check) -> Check:
        return Check(self.checked + other.checked, self.differing + other.differing, self.wrong + other.wrong)


@torch.no_grad()
def check_codes(latents: Tensor, table: Tensor, codes: Tensor, by: Assignment = "l2", rows: int = ROWS) -> Check:
    """latents [N, D], table [K, D], codes [N] -> how many of a fixed sample of `rows` latents have the best code.

    `l2` is the smallest |z - e|, `dot` the largest z.e, `cosine` the largest z.e / |e|; the lowest index where equal.
    A code is wrong where its float64 score falls behind the best by more than two float32 scores can be off:
    2 (D + 2) u (|z| max|e| + max|e|^2 / 2), u = 2^-24 (cosine: of unit codes).
    """
    n, k, d = len(latents), *table.shape
    generator = torch.Generator().manual_seed(derived_seed("rows of the oracle", n))
    sample = torch.arange(n) if n <= rows else torch.randperm(n, generator=generator)[:rows].sort().values
    if n > rows:
        sample[0], sample[-1] = 0, n - 1        # ends of blocks are where mistakes are
    sample = sample.to(latents.device)
    z, chosen, e = latents[sample].detach().double(), codes.to(latents.device)[sample], table.detach().double()
    if by == "cosine":
        e = e / e.norm(dim=1, keepdim=True).clamp_min(1e-300)
    squares = e.square().sum(1)
    offset = squares / 2 if by == "l2" else torch.zeros_like(squares)
    longest = squares.max().sqrt()
    differing = wrong = 0
    for part, code in zip(z.split(max(1, BLOCK_BYTES // (8 * k))), chosen.split(max(1, BLOCK_BYTES // (8 * k))), strict=True):
        scores = part @ e.T - offset
        best, nearest = scores.max(1)
        inside = (code >= 0) & (code < k)
        behind = best - scores.gather(1, code.clamp(0, k - 1)[:, None])[:, 0]
        rounding = 2 * (d + 2) * 2.0**-24 * (part.norm(dim=1) * longest + longest.square() / 2)
        differing += int(((code != nearest) & (behind > 0) | ~inside).sum())
        wrong += int(((behind > rounding) | ~inside).sum())
    return Check(len(sample), differing, wrong)
