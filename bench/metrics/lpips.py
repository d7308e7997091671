"""Learned perceptual image patch similarity."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.per_image import PerImageMean
from bench.pretrained import LPIPS_SMALLEST, lpips_network
from bench.registry import register
from bench.types import TokenLayout


@register("metric", "lpips")
class LPIPS(PerImageMean):
    """LPIPS v0.1 (arXiv:1801.03924) with its linear heads, at native resolution; mean over images.

    Of the lpips package version 0.1 is the one with inputs scaled by ImageNet's mean and deviation and heads trained so;
    0.0 lacked the scaling. Values of different trunks (`net`) are on different scales. AlexNet is the usual one for
    evaluation.
    """

    title = "LPIPS"
    unit = ""
    direction = "lower"
    decimals = 4
    needs = ("lpips_{net}",)
    revision = 1
    caveats = (
        "Trunks are on different scales: never compare alex with vgg or squeeze.",
        "Tokenizers are trained with LPIPS of VGG: measured with the trunk it was trained with, a tokenizer looks better "
        "than it is. AlexNet is the usual judge.",
        "Networks want values in [-1, 1]; given [0, 1] without saying so, the package returns a number that is too small.",
        "It depends on the resolution: 64-pixel and 256-pixel values are not comparable, and images are not resized here.",
        "Version 0.1; version 0.0 of the heads gives other values.",
    )

    def __init__(self, *, net: Literal["alex", "squeeze", "vgg"] = "alex") -> None:
        self.net = net

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where the trunk's weights are not on this machine."""
        self.network = lpips_network(self.net).to(device)
        super().begin(layout, images, device)

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns distances, float64 [B]. Raises Incompatible for images too small for the trunk."""
        if min(images.shape[-2:]) < LPIPS_SMALLEST[self.net]:
            raise Incompatible(f"LPIPS {self.net} needs images of {LPIPS_SMALLEST[self.net]} pixels, "
                               f"got {images.shape[-2]}x{images.shape[-1]}")
        return torch.cat([
            self.network(_floats(original), _floats(other)).flatten().double()
            for original, other in zip(images.split(64), others.split(64), strict=True)
        ])


def _floats(images: Tensor) -> Tensor:
    return images.to(torch.float32, copy=True, memory_format=torch.channels_last).div_(127.5).sub_(1.0)
