"""Cosine distance, in the three forms of the published code."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Distance


@register("distance", "cosine")
class Cosine(Distance):
    """k = argmax_j cos(z, e_j): unit vectors are compared.

    handed: what goes into the losses and to the decoder. `unit`: unit latents and unit codes (ViT-VQGAN,
        arXiv:2110.04627; LlamaGen). `unit_codes`: latents as they are, unit codes (xyfJASON). `raw`: both as they
        are (CVQ-VAE, arXiv:2307.15139).
    """

    def __init__(self, *, handed: Literal["unit", "unit_codes", "raw"] = "unit") -> None:
        self.form = handed

    def latents(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) if self.form == "unit" else z

    def codes(self, table: Tensor) -> Tensor:
        return table if self.form == "raw" else F.normalize(table, dim=-1)

    def compared(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return self.compared(a) @ self.compared(b).T
