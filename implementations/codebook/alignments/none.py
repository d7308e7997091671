"""No loss beyond those of the update."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Alignment, Distance


@register("alignment", "none")
class NoAlignment(Alignment):
    """Nothing is added."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()

    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        return {}
