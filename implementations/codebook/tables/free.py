"""Codes that are free vectors, one row each."""

from __future__ import annotations

from torch import Tensor, nn

from bench.registry import register
from implementations.codebook.parts import Table
from implementations.search.initial import initial_codebook


@register("table", "free")
class Free(Table):
    """The rows are the codes (arXiv:1711.00937), first U(+-1/K). They move by gradient, by averages or by restarts."""

    movable = True

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(initial_codebook(codebook_size, dim, "uniform"))

    def forward(self) -> Tensor:
        return self.codebook
