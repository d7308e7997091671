"""Codes that are hardly chosen begin anew at latents of the batch (Jukebox, arXiv:2005.00341, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.distributed import derived_seed
from bench.registry import register
from implementations.codebook.parts import Distance, Restart


@register("restart", "random_restart")
class RandomRestart(Restart):
    """Every `every` steps, codes whose average use is below `threshold` are replaced by latents drawn from the step.

    threshold: as a share of what an evenly used code gets (N / K hits a step), so that one value fits every size;
        Jukebox's absolute 1.0 hit a step is the share K / N.
    decay: of the running average of hits, which begins at even use; so does a replaced code.
    """

    latents = True

    def __init__(self, codebook: Tensor, *, threshold: float = 0.1, decay: float = 0.99, every: int = 1) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.threshold, self.decay, self.every = threshold, decay, every
        self.register_buffer("use", torch.ones(len(codebook)))     # average hits, in units of even use

    def looks(self, step: int) -> bool:
        return (step + 1) % self.every == 0

    def apply(self, codebook: Tensor, counts: Tensor, latents: Tensor | None, distance: Distance,
              step: int) -> Tensor | None:
        self.use.lerp_(counts * (len(counts) / counts.sum().clamp(min=1)), 1 - self.decay)
        if not self.looks(step):
            return None
        generator = torch.Generator().manual_seed(derived_seed("random restart", step, len(latents), len(counts)))
        order = torch.randperm(len(latents), generator=generator)
        drawn = order.repeat(-(-len(counts) // len(order)))[: len(counts)].to(latents.device)
        dead = self.use < self.threshold
        codebook.copy_(torch.where(dead[:, None], latents[drawn], codebook))
        self.use.copy_(torch.where(dead, 1.0, self.use))
        return dead
