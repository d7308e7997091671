"""The images themselves: what each metric says of a perfect reconstruction."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bench.baseline import Baseline, MeasuredLayout
from bench.registry import register


@register("baseline", "identity")
class Identity(Baseline):
    """Every image unchanged, 8 bits a value. The floor or ceiling of every metric under a protocol's preparation.

    It need not be 0, 1 or 100 dB: under a protocol that truncates or rounds only one side, nobody can do better
    than this row.
    """

    title = "identity"
    revision = 1
    label = "identity"
    notes = ("the originals themselves: the best that a metric can say under this protocol",)

    def fit(self, train: np.ndarray | None, test: np.ndarray) -> None:
        self.layout = MeasuredLayout(0, (), bits=8.0 * test[0].size)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, None]:
        return images, None
