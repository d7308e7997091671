"""A table that follows no latents: it is fixed, or something else moves it."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Update


@register("update", "none")
class NoUpdate(Update):
    """Only the encoder is pulled, by the commitment loss mse(z, sg q).

    commitment: False emits no loss at all, as DiVeQ (arXiv:2509.26469) whose gradient moves both sides.
    """

    def __init__(self, codebook: Tensor, *, commitment: bool = True) -> None:
        super().__init__()
        self.loss_weights = {"commitment": 0.25} if commitment else {}

    def losses(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        return {"commitment": commitment} if self.loss_weights else {}
