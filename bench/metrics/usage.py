"""Share of the codebook that a test split really uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.code_histogram import CodeMetric
from bench.registry import register


@register("metric", "usage")
class Usage(CodeMetric):
    """Share of K codes hit at least once, mean over levels.

    `window=None` counts the whole split, `window=65536` its last 65,536 codes (the queue of the published
    CelebA tables). A window is a fixed sample: compare it with its ceiling, not with the whole split.
    """

    title = "Usage"
    unit = "share"
    direction = "higher"
    decimals = 2
    revision = 1

    def __init__(self, *, window: int | None = None) -> None:
        self.window = window

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        shares = [(level > 0).double().mean() for level in self.histogram.per_level(sums["counts"])]
        return float(torch.stack(shares).mean())
