"""First codes from a uniform distribution."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Init
from implementations.search.initial import initial_codebook


@register("init", "uniform")
class Uniform(Init):
    """U(-b, b). bound: `codes` b = 1/K (most VQ code), `kaiming` b = sqrt(6/D), `variance` b = sqrt(3/D), which has
    variance 1/D."""

    def __init__(self, *, bound: Literal["codes", "kaiming", "variance"] = "codes") -> None:
        self.bound = bound

    def draw(self, codebook_size: int, dim: int) -> Tensor:
        return initial_codebook(codebook_size, dim, "uniform" if self.bound == "codes" else self.bound)
