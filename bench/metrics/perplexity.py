"""Effective number of codes that a test split uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.code_histogram import CodeHistogram
from bench.interfaces import Metric
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout


@register("metric", "perplexity")
class Perplexity(Metric):
    """exp(-sum p log p) of the code frequencies p, 0 log 0 = 0, mean over levels; between 1 and K.

    `window` as for usage: None is the whole split, 65536 its last 65,536 codes.
    """

    title = "Perplexity"
    unit = ""
    direction = "higher"
    decimals = 4
    revision = 1

    def __init__(self, *, window: int | None = None) -> None:
        self.window = window

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises Incompatible for a continuous tokenizer."""
        self.histogram = CodeHistogram(layout, images, self.window, device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        assert output.codes is not None         # begin has refused tokenizers without codes
        self.histogram.add(output.codes, indices)

    def sums(self) -> dict[str, Tensor]:
        """counts: int64 [sum of K], levels behind one another."""
        return {"counts": self.histogram.counts}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        levels = self.histogram.per_level(sums["counts"])
        return float(torch.stack([torch.special.entr(n / n.sum()).sum().exp() for n in levels]).mean())

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return self.histogram.details(sums["counts"])
