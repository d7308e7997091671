"""Frechet Inception distance between originals and reconstructions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.features import InceptionFeatures
from bench.frechet import FrechetMetric
from bench.frechet import frechet_distance as frechet_distance
from bench.registry import register
from bench.types import TokenLayout


@register("metric", "rfid")
class RFID(FrechetMetric):
    """FID (arXiv:1706.08500) of all originals against all reconstructions of the split.

    2048 pooled features of torch-fidelity's InceptionV3 with TensorFlow's weights; moments are summed in
    float64, covariances divided by n - 1. Biased upwards for few images, so compare only equal n.
    resize: to the network's 299 pixels, "tensorflow" as torch-fidelity and the ADM evaluator do, "torch" as
    pytorch-fid does (OptVQ, SEED-Voken). Agrees with either package end to end.
    """

    title = "rFID"
    unit = ""
    direction = "lower"
    decimals = 4
    needs = ("inception",)
    revision = 1
    neutral = {"resize": "tensorflow"}
    caveats = (
        "It depends on the reference set: originals of the same split here. Against statistics of the training set, or "
        "the ADM reference file, the same checkpoint reads 4.28 instead of 2.19 (LlamaGen, f = 16).",
        "Biased upwards for few images (the estimated covariance has at most n - 1 dimensions): compare only equal "
        "numbers of images, and with published values only at theirs (50,000 for ImageNet's validation split).",
        "The resize to 299 pixels is part of it: pytorch-fid (resize torch) and torch-fidelity (resize tensorflow) "
        "differ on the same images, and neither is clean-fid, which resizes with antialias beforehand.",
        "The ADM evaluator runs TensorFlow's graph; this is torch-fidelity's port of the same weights, close but not "
        "equal: differences in the last digits of published values mean nothing.",
        "Originals must have had the same crop and resize as what the tokenizer saw, and 8-bit rounding or not is "
        "part of the protocol.",
    )

    def __init__(self, *, resize: Literal["tensorflow", "torch"] = "tensorflow") -> None:
        self.resize = resize
        self.width = 2048

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where Inception's weights are not on this machine."""
        self.network = InceptionFeatures(resize=self.resize, device=device)
        super().begin(layout, images, device)

    def reference(self) -> str:
        return f"moments of pooled features, {self.network.identity}"

    def features(self, pictures: Tensor) -> Tensor:
        return self.network(pictures)[0]
