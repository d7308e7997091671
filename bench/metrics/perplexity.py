"""Effective number of codes that a test split uses."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.code_histogram import CodeMetric, entropy
from bench.registry import register


@register("metric", "perplexity")
class Perplexity(CodeMetric):
    """exp(-sum p log p) of the code frequencies p, 0 log 0 = 0, mean over levels; between 1 and K.

    `window` as for usage: None is the whole split, 65536 its last 65,536 codes. `correction` of the entropy for the
    finite number of codes: Miller-Madow, H + (m - 1) / 2n for m distinct codes among n, or Chao-Shen, for many codes
    that were never drawn (bench/code_histogram.py has the formulas and sources); both cut at K.
    """

    title = "Perplexity"
    unit = ""
    direction = "higher"
    decimals = 4
    revision = 1
    neutral = {"correction": "none"}
    caveats = (
        "Perplexity of few codes is biased low: the entropy by about (m - 1) / 2n for m codes in use and n counted. Two "
        "values compare at equal n only, unless corrected; over a window of 65,536 it differs from the whole split's.",
        "Logged in training it is of one batch on one process (at most the number of its tokens) in most published code, "
        "and not comparable with a test split's.",
        "Published variants differ in zero handling (log(p + 1e-10), log(max(p, 1e-10))): equal to 4 decimals.",
        "With several levels it is the mean of the levels' perplexities (details: level0, ...), not that of their tuples "
        "(joint_perplexity) nor their product.",
        "The corrections assume independent draws; the codes of one image are not, so some bias remains.",
    )

    def __init__(
        self, *, window: int | None = None, correction: Literal["none", "miller-madow", "chao-shen"] = "none"
    ) -> None:
        self.window, self.correction = window, correction

    def of_level(self, counts: Tensor, codes: float) -> Tensor:
        return entropy(counts, self.correction, len(counts)).exp()
