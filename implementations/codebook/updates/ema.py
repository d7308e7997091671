"""Codes that are running means of the latents that chose them (appendix A.1 of arXiv:1711.00937)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Update
from implementations.search.averages import move_to_means


@register("update", "ema")
class EMA(Update):
    """Averages of counts and sums move the rows once per step; only the commitment loss remains.

    zero_count: what becomes of codes that nothing chose, see `move_to_means`.
    """

    sums = True

    def __init__(
        self,
        codebook: Tensor,
        *,
        decay: float = 0.99,
        zero_count: Literal["freeze", "laplace", "zero_debiased"] = "freeze",
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay, self.zero_count, self.epsilon = decay, zero_count, epsilon
        self.loss_weights = {"commitment": 0.25}
        self.register_buffer("mean_counts", torch.zeros(len(codebook)))                 # M
        self.register_buffer("mean_sums", torch.zeros_like(codebook))                   # S
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))             # t

    def losses(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        return {"commitment": commitment}

    @torch.no_grad()
    def begin(self, codebook: Tensor, *, first_batch: bool) -> None:
        """Codes drawn from the first batch count as one sample seen: with M at 0 the first update of a rarely chosen
        code would overshoot by g / (1 - g) times the code itself."""
        if self.zero_count != "zero_debiased":
            self.mean_sums.copy_(codebook)
            self.mean_counts.fill_(float(first_batch))

    def apply(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        move_to_means(codebook, self.mean_counts, self.mean_sums, self.updates, counts, sums, decay=self.decay,
                      zero_count=self.zero_count, epsilon=self.epsilon)

    @torch.no_grad()
    def restarted(self, dead: Tensor, codebook: Tensor) -> None:
        """A new code counts as one sample seen, so that its old averages do not pull it back."""
        weight = 1 - self.decay ** self.updates.double() if self.zero_count == "zero_debiased" else 1.0
        counts = torch.full_like(self.mean_counts, 1.0) * weight
        self.mean_counts.copy_(torch.where(dead, counts, self.mean_counts))
        self.mean_sums.copy_(torch.where(dead[:, None], codebook * counts[:, None], self.mean_sums))
