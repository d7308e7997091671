"""Share of the combinations of codes that a test split really uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from bench.code_histogram import TupleMetric
from bench.registry import register


@register("metric", "joint_usage")
class JointUsage(TupleMetric):
    """Share of the K1 x K2 x ... combinations of residual or factorised codes that occur at least once at a token of the
    split. With `of="reachable"` of the smaller of these combinations and the tokens: what could have occurred.

    Equals usage for a single level, so that one column may hold both, and counts without a table of all combinations,
    so that it also serves single levels with more codes than memory (2^36).
    """

    title = "Joint usage"
    unit = "share"
    direction = "higher"
    decimals = 2
    revision = 1
    caveats = (
        "Combinations outgrow any test set: two levels of 16,384 have 2.7e8, and 50,000 images of 256 tokens show 4.8 % "
        "of them at most (details: hard_ceiling). Compare at equal K, levels and number of tokens.",
        "Distinct combinations grow with the number of images whatever the codebook does; joint_perplexity says how "
        "evenly they are used.",
        "No published table has it: FQGAN and MGVQ log each sub-codebook alone, XQ-GAN and RQ-VAE pool them.",
    )

    def __init__(self, *, of: Literal["combinations", "reachable"] = "combinations") -> None:
        self.of = of

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        used = len(self.tuples(sums))
        if self.of == "combinations":
            return used / self.combinations
        return used / min(self.combinations, sums["tuples"].shape[0] * sums["tuples"].shape[1])
