"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.per_image import PerImageMean
from bench.registry import register


@register("metric", "psnr")
class PSNR(PerImageMean):
    """10 log10(255^2 / mse) per image over all RGB values, in float64; then the mean over images.

    The squared error relative to 255^2 is held above 1e-10, so an identical image counts 100 dB and the mean
    stays finite; a single value off by one is above that bound up to 226 x 226 pixels.
    """

    title = "PSNR"
    unit = "dB"
    direction = "higher"
    decimals = 4
    revision = 1

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns dB, float64 [B]."""
        size = images[0].numel()
        squares = torch.empty(len(images), dtype=torch.float64, device=images.device)
        # blocks of 1 MiB stay in a CPU's cache
        step = max(1, (1 << 18 if images.device.type == "cpu" else 1 << 26) // size)
        for start in range(0, len(images), step):
            block = slice(start, start + step)
            difference = images[block].float().sub_(others[block])
            squares[block] = difference.square_().flatten(1).sum(1, dtype=torch.float64)    # integers: exact
        return -10 * torch.log10((squares / (size * 255.0**2)).clamp_min(1e-10))
