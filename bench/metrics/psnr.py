"""Peak signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.interfaces import Metric
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout


@register("metric", "psnr")
class PSNR(Metric):
    """10 log10(255^2 / mse) per image over all RGB values, in float64; then the mean over images.

    The squared error relative to 255^2 is held above 1e-10, so an identical image counts 100 dB and the mean
    stays finite; a single value off by one is above that bound up to 226 x 226 pixels.
    """

    title = "PSNR"
    unit = "dB"
    direction = "higher"
    decimals = 4
    revision = 1

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.images = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> Tensor:
        """Returns dB, float64 [B]."""
        size = images[0].numel()
        squares = torch.empty(len(images), dtype=torch.float64, device=images.device)
        # blocks of 1 MiB stay in a CPU's cache
        step = max(1, (1 << 18 if images.device.type == "cpu" else 1 << 26) // size)
        for start in range(0, len(images), step):
            block = slice(start, start + step)
            difference = images[block].float().sub_(output.reconstruction[block])
            squares[block] = difference.square_().flatten(1).sum(1, dtype=torch.float64)    # integers: exact
        values = -10 * torch.log10((squares / (size * 255.0**2)).clamp_min(1e-10))
        self.total += values.sum()
        self.images += len(values)
        return values

    def sums(self) -> dict[str, Tensor]:
        return {"total": self.total, "images": self.images}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(sums["total"] / sums["images"])
