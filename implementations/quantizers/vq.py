"""Vector quantization with a codebook that learns by gradient (VQ-VAE, arXiv:1711.00937)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.entropy import assignment_entropy
from implementations.search.initial import drawn_from, initial_codebook
from implementations.search.lookup import straight_through_lookup
from implementations.search.nearest import nearest_codes
from implementations.search.precision import without_autocast


@register("quantizer", "vq")
class VQ(Quantizer):
    """Nearest code by squared distance, straight-through gradient, commitment and codebook loss (Eq. 3).

    codebook_dim: width of a code; the tokenizer's width where it is not given.
    normalize: `codes` compares unit vectors and hands out unit codes, losses on the latents as they are
        (xyfJASON's baseline); `both` also normalizes the latents first (ViT-VQGAN, arXiv:2110.04627; LlamaGen).
    entropy: also emit the `entropy` loss (assignment entropy at `entropy_temperature`).
    Raises ValueError for a codebook without codes.
    """

    title = "VQ loss"

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 512,
        codebook_dim: int | None = None,
        init: Literal["uniform", "kaiming", "variance", "normal", "fan_in_uniform", "samples"] = "uniform",
        normalize: Literal["none", "codes", "both"] = "none",
        entropy: bool = False,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not entropy_temperature > 0:
            raise ValueError(f"entropy_temperature must be above 0, got {entropy_temperature}")
        dim = latent.dim if codebook_dim is None else codebook_dim
        self.codebook = nn.Parameter(initial_codebook(codebook_size, dim, init))        # [K, D]
        self.input_dim = self.output_dim = dim
        self.layout = TokenLayout(latent.positions, (codebook_size,), (latent.grid,) if latent.grid else ())
        self.started = init != "samples"            # a Python flag: a tensor in an `if` would synchronise
        self.normalize, self.entropy, self.entropy_temperature = normalize, entropy, entropy_temperature
        self.loss_weights = {"commitment": 0.25, "codebook": 1.0}
        if entropy:
            self.loss_weights["entropy"] = 0.1

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float().flatten(0, 1)                                           # [N, D]
            if self.normalize == "both":
                z = F.normalize(z, dim=1)
            if self.training and not self.started:
                with torch.no_grad():
                    self.codebook.copy_(drawn_from(z, len(self.codebook)))
                self.started = True
            table = self._table()
            compared = F.normalize(z, dim=1) if self.normalize == "codes" else z
            codes = nearest_codes(compared, table)
            q, commitment, codebook = straight_through_lookup(z, table, codes)
            losses = {"commitment": commitment, "codebook": codebook}
            if self.entropy:
                losses["entropy"] = assignment_entropy(compared, table, self.entropy_temperature)
        return QuantizerOutput(q.view_as(latents).to(latents.dtype), codes.view(*latents.shape[:2], 1), losses)

    def get_extra_state(self) -> dict[str, bool]:
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.started = state["started"]

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self._table())

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self._table(),)

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return (self.codebook,)

    def _table(self) -> Tensor:
        return self.codebook if self.normalize == "none" else F.normalize(self.codebook, dim=1)
