"""Metrics that are a mean over images: a subclass gives one number an image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

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


def image_blocks(images: Tensor) -> Iterator[slice]:
    """Slices of a batch, of 1 MiB in float32 on a CPU, so that they stay in its cache."""
    step = max(1, (1 << 18 if images.device.type == "cpu" else 1 << 26) // images[0].numel())
    for start in range(0, len(images), step):
        yield slice(start, start + step)


def squared_errors(images: Tensor, others: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Two [B, C, H, W] in 0..255, uint8 or float32 -> mean squared error of each image, float64 [B].

    weights: of each channel; then of their weighted sum. Exact for 8 bits and no weights.
    """
    squares = torch.empty(len(images), dtype=torch.float64, device=images.device)
    for block in image_blocks(images):
        difference = images[block].float().sub_(others[block])
        if weights is not None:
            difference = (difference * difference.new_tensor(weights).view(-1, 1, 1)).sum(1)
        squares[block] = difference.square_().flatten(1).sum(1, dtype=torch.float64)
    return squares / difference[0].numel()
