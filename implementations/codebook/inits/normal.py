"""First codes from a normal distribution."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Init
from implementations.search.initial import initial_codebook


@register("init", "normal")
class Normal(Init):
    """N(0, std^2). std: a number, or `dim` for D^-1/2 (codes of length about 1; SimVQ)."""

    def __init__(self, *, std: float | Literal["dim"] = 1.0) -> None:
        self.std = std

    def draw(self, codebook_size: int, dim: int) -> Tensor:
        return initial_codebook(codebook_size, dim, "normal") * (dim**-0.5 if self.std == "dim" else self.std)
