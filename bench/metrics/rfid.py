"""Frechet Inception distance between originals and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.interfaces import Metric
from bench.pretrained import inception
from bench.registry import register
from bench.types import TokenizerOutput, TokenLayout

FEATURES = 2048
BLOCK = 32              # images at once through the network: 90 MB for its largest layer


@register("metric", "rfid")
class RFID(Metric):
    """FID (arXiv:1706.08500) of all originals against all reconstructions of the split, both as 8-bit images.

    2048 pooled features of torch-fidelity's InceptionV3 with TensorFlow's weights; moments are summed in float64,
    covariances divided by n - 1. Biased upwards for few images, so compare only equal n.
    """

    title = "rFID"
    unit = ""
    direction = "lower"
    decimals = 4
    needs = ("inception",)
    revision = 1

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where Inception's weights are not on this machine."""
        self.network = inception().to(device)
        self.state = {"images": torch.zeros((), dtype=torch.int64, device=device)}
        for side in ("original", "reconstruction"):
            self.state[f"{side}_sum"] = torch.zeros(FEATURES, dtype=torch.float64, device=device)
            self.state[f"{side}_outer"] = torch.zeros(FEATURES, FEATURES, dtype=torch.float64, device=device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        self.state["images"] += len(images)
        for side, pictures in (("original", images), ("reconstruction", output.reconstruction)):
            for block in pictures.split(BLOCK):
                features = self.network(block)[0].double()                          # [b, 2048]
                self.state[f"{side}_sum"] += features.sum(0)
                self.state[f"{side}_outer"].addmm_(features.t(), features)

    def sums(self) -> dict[str, Tensor]:
        """images; per side the sum [2048] and the sum of outer products [2048, 2048] of the features."""
        return self.state

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        """Raises Incompatible below two images, which have no covariance."""
        count = int(sums["images"])
        if count < 2:
            raise Incompatible(f"rFID needs at least 2 images, got {count}")
        return frechet_distance(*(
            (sums[f"{side}_sum"], sums[f"{side}_outer"], count) for side in ("original", "reconstruction")))


def frechet_distance(one: tuple[Tensor, Tensor, int], other: tuple[Tensor, Tensor, int]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) from (sum [D], sum of outer products [D, D], n) of each side.

    tr (C1 C2)^(1/2) is the sum of the singular values of A1^T A2 for any C = A A^T. That form is exact for singular
    covariances too (n <= D), where the eigenvalues of C1 C2 drown in rounding: their square roots turn 1e-16 into 1e-8,
    two thousand times. Never below 0.
    """
    (mean1, root1, trace1), (mean2, root2, trace2) = _root(*one), _root(*other)
    shared = torch.linalg.svdvals(root1.t() @ root2).sum()
    return max(0.0, float((mean1 - mean2).square().sum() + trace1 + trace2 - 2 * shared))


def _root(total: Tensor, outer: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], a factor A [D, rank] of the covariance A A^T, and its trace."""
    mean = total / count
    covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
    values, vectors = torch.linalg.eigh(covariance)
    # what is left of zero after the subtraction of two large matrices
    noise = torch.finfo(values.dtype).eps * len(values) * (values[-1].clamp_min(0) + mean.square().sum())
    kept = values > noise
    return mean, vectors[:, kept] * values[kept].sqrt(), values[kept].sum()
