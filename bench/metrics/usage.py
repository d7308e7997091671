"""Share of the codebook that a test split really uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.code_histogram import CodeHistogram
from bench.interfaces import Metric
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout


@register("metric", "usage")
class Usage(Metric):
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
        shares = [(level > 0).double().mean() for level in self.histogram.per_level(sums["counts"])]
        return float(torch.stack(shares).mean())

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return self.histogram.details(sums["counts"])
