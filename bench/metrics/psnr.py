"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.per_image import PerImageMean, squared_errors
from bench.registry import register

#: luma of BT.601 in studio range (16..235 of 0..255), for values in 0..255
STUDIO = (65.481 / 255, 128.553 / 255, 24.966 / 255)


@register("metric", "psnr")
class PSNR(PerImageMean):
    """10 log10(255^2 / mse) per image over all RGB values, in float64; then the mean over images.

    channel: "rgb", or "y", the luma of BT.601 in studio range. epsilon is added to mse / 255^2. The squared error
    relative to 255^2 is held above 1e-10, so an identical image counts 100 dB and the mean stays finite; a single
    8-bit value off by one is above that bound up to 226 x 226 pixels.

    The defaults are scikit-image's peak_signal_noise_ratio (where an identical image is infinite); epsilon=1e-8 is
    piqa's and pyiqa's, with channel="y" pyiqa's with test_y_channel=True, color_space="ycbcr".
    """

    title = "PSNR"
    unit = "dB"
    direction = "higher"
    decimals = 4
    revision = 1
    neutral = {"channel": "rgb", "epsilon": 0.0}
    caveats = (
        "It is the mean of each image's dB, not the dB of the mean squared error over all images, which is lower.",
        "Luma in studio range (OptVQ) reads 1.32 dB more than full range for the range alone, and more again because "
        "luma errs less than colour: never compare it with RGB.",
        "An epsilon of 1e-8 (piqa, pyiqa) takes 0.0004 dB from 40 dB and holds an identical image at 80 dB; without "
        "it an identical image counts 100 dB here and is infinite in scikit-image.",
        "Rounding to 8 bits adds a squared error of 1/12: 0.003 dB at 30 dB, 0.03 dB at 40 dB.",
    )

    def __init__(self, *, channel: Literal["rgb", "y"] = "rgb", epsilon: float = 0.0) -> None:
        self.channel = channel
        self.epsilon = epsilon

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns dB, float64 [B]."""
        if self.channel == "y":
            images, others = _luma(images), _luma(others)
        relative = squared_errors(images, others) / 255.0**2 + self.epsilon
        return -10 * torch.log10(relative.clamp_min(1e-10))


def _luma(images: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..255 -> [B, 1, H, W], less the 16 that black has."""
    red, green, blue = images.float().unbind(1)
    return (red * STUDIO[0]).add_(green, alpha=STUDIO[1]).add_(blue, alpha=STUDIO[2]).unsqueeze(1)
