"""Dead codes stay dead."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Distance, Restart


@register("restart", "none")
class NoRestart(Restart):
    """Nothing is done."""

    active = False

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()

    def apply(self, codebook: Tensor, counts: Tensor, latents: Tensor | None, distance: Distance, step: int) -> None:
        return None
