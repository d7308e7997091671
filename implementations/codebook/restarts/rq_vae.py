"""Codes whose moving average of hits falls below one begin anew at latents of the step (RQ-VAE's code, arXiv:2203.01941)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.distributed import derived_seed
from bench.registry import register
from implementations.codebook.parts import Distance, Restart

NOISE = 0.01                    # largest length of what is added to a repeated latent, nearly


@register("restart", "rq_vae")
class RQVAE(Restart):
    """Every step, as in kakaobrain/rq-vae-transformer: drawn latents replace the codes whose average is below `threshold`.

    Where the step has fewer latents than codes they are repeated, and to each copy uniform noise of up to 0.01 / sqrt(D) is
    added. The average begins at 0, so nearly all codes are latents after the first step. Wants `update: rq_vae` with the
    same decay and `restart_count: threshold`, which keeps the same average.

    The released code updates after every level of a forward and draws from its latents on the first process; here it is
    once a step, from all levels and processes. With L levels in one shared table, decay 0.99**L and threshold L are the
    same time constant and the same share of hits.
    """

    latents = True

    def __init__(self, codebook: Tensor, *, threshold: float = 1.0, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if not threshold > 0:
            raise ValueError(f"threshold must be above 0, got {threshold}")
        self.threshold, self.decay = threshold, decay
        self.register_buffer("use", torch.zeros(len(codebook)))

    def apply(self, codebook: Tensor, counts: Tensor, latents: Tensor | None, distance: Distance,
              step: int) -> Tensor | None:
        self.use.lerp_(counts, 1 - self.decay)
        k, (n, d) = len(codebook), latents.shape
        generator = torch.Generator().manual_seed(derived_seed("rq-vae restart", step, n, k))
        if n < k:
            latents = latents.repeat(-(-k // n), 1)
            latents = latents + torch.rand(latents.shape, generator=generator).to(latents.device) * (NOISE / d**0.5)
        drawn = torch.randperm(len(latents), generator=generator)[:k].to(latents.device)
        dead = self.use < self.threshold
        codebook.copy_(torch.where(dead[:, None], latents[drawn], codebook))
        self.use.copy_(torch.where(dead, self.threshold, self.use))
        return dead
