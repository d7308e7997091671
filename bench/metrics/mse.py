"""Mean squared error."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.per_image import PerImageMean, squared_errors
from bench.registry import register


@register("metric", "mse")
class MSE(PerImageMean):
    """Mean of squared differences over all RGB values of an image; then over images.

    scale: the width of the range that values are in: 2 for [-1, 1] (the default, and the scale of most tokenizers'
    pixel loss), 1 for [0, 1], 255 for 8 bits. MSE grows with its square: one of 0.01 in [-1, 1] is 0.0025 in [0, 1]
    and 162.6 in 0..255.
    """

    title = "MSE"
    unit = ""
    direction = "lower"
    decimals = 5
    revision = 1
    caveats = (
        "Papers seldom say on which scale: [-1, 1] reads 4 times what [0, 1] does.",
        "Of the image as the protocol prepares it: clamped and, unless it says otherwise, rounded to 8 bits. A training "
        "loss is of the output as it is.",
        "A loss divided by the variance of the data (VQ-VAE on CIFAR-10) is another quantity.",
    )

    def __init__(self, *, scale: Literal[1, 2, 255] = 2) -> None:
        self.factor = (scale / 255.0) ** 2

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns mean squared errors, float64 [B]."""
        return squared_errors(images, others) * self.factor
