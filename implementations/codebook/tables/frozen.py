"""Codes that never move: the encoder has to come to them."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Table
from implementations.search.initial import initial_codebook


@register("table", "frozen")
class Frozen(Table):
    """The rows are the codes and stay what they were at first, N(0, 1/D) unless an initialisation says otherwise: the
    baseline of SimVQ (arXiv:2411.02038) and, with `init: file`, fixed lattices."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebook", initial_codebook(codebook_size, dim, "normal") * dim**-0.5)

    def forward(self) -> Tensor:
        return self.codebook
