"""Mean absolute error."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.per_image import PerImageMean, sums_of_differences
from bench.registry import register


@register("metric", "l1")
class L1(PerImageMean):
    """Mean of absolute differences over all RGB values of an image; then over images.

    scale: the width of the range that values are in: 2 for [-1, 1] (the default, and the scale of most tokenizers'
    pixel loss), 1 for [0, 1], 255 for 8 bits.
    """

    title = "L1"
    unit = ""
    direction = "lower"
    decimals = 4
    revision = 1
    caveats = (
        "Papers seldom say on which scale: [-1, 1] reads twice what [0, 1] does.",
        "Of the image as the protocol prepares it: clamped and, unless it says otherwise, rounded to 8 bits. A training "
        "loss is of the output as it is.",
    )

    def __init__(self, *, scale: Literal[1, 2, 255] = 2) -> None:
        self.factor = scale / 255.0

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns mean absolute errors, float64 [B]."""
        return sums_of_differences(images, others, Tensor.abs_) * (self.factor / images[0].numel())
