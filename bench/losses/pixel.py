"""Distance between images and reconstructions, pixel by pixel."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from bench.interfaces import Loss
from bench.registry import register
from bench.types import Batch, TokenizerOutput


@register("loss", "pixel")
class Pixel(Loss):
    """Mean over all elements of the squared (`l2`) or absolute (`l1`) difference, in the model's range [-1, 1]."""

    def __init__(self, *, norm: Literal["l1", "l2"] = "l2") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        reconstruction = output.reconstruction.float()
        distance = F.mse_loss if self.norm == "l2" else F.l1_loss
        return distance(reconstruction, batch.images)
