"""Cross-entropy of the nearest code among all codes (the default loss of OptVQ's released baseline, arXiv:2412.15195)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.registry import register
from implementations.codebook.parts import Alignment, Distance

BLOCK_BYTES = 16 * 2**20


@register("alignment", "cross_entropy")
class CrossEntropy(Alignment):
    """mean over latents of -log softmax(-|z - e|)[nearest]: the distance is not squared, the temperature is 1.

    It pulls the chosen code and pushes every other one away, with which codebooks collapse. Its weight is 1. The
    published baseline has it in place of commitment and codebook loss: `update: {name: none, commitment: false}`.
    """

    moves_table = True

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.loss_weights = {"cross_entropy": 1.0}

    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        z, table = distance.compared(z), distance.compared(table)

        def block_sum(rows: Tensor) -> Tensor:
            distances = torch.cdist(rows, table)
            return (distances.amin(1) + (-distances).logsumexp(1)).sum()

        total = z.new_zeros(())
        for rows in z.split(max(1, BLOCK_BYTES // (4 * len(table)))):
            total = total + checkpoint(block_sum, rows, use_reentrant=False)
        return {"cross_entropy": total / len(z)}
