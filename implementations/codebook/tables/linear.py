"""SimVQ: frozen rows behind one learned linear map, so that every code moves when any is chosen."""

from __future__ import annotations

from torch import Tensor, nn

from bench.registry import register
from implementations.codebook.parts import Table
from implementations.search.initial import initial_codebook


@register("table", "linear")
class Linear(Table):
    """e_k = W c_k + b with frozen c_k ~ N(0, 1/D) and W of D x D (SimVQ, arXiv:2411.02038, Eq. 6).

    bias: as in the authors' code; the paper's equation and vector-quantize-pytorch have none.
    """

    def __init__(self, codebook_size: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.register_buffer("codebook", initial_codebook(codebook_size, dim, "normal") * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=bias)

    def forward(self) -> Tensor:
        return self.map(self.codebook)
