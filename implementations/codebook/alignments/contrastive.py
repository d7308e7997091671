"""Contrastive loss of codes against the latents of a batch (arXiv:2307.15139, section 3.2; lyndonzheng/CVQ-VAE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.registry import register
from implementations.codebook.parts import Alignment, Distance

BLOCK_BYTES = 16 * 2**20


@register("alignment", "contrastive")
class Contrastive(Alignment):
    """mean over codes of -log softmax([positive, negatives] / temperature)[positive], weight 1.

    Of a code's similarities to the N latents (by the codebook's distance), the positive is the mean of the largest
    max(1, N // K), the negatives are the smallest N // 2. Latents are detached: it moves codes alone, unused ones too.
    Each process compares with its own latents.
    """

    moves_table = True

    def __init__(self, codebook: Tensor, *, temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.loss_weights = {"contrastive": 1.0}

    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        z, near, far = z.detach(), max(1, len(z) // len(table)), len(z) // 2

        def block_sum(codes: Tensor) -> Tensor:
            ascending = distance.similarity(codes, z).sort(1).values                    # [k, N]
            positive = ascending[:, -near:].mean(1, keepdim=True)
            logits = torch.cat([positive, ascending[:, :far]], 1) / self.temperature
            return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="sum")

        total = z.new_zeros(())
        for codes in table.split(max(1, BLOCK_BYTES // (4 * len(z)))):
            total = total + checkpoint(block_sum, codes, use_reentrant=False)
        return {"contrastive": total / len(table)}
