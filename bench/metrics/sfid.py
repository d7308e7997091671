"""Frechet distance on spatial Inception features, between originals and reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.features import InceptionFeatures
from bench.frechet import FrechetMetric
from bench.registry import register
from bench.types import TokenLayout


@register("metric", "sfid")
class SFID(FrechetMetric):
    """sFID (arXiv:2103.03841) as the ADM evaluator defines it: a Fréchet distance on 2023 spatial features.

    These are the first 7 channels of mixed_6/conv (Mixed_6d.branch1x1 in torchvision's names) at each of 17 x 17
    positions: sensitive to where things are, which pooled features are not. Moments are summed in float64.
    """

    title = "sFID"
    unit = ""
    direction = "lower"
    decimals = 4
    needs = ("inception",)
    revision = 1
    caveats = (
        "Seven channels out of 192, the first ones, so that there are about as many features as FID has: a convention.",
        "Biased upwards for few images: compare only equal numbers of images.",
        "For reconstructions it is usually far below the values of generative models, and not comparable with them.",
    )

    def __init__(self) -> None:
        self.width = 2023

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where Inception's weights are not on this machine."""
        self.network = InceptionFeatures(device=device)
        super().begin(layout, images, device)

    def reference(self) -> str:
        return f"moments of spatial features, {self.network.identity}"

    def features(self, pictures: Tensor) -> Tensor:
        return self.network(pictures).spatial
