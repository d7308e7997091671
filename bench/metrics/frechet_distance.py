"""Frechet distance between originals and reconstructions on a network that is not FID's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.features import WIDTHS, TrunkFeatures
from bench.frechet import FrechetMetric
from bench.registry import register
from bench.types import TokenLayout


@register("metric", "frechet_distance")
class FrechetDistance(FrechetMetric):
    """A Fréchet distance on the features of another pretrained network: not FID, and on another scale.

    network: "inception_mixed_7a" (1280 features) and "inception_mixed_6e" (768), ImageNet's InceptionV3 of Keras up to
    that layer; "mobilenet_v2_035" (1280), MobileNetV2 of width 0.35; "squeezenet" (512), SqueezeNet 1.1's features.
    There is no usual one: it has to be named, and headings name it. Means over positions; images resized to 299 or 224
    pixels by antialiased bicubic interpolation. Moments are summed in float64. Its weights are files that somebody puts into BENCH_WEIGHTS, see bench/weights.py.
    """

    title = "Fréchet distance"
    unit = ""
    direction = "lower"
    decimals = 4
    needs = ("frechet_{network}",)
    revision = 1
    caveats = (
        "This is not FID: its network is another one, and its values must never be compared with published FID.",
        "Networks give different scales; compare values of one network only, at equal numbers of images (biased "
        "upwards for few).",
        "SqueezeNet's trunk is also LPIPS-squeeze's: it does not judge a tokenizer fairly that was trained with it.",
    )

    def __init__(self, *, network: Literal["inception_mixed_7a", "inception_mixed_6e", "mobilenet_v2_035",
                                           "squeezenet"]) -> None:
        self.name = network
        self.width = WIDTHS[network]

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where the network's weights are not on this machine."""
        self.network = TrunkFeatures(self.name, device=device)
        super().begin(layout, images, device)

    def reference(self) -> str:
        return f"moments of features, {self.network.identity}"

    def features(self, pictures: Tensor) -> Tensor:
        return self.network(pictures)
