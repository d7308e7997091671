"""Learned perceptual image patch similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.interfaces import Metric
from bench.pretrained import lpips_network
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout

#: smallest side that leaves every trunk one pixel at its last layer
SMALLEST = {"alex": 31, "squeeze": 17, "vgg": 16}


@register("metric", "lpips")
class LPIPS(Metric):
    """LPIPS v0.1 (arXiv:1801.03924) with its linear heads, at native resolution; mean over images.

    Values of different trunks (`net`) are on different scales. AlexNet is the usual one for evaluation.
    """

    title = "LPIPS"
    unit = ""
    direction = "lower"
    decimals = 4
    needs = ("lpips_{net}",)
    revision = 1

    def __init__(self, *, net: Literal["alex", "squeeze", "vgg"] = "alex") -> None:
        self.net = net

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where the trunk's weights are not on this machine."""
        self.network = lpips_network(self.net).to(device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.images = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> Tensor:
        """Returns distances, float64 [B]. Raises Incompatible for images too small for the trunk."""
        if min(images.shape[-2:]) < SMALLEST[self.net]:
            raise Incompatible(f"LPIPS {self.net} needs images of {SMALLEST[self.net]} pixels, "
                               f"got {images.shape[-2]}x{images.shape[-1]}")
        values = torch.cat([
            self.network(_floats(original), _floats(other)).flatten().double()
            for original, other in zip(images.split(64), output.reconstruction.split(64), strict=True)
        ])
        self.total += values.sum()
        self.images += len(values)
        return values

    def sums(self) -> dict[str, Tensor]:
        return {"total": self.total, "images": self.images}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(sums["total"] / sums["images"])


def _floats(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last).float().div_(127.5).sub_(1.0)
