"""One colour per image: what no tokenizer may fall below."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.baseline import Baseline, MeasuredLayout
from bench.registry import register


@register("baseline", "mean_colour")
class MeanColour(Baseline):
    """Each image as its own mean colour, rounded to 8 bits a channel: 24 bits.

    Of all images of one colour it has the smallest squared error, to within the rounding.
    """

    title = "mean colour"
    revision = 1
    label = "mean colour"
    notes = ("every image as one colour, its own mean: 24 bits",)

    def fit(self, train: np.ndarray | None, test: np.ndarray) -> None:
        self.layout = MeasuredLayout(1, (), bits=24.0)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, None]:
        mean = images.double().mean((2, 3), keepdim=True).add_(0.5).to(torch.uint8)     # [B, 3, 1, 1], halves up
        return mean.expand_as(images), None
