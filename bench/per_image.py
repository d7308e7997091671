"""Metrics that are a mean over images: a subclass gives one number an image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.interfaces import Metric
from bench.types import TokenizerOutput, TokenLayout


class PerImageMean(Metric):
    """The mean of `per_image` over the split; sums and number of images add across batches and processes."""

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.images = torch.zeros((), dtype=torch.int64, device=device)

    @abstractmethod
    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Two [B, 3, H, W] in 0..255, uint8 or float32 -> float64 [B]."""

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> Tensor:
        values = self.per_image(images, output.reconstruction)
        self.total += values.sum()
        self.images += len(values)
        return values

    def sums(self) -> dict[str, Tensor]:
        return {"total": self.total, "images": self.images}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(sums["total"] / sums["images"])


def sums_of_differences(images: Tensor, others: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Two [B, C, H, W], uint8 or float32 -> the sum over each image of `function` of the differences, float64 [B].

    `function` gets [rows, W] and may work in place. Sums of squares of 8-bit differences are exact.
    """
    width = images.shape[-1]
    one, other = images.reshape(-1, width), others.reshape(-1, width)
    exact = torch.float32 if width * 255**2 < 2**24 else torch.float64
    sums = torch.empty(len(one), dtype=exact, device=one.device)
    # On a CPU blocks that stay in its fastest cache, and below the 2^15 values from where torch's threads would share
    # each operation: to wait for each other takes longer than all of it.
    step = max(1, (1 << 14 if one.device.type == "cpu" else 1 << 26) // width)
    for start in range(0, len(one), step):
        block = slice(start, start + step)
        difference = torch.sub(one[block].float(), other[block].float())
        torch.sum(function(difference), 1, dtype=exact, out=sums[block])
    return sums.view(len(images), -1).sum(1, dtype=torch.float64)


def squared_errors(images: Tensor, others: Tensor) -> Tensor:
    """Two [B, C, H, W] in 0..255, uint8 or float32 -> mean squared error of each image, float64 [B]."""
    return sums_of_differences(images, others, Tensor.square_) / images[0].numel()
