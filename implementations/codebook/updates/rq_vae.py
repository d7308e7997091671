"""Moving averages that are divided after codes have begun anew (RQ-VAE's code, arXiv:2203.01941)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Update


@register("update", "rq_vae")
class RQVAE(Update):
    """As in kakaobrain/rq-vae-transformer: M <- g M + (1-g) n, S <- g S + (1-g) s, M begins at 0 and S at the codes; the
    codes are S over M smoothed by epsilon. A code that begins anew has M = `restart_count` and S that many times its row,
    and then all codes are divided once more. The commitment loss, with weight 0.25, remains.
    """

    sums = True

    def __init__(self, codebook: Tensor, *, decay: float = 0.99, epsilon: float = 1e-5, restart_count: float = 1.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if not restart_count > 0:
            raise ValueError(f"restart_count must be above 0, got {restart_count}")
        self.decay, self.epsilon, self.restart_count = decay, epsilon, restart_count
        self.loss_weights = {"commitment": 0.25}
        self.register_buffer("mean_counts", torch.zeros(len(codebook)))                 # M
        self.register_buffer("mean_sums", torch.zeros_like(codebook))                   # S

    def losses(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        return {"commitment": commitment}

    @torch.no_grad()
    def begin(self, codebook: Tensor, *, first_batch: bool) -> None:
        self.mean_sums.copy_(codebook)

    @torch.no_grad()
    def apply(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        self.mean_counts.lerp_(counts, 1 - self.decay)
        self.mean_sums.lerp_(sums, 1 - self.decay)
        self._divide(codebook)

    @torch.no_grad()
    def restarted(self, dead: Tensor, codebook: Tensor) -> None:
        self.mean_counts.copy_(torch.where(dead, self.restart_count, self.mean_counts))
        self.mean_sums.copy_(torch.where(dead[:, None], codebook * self.restart_count, self.mean_sums))
        self._divide(codebook)

    def _divide(self, codebook: Tensor) -> None:
        n = self.mean_counts.sum()
        smoothed = n * (self.mean_counts + self.epsilon) / (n + len(codebook) * self.epsilon)
        codebook.copy_(self.mean_sums / smoothed[:, None])
