"""Effective number of codes that a test split uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.code_histogram import CodeMetric
from bench.registry import register


@register("metric", "perplexity")
class Perplexity(CodeMetric):
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

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        levels = self.histogram.per_level(sums["counts"])
        return float(torch.stack([torch.special.entr(n / n.sum()).sum().exp() for n in levels]).mean())
