"""Fréchet distance between two sets of features, from sums that add across batches and processes. No matrix root."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from bench.errors import Incompatible
from bench.interfaces import Metric
from bench.types import TokenizerOutput, TokenLayout


class Moments:
    """Number, sum [D] and sum of outer products [D, D] of features, float64: 8 D^2 bytes whatever their number."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """features: float [B, D]."""
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer.addmm_(features.t(), features)


class FrechetMetric(Metric):
    """Fréchet distance of all originals against all reconstructions; a subclass says which features.

    It streams: two tables of D x D float64 numbers (67 MB for Inception's 2048), however many images there are.
    """

    originals = ("original_images", "original_sum", "original_outer")
    width: int                                  # D; set before begin

    @abstractmethod
    def features(self, pictures: Tensor) -> Tensor:
        """uint8 or float [B, 3, H, W] in 0..255 -> [B, D]."""

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        self.sides = {side: Moments(self.width, device) for side in ("original", "reconstruction")}
        self.known = False

    def take_originals(self, sums: Mapping[str, Tensor] | None) -> None:
        self.known = True
        if sums is not None:
            moments = self.sides["original"]
            moments.count.copy_(sums["original_images"])
            moments.total.copy_(sums["original_sum"])
            moments.outer.copy_(sums["original_outer"])

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        if not self.known:
            self.sides["original"].add(self.features(images))
        self.sides["reconstruction"].add(self.features(output.reconstruction))

    def sums(self) -> dict[str, Tensor]:
        """Per side: images, the sum [D] and the sum of outer products [D, D] of the features."""
        return {f"{side}_{name}": value for side, moments in self.sides.items() for name, value in (
            ("images", moments.count), ("sum", moments.total), ("outer", moments.outer))}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        """Raises Incompatible below two images, which have no covariance."""
        sides = []
        for side in ("original", "reconstruction"):
            if (count := int(sums[f"{side}_images"])) < 2:
                raise Incompatible(f"a Fréchet distance needs at least 2 images, got {count}")
            sides.append((sums[f"{side}_sum"], sums[f"{side}_outer"], count))
        return frechet_distance(*sides)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean [D] and a factor A [D, rank] of the covariance A A^T, float64."""

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of_sums(cls, total: Tensor, outer: Tensor, count: int) -> Gaussian:
        """From sum [D], sum of outer products [D, D] and number of features; covariance divided by n - 1."""
        mean, covariance = covariance_of(total, outer, count)
        # what is left of zero after the subtraction of two large numbers is no variance
        noise = np.finfo(np.float64).eps * len(mean) * (covariance.diagonal() + np.square(mean)).max()
        return cls(mean, _root(covariance, noise))

    @classmethod
    def of_statistics(cls, mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
        """From mean [D] and covariance [D, D], as files of reference statistics hold them; any float type."""
        kind = covariance.dtype if covariance.dtype in (np.float16, np.float32) else np.dtype(np.float64)
        noise = float(np.finfo(kind).eps) * len(mean) * max(float(covariance.diagonal().max()), 0.0)
        return cls(mean.astype(np.float64), _root(covariance.astype(np.float64), noise))

    def distance(self, other: Gaussian) -> float:
        """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), never below 0.

        The last trace is the sum of the singular values of A1^T A2. With A of as many columns as C has rank, singular
        covariances (n <= D) are exact too, where square roots of the eigenvalues of C1 C2 turn each rounding error of
        1e-16 into 1e-8. On the CPU, 1 to 3 s for D = 2048 of full rank.
        """
        shared = self.root.T @ other.root
        gram = shared @ shared.T if len(shared) <= shared.shape[1] else shared.T @ shared
        overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum() if len(gram) else 0.0
        traces = np.square(self.root).sum() + np.square(other.root).sum()
        return max(0.0, float(np.square(self.mean - other.mean).sum() + traces - 2 * overlap))


def frechet_distance(one: tuple[Tensor, Tensor, int], other: tuple[Tensor, Tensor, int]) -> float:
    """Fréchet distance of two sets of features from (sum [D], sum of outer products [D, D], n) per side."""
    return Gaussian.of_sums(*one).distance(Gaussian.of_sums(*other))


def covariance_of(total: Tensor, outer: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], float64, divided by n - 1."""
    mean = (total / count).cpu().numpy()
    return mean, ((outer / count).cpu().numpy() - np.outer(mean, mean)) * (count / (count - 1))


def _root(covariance: np.ndarray, noise: float) -> np.ndarray:
    """A [D, rank] with covariance = A A^T, by a Cholesky decomposition with pivots that stops at `noise`."""
    factor, order, rank, _ = dpstrf(covariance, tol=noise, lower=1)
    root = np.zeros((len(covariance), rank))
    root[order - 1] = np.tril(factor)[:, :rank]
    return root
