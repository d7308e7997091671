"""Codes that point apart (arXiv:2112.00384)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Alignment, Distance


@register("alignment", "orthogonal")
class Orthogonal(Alignment):
    """1/K^2 sum over pairs j != k of cos^2(e_j, e_k), weight 10 as in the paper's section 3.2.

    The sum over all pairs is |E'^T E'|^2 with unit rows E': D x D numbers, never K x K.
    """

    moves_table = True

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.loss_weights = {"orthogonal": 10.0}

    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        unit = F.normalize(table, dim=1)
        return {"orthogonal": (unit.T @ unit).square().sum() / len(unit) ** 2 - 1 / len(unit)}
