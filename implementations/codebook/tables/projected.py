"""Learned rows behind a learned linear map."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bench.registry import register
from implementations.codebook.parts import Table
from implementations.search.initial import initial_codebook


@register("table", "projected")
class Projected(Table):
    """e_k = W c_k + b where the rows c_k ~ N(0, 1/width) learn too, as the linear bridge in the ablation of FVQ
    (arXiv:2509.10140); rows N(0, 1) with the codebook's `init: normal`.

    width: of a row; the codes' own where it is not given.
    map: W at first, `default` as torch's linear layers, `normal` N(0, 1/D). OptVQ's table (arXiv:2412.15195) is
        `map: normal` with `init: normal`.
    """

    neutral = {"map": "default"}

    def __init__(
        self, codebook_size: int, dim: int, *, width: int | None = None, bias: bool = True,
        map: Literal["default", "normal"] = "default",
    ) -> None:
        super().__init__()
        width = dim if width is None else width
        self.codebook = nn.Parameter(initial_codebook(codebook_size, width, "normal") * width**-0.5)
        self.map = nn.Linear(width, dim, bias=bias)
        if map == "normal":
            nn.init.normal_(self.map.weight, std=dim**-0.5)

    def forward(self) -> Tensor:
        return self.map(self.codebook)
