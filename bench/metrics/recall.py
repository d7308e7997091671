"""Share of originals that lie where reconstructions are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bench.errors import Incompatible
from bench.feature_sets import FeatureTable, coverage
from bench.registry import register


@register("metric", "recall")
class Recall(FeatureTable):
    """Improved recall (arXiv:1904.06991): share of originals inside the manifold of the reconstructions.

    The manifold is the union of balls around pooled Inception features, each reaching to its centre's third nearest
    neighbour (`neighbours`), as in the ADM evaluator. Distances in float32, in blocks.
    """

    title = "Recall"
    unit = "share"
    direction = "higher"
    decimals = 2
    needs = ("inception",)
    revision = 1
    caveats = (
        "It depends on the number of images: compare only equal n, and published values only at theirs.",
        "A few outliers among the reconstructions make balls that cover many originals: read it beside precision.",
        "The paper and torch-fidelity use VGG features; this and the ADM evaluator use Inception's, with other values.",
    )

    def __init__(self, *, neighbours: int = 3) -> None:
        if neighbours < 1:
            raise Incompatible(f"a ball reaches to its centre's 1st neighbour at least, got neighbours = {neighbours}")
        self.neighbours = neighbours

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        """Raises Incompatible where there are no more images than neighbours."""
        return coverage(sums["original_features"], sums["reconstruction_features"], self.neighbours)
