"""Effective number of combinations of codes that a test split uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from bench.code_histogram import TupleMetric, entropy
from bench.registry import register


@register("metric", "joint_perplexity")
class JointPerplexity(TupleMetric):
    """exp of the entropy of the joint distribution of a token's codes over all levels; between 1 and K1 x K2 x ...

    Equals perplexity for a single level. At most the product of the levels' perplexities, which it reaches when levels
    are independent; details hold `shared_bits`, the levels' entropies less the joint one (total correlation, S. Watanabe,
    IBM J. Res. Dev. 4, 1960): what the levels say twice, in bits a token. `correction` as for perplexity, of all of them.
    """

    title = "Joint perplexity"
    unit = ""
    direction = "higher"
    decimals = 1
    revision = 1
    caveats = (
        "At most the number of tokens measured: where combinations outnumber tokens it says how many images there were. "
        "Compare at equal numbers of tokens, or with correction: chao-shen.",
        "shared_bits are biased high by the same lack of tokens: independent levels do not read 0.",
        "The corrections assume independent draws; the codes of one image are not, so some bias remains.",
    )

    def __init__(self, *, correction: Literal["none", "miller-madow", "chao-shen"] = "none") -> None:
        self.correction = correction

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(entropy(self.tuples(sums), self.correction, self.combinations).exp())

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().details(sums)
        if len(self.vocab_sizes) > 1:
            levels = [float(entropy(counts, self.correction, k))
                      for counts, k in zip(self.level_counts(sums), self.vocab_sizes, strict=True)]
            joint = float(entropy(self.tuples(sums), self.correction, self.combinations))
            found |= {f"level{i}": math.exp(nats) for i, nats in enumerate(levels)}
            found["shared_bits"] = (sum(levels) - joint) / math.log(2)
        return found
