"""Vector quantization with a codebook of moving averages (appendix A.1 of arXiv:1711.00937)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.distributed import sum_across
from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.averages import move_to_means
from implementations.search.initial import drawn_from, initial_codebook
from implementations.search.lookup import straight_through_lookup
from implementations.search.nearest import nearest_codes
from implementations.search.precision import without_autocast
from implementations.search.statistics import add_statistics


@register("quantizer", "ema_vq")
class EMAVQ(Quantizer):
    """Each code is the running mean of the latents that chose it; only the commitment loss remains.

    zero_count: how codes that nothing chose move, see `move_to_means`: `freeze` (xyfJASON), `laplace`
        (taming-transformers), `zero_debiased` (Sonnet, hoanhle).
    The averages are buffers; `after_step` moves them once per step.
    """

    title = "EMA"

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 512,
        codebook_dim: int | None = None,
        decay: float = 0.99,
        zero_count: Literal["freeze", "laplace", "zero_debiased"] = "freeze",
        epsilon: float = 1e-5,
        init: Literal["uniform", "kaiming", "variance", "normal", "samples"] = "uniform",
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        dim = latent.dim if codebook_dim is None else codebook_dim
        table = initial_codebook(codebook_size, dim, init)
        self.input_dim = self.output_dim = dim
        self.layout = TokenLayout(latent.positions, (codebook_size,), (latent.grid,) if latent.grid else ())
        self.started = init != "samples"            # a Python flag: a tensor in an `if` would synchronise
        self.decay, self.zero_count, self.epsilon = decay, zero_count, epsilon
        self.loss_weights = {"commitment": 0.25}
        self.register_buffer("codebook", table)                                         # [K, D]
        self.register_buffer("mean_counts", torch.zeros(codebook_size))                 # M
        self.register_buffer("mean_sums", torch.zeros_like(table) if zero_count == "zero_debiased" else table.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))             # t
        self.register_buffer("step_counts", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("step_sums", torch.zeros_like(table), persistent=False)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float().flatten(0, 1)                                           # [N, D]
            if self.training and not self.started:
                self._start(z)
            codes = nearest_codes(z, self.codebook)
            q, commitment, _ = straight_through_lookup(z, self.codebook, codes)
            if self.training:
                add_statistics(self.step_counts, self.step_sums, codes, z.detach())
        shape = latents.shape
        return QuantizerOutput(q.view(shape).to(latents.dtype), codes.view(*shape[:2], 1), {"commitment": commitment})

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        """First codes from the first batch. Each counts as one sample seen: with M at 0 the first update of a rarely
        chosen code would overshoot by g / (1 - g) times the code itself."""
        self.codebook.copy_(drawn_from(z, len(self.codebook)))
        if self.zero_count != "zero_debiased":
            self.mean_sums.copy_(self.codebook)
            self.mean_counts.fill_(1.0)
        self.started = True

    def get_extra_state(self) -> dict[str, bool]:
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.started = state["started"]

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self.codebook)

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self.codebook,)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        counts, sums = sum_across(self.step_counts), sum_across(self.step_sums)
        move_to_means(self.codebook, self.mean_counts, self.mean_sums, self.updates, counts, sums, decay=self.decay,
                      zero_count=self.zero_count, epsilon=self.epsilon)
        self.step_counts.zero_()
        self.step_sums.zero_()
