"""Kernel Inception distance between originals and reconstructions."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

from torch import Tensor

from bench.errors import Incompatible
from bench.feature_sets import FeatureTable, kernel_distance
from bench.registry import register


@register("metric", "kid")
class KID(FeatureTable):
    """KID (arXiv:1801.01401): unbiased squared MMD of pooled Inception features, kernel (x.y / 2048 + 1)^3.

    Mean over `subsets` random subsets of `subset_size` images from each side, drawn as torch-fidelity draws them
    (input1 the reconstructions, input2 the originals), so the value is its. A split smaller than `subset_size` is
    taken whole, where torch-fidelity refuses. Unlike FID it has no bias for few images, and may fall below 0.
    """

    title = "KID"
    unit = ""
    direction = "lower"
    decimals = 6
    needs = ("inception",)
    revision = 1
    caveats = (
        "Papers print it times 1, 100 or 1000 without saying so; here it is as defined.",
        "Subsets are random: the deviation over subsets is in the record's details, and values closer than it are not "
        "different. Slightly below 0 is possible and means no difference.",
        "Images are paired by position nowhere: it compares sets, and each side draws its own subset.",
    )

    def __init__(self, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> None:
        if subsets < 1 or subset_size < 2:
            raise Incompatible(f"KID needs 1 subset of 2 images at least, got {subsets} of {subset_size}")
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self._of: Callable[[], Tensor | None] = lambda: None    # the table that _found was computed from
        self._found = (0.0, 0.0)

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        """Raises Incompatible for a single image."""
        return self._measured(sums)[0]

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """deviation: over subsets. subset_size: images really drawn."""
        return {"deviation": self._measured(sums)[1], "subset_size": float(self._size(sums))}

    def _size(self, sums: Mapping[str, Tensor]) -> int:
        return min(self.subset_size, len(sums["original_features"]))

    def _measured(self, sums: Mapping[str, Tensor]) -> tuple[float, float]:
        size = self._size(sums)
        whole = size == len(sums["original_features"])          # every subset is the same
        given = sums["reconstruction_features"]
        if self._of() is not given:                             # compute, then details: once
            self._found = kernel_distance(given, sums["original_features"], subsets=1 if whole else self.subsets,
                                          subset_size=size, seed=self.seed)
            self._of = weakref.ref(given)
        return self._found
