"""Share of reconstructions that lie where originals are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bench.errors import Incompatible
from bench.feature_sets import FeatureTable, coverage
from bench.registry import register


@register("metric", "precision")
class Precision(FeatureTable):
    """Improved precision (arXiv:1904.06991): share of reconstructions inside the manifold of the originals.

    The manifold is the union of balls around pooled Inception features, each reaching to its centre's third nearest
    neighbour (`neighbours`), as in the ADM evaluator. Distances in float32, in blocks.
    """

    title = "Precision"
    unit = "share"
    direction = "higher"
    decimals = 2
    needs = ("inception",)
    revision = 1
    caveats = (
        "It depends on the number of images: more originals make smaller balls. Compare only equal n, and published "
        "values (10,000 or 50,000 references) only at theirs.",
        "The paper and torch-fidelity use VGG features; this and the ADM evaluator use Inception's, with other values.",
        "The ADM evaluator multiplies in 16 bits, so a border case may fall to the other side.",
        "For a tokenizer each reconstruction has its original in the set: near 100 % is the normal case.",
    )

    def __init__(self, *, neighbours: int = 3) -> None:
        if neighbours < 1:
            raise Incompatible(f"a ball reaches to its centre's 1st neighbour at least, got neighbours = {neighbours}")
        self.neighbours = neighbours

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        """Raises Incompatible where there are no more images than neighbours."""
        originals, reconstructions = sums["original_features"], sums["reconstruction_features"]
        return coverage(reconstructions, originals, self.neighbours)
