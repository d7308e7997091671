"""Categorical latents by the Gumbel-softmax (arXiv:1611.01144), as in DALL-E's dVAE (arXiv:2102.12092)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.initial import initial_codebook
from implementations.search.precision import without_autocast

BLOCK_BYTES = 16 * 2**20


@register("quantizer", "gumbel")
class Gumbel(Quantizer):
    """Training mixes codes by softmax((logits + g) / temperature) with Gumbel noise g; evaluation takes the likeliest.

    logits: `linear`, a learned map of the latents (taming, DALL-E), or `distance`, -|z - e|^2 (MaskGIT).
    hard: the forward hands on the one code of the largest noisy logit, the gradient is the mixture's (taming); False
        mixes in the forward too (DALL-E).
    kl = sum_k p_k log(p_k K) with p = softmax(logits), without noise, averaged over positions: weight 5e-4 (taming).
    Codes are always the likeliest without noise, which is what evaluation will use: samples would count noise as use.

    temperature goes to final_temperature (where given) over temperature_steps along `schedule`; the KL grows
    linearly from 0 over kl_steps. taming: hard, temperature 1, no schedules. DALL-E: hard False, 1 to 0.0625 by
    cosine over 150,000, kl_steps 5000 and weight 6.6 / 192 for losses averaged over pixels of 256-pixel images.
    full_width: latents keep the width that the tokenizer offers, and only codes have codebook_dim (DALL-E: 2048 and 128);
        for linear logits.
    Noise comes from torch's generator. The N x K table exists one block of rows at a time, recomputed in the backward.
    Raises ValueError for a codebook without codes, a temperature that is not above 0, or distances between vectors of
    different widths.
    """

    title = "Gumbel"
    neutral = {"full_width": False}
    assignment = "none"         # the largest logit, not the nearest code

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 512,
        codebook_dim: int | None = None,
        logits: Literal["linear", "distance"] = "linear",
        hard: bool = True,
        temperature: float = 1.0,
        final_temperature: float | None = None,
        schedule: Literal["linear", "cosine"] = "cosine",
        temperature_steps: int = 150_000,
        kl_steps: int = 0,
        init: Literal["uniform", "kaiming", "variance", "normal", "fan_in"] = "normal",
        full_width: bool = False,
    ) -> None:
        super().__init__()
        last = temperature if final_temperature is None else final_temperature
        if not (temperature > 0 and last > 0):
            raise ValueError(f"temperature and final_temperature must be above 0, got {temperature} and {last}")
        if temperature_steps < 1 or kl_steps < 0:
            raise ValueError(f"temperature_steps must be at least 1 and kl_steps at least 0, got {temperature_steps} "
                             f"and {kl_steps}")
        dim = latent.dim if codebook_dim is None else codebook_dim
        self.codebook = nn.Parameter(initial_codebook(codebook_size, dim, init))        # [K, D]
        self.input_dim, self.output_dim = latent.dim if full_width else dim, dim
        if full_width and logits == "distance":
            raise ValueError("full_width is for logits: linear; distance compares latents and codes of one width")
        self.to_logits = nn.Linear(self.input_dim, codebook_size) if logits == "linear" else None
        self.layout = TokenLayout(latent.positions, (codebook_size,), (latent.grid,) if latent.grid else ())
        self.hard, self.schedule = hard, schedule
        self.first, self.last, self.temperature_steps, self.kl_steps = temperature, last, temperature_steps, kl_steps
        self.temperature, self.kl_share = temperature, 1.0          # of the current step; Python numbers
        self.loss_weights = {"kl": 5e-4}

    def before_step(self, step: int) -> None:
        done = min(1.0, step / self.temperature_steps)
        if self.schedule == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        self.temperature = self.first + (self.last - self.first) * done
        self.kl_share = min(1.0, step / self.kl_steps) if self.kl_steps else 1.0

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float().flatten(0, 1)                                           # [N, D]
            rows = max(1, BLOCK_BYTES // (4 * len(self.codebook)))
            blocks = [self._run(block) for block in z.split(rows)]
            q, codes = (torch.cat(parts) for parts in list(zip(*blocks, strict=True))[:2])
            kl = sum(block[2] for block in blocks) / len(z)
            if self.training:
                kl = kl * self.kl_share
        shape = latents.shape
        return QuantizerOutput(q.view(*shape[:2], -1).to(latents.dtype), codes.view(*shape[:2], 1), {"kl": kl})

    def _run(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.training and torch.is_grad_enabled() and not block.is_meta:
            return checkpoint(self._block, block, use_reentrant=False)      # brings the noise back too
        return self._block(block)

    def _block(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [n, D] -> quantized [n, D], codes [n], sum of the KL over rows."""
        if self.to_logits is None:
            logits = 2 * z @ self.codebook.T - self.codebook.square().sum(1) - z.square().sum(1, keepdim=True)
        else:
            logits = self.to_logits(z)
        log_p = logits.log_softmax(1)
        kl = (log_p.exp() * (log_p + math.log(len(self.codebook)))).sum()
        codes = logits.argmax(1)
        if not self.training:
            return F.embedding(codes, self.codebook), codes, kl
        noise = -torch.empty_like(logits).exponential_().log()
        shares = ((logits + noise) / self.temperature).softmax(1)
        if self.hard:
            one = torch.zeros_like(shares).scatter_(1, shares.argmax(1, keepdim=True), 1.0)
            shares = one + (shares - shares.detach())
        return shares @ self.codebook, codes, kl

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self.codebook)

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self.codebook,)

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return (self.codebook,)
