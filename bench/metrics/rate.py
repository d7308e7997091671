"""Bits that the codes of an image cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from bench.code_histogram import CodeMetric, entropy
from bench.errors import Incompatible
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout


@register("metric", "rate")
class Rate(CodeMetric):
    """Bits per image, or per pixel, of the codes of a split; levels add.

    coding="fixed": N x sum of log2 K, what the layout says, whatever is used. "entropy": n x H of each level, H the
    zero-order entropy of its codes over the split in bits: what an ideal arithmetic coder needs that knows the
    frequencies and takes codes one by one, without context. "adaptive": the same coder learning the frequencies as it
    goes through the split (R. Krichevsky, V. Trofimov, IEEE Trans. Inf. Theory 27, 1981): -log2 of the product over
    codes of (n_k + 1/2) / (n + K/2), n and n_k the counts so far, which depends on the final counts alone.
    """

    title = "Rate"
    unit = "bits"
    direction = "none"
    decimals = 3
    revision = 1
    caveats = (
        "Published 'bits' are N x log2 K (coding: fixed). A collapsed codebook costs less once entropy-coded: compare "
        "reconstruction at equal entropy, not at equal K.",
        "coding: entropy takes the test split's own frequencies and charges nothing for sending them; adaptive does.",
        "No context: a second stage that predicts codes from each other needs fewer bits, so this is an upper bound.",
        "Per pixel means of the images the metric sees: under a protocol that resizes them, not of the tokenizer's input.",
        "All scales of a multi-scale layout share one table of frequencies; details (scale0, ...) give each its own.",
    )

    def __init__(
        self, *, per: Literal["image", "pixel"] = "image", coding: Literal["fixed", "entropy", "adaptive"] = "fixed"
    ) -> None:
        self.per, self.coding = per, coding
        self.window = None

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises Incompatible for a continuous tokenizer: its latents cost what floats cost."""
        if layout.bits_per_image is None:
            raise Incompatible("a continuous tokenizer has no codes to count bits of")
        self.fixed = layout.bits_per_image
        self.images = torch.zeros((), dtype=torch.int64, device=device)
        self.pixels = torch.zeros((), dtype=torch.int64, device=device)
        if self.coding != "fixed":
            super().begin(layout, images, device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        self.images += len(images)
        self.pixels += images.shape[0] * images.shape[-2] * images.shape[-1]
        if self.coding != "fixed":
            super().update(images, output, indices)

    def sums(self) -> dict[str, Tensor]:
        """images, pixels: int64 []; unless fixed, counts: int64 [S, sum of K]."""
        found = {"images": self.images, "pixels": self.pixels}
        return found if self.coding == "fixed" else found | super().sums()

    def of_level(self, counts: Tensor, codes: float) -> Tensor:
        """Bits of all codes of a level."""
        n = counts.sum()
        if self.coding == "entropy":
            return n * entropy(counts) / math.log(2)
        half = counts.new_full((), 0.5)
        smoothed = torch.lgamma(counts + half).sum() - len(counts) * torch.lgamma(half)
        whole = torch.lgamma(n + len(counts) / 2) - torch.lgamma(counts.new_full((), len(counts) / 2))
        return (whole - smoothed) / math.log(2)

    def _each(self, bits: float, sums: Mapping[str, Tensor]) -> float:
        """Bits of all images -> of one, or of a pixel."""
        return bits / float(sums["pixels"] if self.per == "pixel" else sums["images"])

    def _fixed(self, sums: Mapping[str, Tensor]) -> float:
        pixels = float(sums["pixels"]) / float(sums["images"]) if self.per == "pixel" else 1.0
        return self.fixed / pixels

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        if self.coding == "fixed":
            return self._fixed(sums)
        tables = self.levels(sums)
        if self.histogram.tables > 1:           # a decoder knows which grid it reads
            tables = [n for scale in self.histogram.per_scale(sums["counts"]) for n in scale]
        return self._each(sum(float(self.of_level(table, 0)) for table in tables), sums)

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """fixed: what fixed-length codes cost. level0, scale0, ...: each level's share, each scale with its own table."""
        if self.coding == "fixed":
            return {}
        found = {"fixed": self._fixed(sums)}
        levels, scales = self.levels(sums), self.histogram.per_scale(sums["counts"])
        if len(levels) > 1:
            found |= {f"level{i}": self._each(float(self.of_level(n, 0)), sums) for i, n in enumerate(levels)}
        for i, scale in enumerate(scales):
            found[f"scale{i}"] = self._each(sum(float(self.of_level(n, 0)) for n in scale), sums)
        return found
