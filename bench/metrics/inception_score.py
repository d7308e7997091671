"""Inception score of the reconstructions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.feature_sets import ScoreSums, inception_score
from bench.features import InceptionFeatures
from bench.interfaces import Metric
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout


@register("metric", "inception_score")
class InceptionScore(Metric):
    """Inception score (arXiv:1606.03498) of the reconstructions alone, as the ADM evaluator computes it.

    Class probabilities from the logits without bias; consecutive splits of `split_size` images in the order of the
    split, the last one as large as it is; the mean over splits. Sums stream: 8 kB a split.
    """

    title = "IS"
    unit = ""
    direction = "higher"
    decimals = 4
    needs = ("inception",)
    revision = 1
    caveats = (
        "It says nothing about originals: a tokenizer that turned every image into a clearer one of another class "
        "would score higher than the originals.",
        "Only meaningful for sets that cover ImageNet's classes; on faces it measures noise.",
        "torch-fidelity shuffles and makes 10 splits; the ADM evaluator takes 5,000 consecutive images at a time, so "
        "images sorted by class give a lower score than shuffled ones.",
        "Small splits read low: a split of n images cannot score above n.",
    )

    def __init__(self, *, split_size: int = 5000) -> None:
        if split_size < 1:
            raise Incompatible(f"a split of the Inception score has at least 1 image, got split_size = {split_size}")
        self.split_size = split_size

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where Inception's weights are not on this machine."""
        self.network = InceptionFeatures(device=device)
        self.scores = ScoreSums(images, self.split_size, device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        self.scores.add(self.network(output.reconstruction).logits, indices)

    def sums(self) -> dict[str, Tensor]:
        """Per split: images, the sum of sum_c p log p, and the sum of p [1008]."""
        return self.scores.sums()

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(np.mean(inception_score(sums)))

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """deviation: over splits. splits: how many."""
        found = inception_score(sums)
        return {"deviation": float(np.std(found)), "splits": float(len(found))}
