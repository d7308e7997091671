"""Metrics that are a mean over images: a subclass gives one number an image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

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
        """Two uint8 [B, 3, H, W] -> float64 [B]."""

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> Tensor:
        values = self.per_image(images, output.reconstruction)
        self.total += values.sum()
        self.images += len(values)
        return values

    def sums(self) -> dict[str, Tensor]:
        return {"total": self.total, "images": self.images}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(sums["total"] / sums["images"])
