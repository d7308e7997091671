"""CVQ: codes drift to anchors among the latents, the faster the less they are used (arXiv:2307.15139)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.distributed import derived_seed
from bench.registry import register
from implementations.codebook.parts import Distance, Restart

BLOCK_BYTES = 16 * 2**20


@register("restart", "cvq")
class CVQ(Restart):
    """e_k <- (1 - a_k) e_k + a_k f_k with a_k = exp(-10 K p_k / (1 - g) - 1e-3) (Eq. 4 to 6), p_k the running share of
    hits with decay g, f_k an anchor among the latents of the step.

    anchor: `closest`: the latent nearest to the code. `random`: drawn from the step where it has more latents than
        there are codes, else from a pool that later steps renew in part. `probabilistic`: drawn with probability
        softmax over the step's similarities.
    first_batch: move codes once, after the first step only (the paper's offline variant).
    begin: the first step that counts use and moves codes (hoanhle's version begins with its second).
    The authors move codes within the forward, before the optimizer's step; here it is right after it, from the
    latents of all processes. Usage is the share of the whole step.
    """

    latents = True

    def __init__(
        self,
        codebook: Tensor,
        *,
        anchor: Literal["closest", "random", "probabilistic"] = "closest",
        decay: float = 0.99,
        first_batch: bool = False,
        begin: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.anchor, self.decay, self.first_batch, self.begin = anchor, decay, first_batch, begin
        self.register_buffer("use", torch.zeros(len(codebook)))                         # p
        if anchor == "random":
            self.register_buffer("pool", torch.empty_like(codebook).uniform_(-1 / len(codebook), 1 / len(codebook)))
            self.filled = 0

    def looks(self, step: int) -> bool:
        return step == self.begin if self.first_batch else step >= self.begin

    def apply(self, codebook: Tensor, counts: Tensor, latents: Tensor | None, distance: Distance, step: int) -> None:
        if step < self.begin:
            return
        self.use.lerp_(counts / counts.sum().clamp(min=1), 1 - self.decay)
        if not self.looks(step):
            return
        anchors = getattr(self, f"_{self.anchor}")(codebook, latents, distance, step)
        alpha = torch.exp(-self.use * (len(counts) * 10 / (1 - self.decay)) - 1e-3)[:, None]
        codebook.copy_(torch.lerp(codebook, anchors, alpha))

    def _closest(self, codebook: Tensor, latents: Tensor, distance: Distance, step: int) -> Tensor:
        return latents[distance.nearest(codebook, latents)]

    def _random(self, codebook: Tensor, latents: Tensor, distance: Distance, step: int) -> Tensor:
        n, k = len(latents), len(codebook)
        generator = torch.Generator().manual_seed(derived_seed("cvq", step, n, k))
        if n > k:
            drawn = torch.randint(n, (k,), generator=generator)
            self.pool.copy_(latents[drawn.to(latents.device)])
        elif self.filled < k:
            new = min(n, k - self.filled)
            self.pool[self.filled : self.filled + new] = latents[:new]
            self.filled += new
        else:
            slots = torch.randperm(k, generator=generator)[:n]
            self.pool[slots.to(latents.device)] = latents
        return self.pool

    def _probabilistic(self, codebook: Tensor, latents: Tensor, distance: Distance, step: int) -> Tensor:
        """One draw per code by the Gumbel-max rule, over blocks of codes."""
        generator = torch.Generator(codebook.device).manual_seed(derived_seed("cvq", step, len(latents), len(codebook)))
        drawn = []
        for rows in codebook.split(max(1, BLOCK_BYTES // (4 * len(latents)))):
            scores = distance.similarity(rows, latents)
            noise = torch.empty_like(scores).exponential_(generator=generator).log_()
            drawn.append((scores - noise).argmax(1))
        return latents[torch.cat(drawn)]

    def get_extra_state(self) -> dict[str, int]:
        return {"filled": getattr(self, "filled", 0)}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.filled = state["filled"]
