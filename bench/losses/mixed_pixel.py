"""Absolute and squared difference of the pixels, summed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bench.interfaces import Loss
from bench.registry import register
from bench.types import Batch, TokenizerOutput


@register("loss", "mixed_pixel")
class MixedPixel(Loss):
    """l1 * mean |x - y| + l2 * mean (x - y)^2 over all elements, in the model's range [-1, 1]; OptVQ has both at 1."""

    def __init__(self, *, l1: float = 1.0, l2: float = 1.0) -> None:
        super().__init__()
        self.l1, self.l2 = l1, l2

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        reconstruction = output.reconstruction.float()
        return self.l1 * F.l1_loss(reconstruction, batch.images) + self.l2 * F.mse_loss(reconstruction, batch.images)
