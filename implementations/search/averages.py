"""Running means of the latents that chose each code (appendix A.1 of arXiv:1711.00937)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ZeroCount = Literal["freeze", "laplace", "zero_debiased"]


@torch.no_grad()
def move_to_means(codebook: Tensor, mean_counts: Tensor, mean_sums: Tensor, updates: Tensor, counts: Tensor,
                  sums: Tensor, *, decay: float, zero_count: ZeroCount, epsilon: float) -> None:
    """In place, once per step: the averages M [K] and S [K, D] take in counts n [K] and sums s [K, D], updates t (a
    scalar int64) goes up by one, and the rows e [K, D] become the means.

    M <- g M + (1-g) n and S <- g S + (1-g) s with g = decay. What becomes of codes with n_k = 0 has a name:
    `freeze`: e_k = S_k / M_k where n_k > 0, otherwise unchanged; S starts at e, M at 0 (xyfJASON).
    `laplace`: e_k = S_k / M'_k for all k with M' smoothed by epsilon; S starts at e, M at 0. A code unused in the
        first step is thrown far away and stays dead, as in the published code (taming-transformers).
    `zero_debiased`: both averages start at 0 and are divided by 1 - g^t; an unused code is the zero vector until
        it is chosen (Sonnet, hoanhle).
    """
    updates += 1
    mean_counts.lerp_(counts, 1 - decay)
    mean_sums.lerp_(sums, 1 - decay)
    if zero_count == "freeze":
        means = mean_sums / mean_counts[:, None]
        codebook.copy_(torch.where(counts[:, None] > 0, means, codebook))
        return
    debias = 1 - decay ** updates.double() if zero_count == "zero_debiased" else 1.0
    sizes, totals = mean_counts / debias, mean_sums / debias
    n = sizes.sum()
    smoothed = (sizes + epsilon) / (n + len(sizes) * epsilon) * n
    codebook.copy_(totals / smoothed[:, None])
