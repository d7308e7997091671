"""Share of the codebook that a test split really uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from bench.code_histogram import CodeMetric, expected_share
from bench.errors import Incompatible
from bench.registry import register


@register("metric", "usage")
class Usage(CodeMetric):
    """Share of K codes hit at least once, mean over levels.

    `window=None` counts the whole split, `window=65536` its last 65,536 codes (the queue of the published
    CelebA tables). A window is a fixed sample: compare it with its ceiling, not with the whole split.

    `at_least=0.08` counts a code only from 0.08 x codes / K hits on, eight per cent of what uniform use would give it
    (VAR, models/quant.py, which takes a moving average over training batches instead of a split); each scale of
    several is held against the codes of the largest one, as there. `zero_filled` is the queue of LlamaGen and FQGAN,
    which begins full of id 0: where the split does not fill the window, code 0 counts as used.
    """

    title = "Usage"
    unit = "share"
    direction = "higher"
    decimals = 2
    revision = 1
    neutral = {"at_least": 0.0, "zero_filled": False}
    caveats = (
        "Usage over a window W is at most min(W, K) / K, and with uniform use 1 - (1 - 1/K)^W on average: a queue of "
        "65,536 codes reads 98.2 % at K = 16,384, 63.2 % at 65,536 and 22.1 % at 262,144 at best. Both ceilings are "
        "in the value's details; whole-split usage of the same weights is higher (94.10 % against 100 % for LlamaGen).",
        "Over a whole training epoch one hit in millions counts: it saturates at 100 % (OptVQ's definition).",
        "VAR counts a code only from 8 % of its uniform share on (at_least: 0.08): not comparable with more than 0 hits.",
        "LlamaGen, FQGAN and MGVQ take it during training from one process's last codes, in a queue that begins full of "
        "id 0; the xyfJASON tables from the last 65,536 codes of the test set.",
        "With several levels it is the mean over levels (details: level0, ...); tuples over levels are joint_usage.",
        "A scale of few tokens has a low ceiling of its own (details: scale0, scale0_ceiling, ...).",
    )

    def __init__(self, *, window: int | None = None, at_least: float = 0.0, zero_filled: bool = False) -> None:
        if at_least < 0:
            raise Incompatible(f"at_least is a share of uniform use, got {at_least}; give 0 or more")
        if zero_filled and window is None:
            raise Incompatible("only a window can begin full of zeros; give window, for example 65536")
        if zero_filled and at_least:
            raise Incompatible("at_least is VAR's usage and zero_filled is LlamaGen's; give one of them")
        self.window, self.at_least, self.zero_filled = window, at_least, zero_filled

    def least(self, k: int, codes: float) -> int:
        """Hits from which on a code counts as used."""
        return max(1, math.ceil(self.at_least * codes / k))

    @property
    def unfilled(self) -> int:
        """Slots of the window that still hold the id 0 they began with."""
        return self.window - self.histogram.counted if self.zero_filled and self.window is not None else 0

    def levels(self, sums: Mapping[str, Tensor]) -> list[Tensor]:
        levels = super().levels(sums)
        for level in levels:
            level[0] += self.unfilled
        return levels

    def of_level(self, counts: Tensor, codes: float) -> Tensor:
        return (counts >= self.least(len(counts), codes)).double().mean()

    def ceilings(self, k: int, codes: int) -> tuple[float, float]:
        """As for any window; one that is filled up with zeros has code 0 for nothing."""
        if self.unfilled:
            return (min(k - 1, codes) + 1) / k, (1 - 1 / k) * expected_share(k, codes) + 1 / k
        least = self.least(k, codes)
        return min(k, codes // least) / k, expected_share(k, codes, least)

    def of_scales(self, scales: Sequence[Sequence[Tensor]]) -> dict[str, float]:
        found = super().of_scales(scales)
        most = max((float(levels[0].sum()) for levels in scales), default=0.0)
        for i, levels in enumerate(scales):
            if codes := float(levels[0].sum()):
                hard = [min(len(n), codes // self.least(len(n), most)) / len(n) for n in levels]
                found[f"scale{i}_ceiling"] = sum(hard) / len(hard)
        return found
