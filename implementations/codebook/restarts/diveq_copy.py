"""DiVeQ's replacement: rarely seen codes become copies of often used ones (arXiv:2509.26469)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.distributed import derived_seed
from bench.registry import register
from implementations.codebook.parts import Distance, Restart


@register("restart", "diveq_copy")
class DiVeQCopy(Restart):
    """Every `every` steps, codes that appeared in less than the share `fewest` of them are overwritten with a living
    code, drawn by how often each appeared, plus noise of 1e-9; the next steps tell the two apart.

    A step counts once, however often it hits a code, as in the authors' code.
    """

    def __init__(self, codebook: Tensor, *, every: int = 100, fewest: float = 0.01) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every, self.fewest = every, fewest
        self.register_buffer("seen", torch.zeros(len(codebook)))       # steps of this period in which a code was hit

    def apply(self, codebook: Tensor, counts: Tensor, latents: Tensor | None, distance: Distance,
              step: int) -> Tensor | None:
        self.seen += counts > 0
        if (step + 1) % self.every:
            return None
        k = len(codebook)
        dead = self.seen < self.fewest * self.every
        living = torch.where(dead, 0.0, self.seen).double().cumsum(0)
        generator = torch.Generator().manual_seed(derived_seed("diveq copy", step, k))
        where = torch.rand(k, generator=generator, dtype=torch.float64).to(codebook.device) * living[-1]
        source = torch.searchsorted(living, where, right=True).clamp_(max=k - 1)
        noise = torch.randn(codebook.shape, generator=generator).to(codebook.device) * 1e-9
        dead = dead & (living[-1] > 0)                              # nothing lives: nothing to copy
        codebook.copy_(torch.where(dead[:, None], codebook[source] + noise, codebook))
        self.seen.zero_()
        return dead
