"""Codes that learn from the codebook loss (VQ-VAE, arXiv:1711.00937)."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Update


@register("update", "loss")
class Loss(Update):
    """Eq. 3: commitment = mse(z, sg q) moves the latents, codebook = mse(sg z, q) the table. Which of the two carries
    0.25 differs between published codes (taming's legacy form has it on the codebook): set the weights in the suite."""

    by_gradient = True

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.loss_weights = {"commitment": 0.25, "codebook": 1.0}

    def losses(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        return {"commitment": commitment, "codebook": codebook}
