"""Inner product: the code with the largest projection wins, so long codes attract."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Distance
from implementations.search.entropy import assignment_entropy
from implementations.search.nearest import largest_product


@register("distance", "dot")
class Dot(Distance):
    """k = argmax_j z . e_j, as in index back-propagation (arXiv:2412.02692), here with any gradient and update."""

    def nearest(self, z: Tensor, among: Tensor) -> Tensor:
        return largest_product(z, among)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T

    def entropy(self, z: Tensor, table: Tensor, temperature: float) -> Tensor:
        return assignment_entropy(z, table, temperature, product=True)
