"""Numbers from two tables of features: kernel distance, precision and recall; and the Inception score. In blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.features import InceptionFeatures
from bench.interfaces import Metric
from bench.types import TokenizerOutput, TokenLayout

POOLED, CLASSES = 2048, 1008
TILE = 2048             # rows and columns of distances at once: 16 MB


class FeatureTable(Metric):
    """Keeps the pooled Inception features of every image; a subclass computes from the two tables.

    Each process fills the rows of its own images and leaves zeros elsewhere, so tables add. Memory: 16 kB an image
    for both sides, 0.8 GB at 50,000 images; and as much again for a moment where several processes add theirs.
    """

    needs = ("inception",)
    originals = ("original_features",)

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises BadInput where Inception's weights are not on this machine."""
        self.network = InceptionFeatures(device=device)
        self.tables = {side: torch.zeros(images, POOLED, device=device) for side in ("original", "reconstruction")}
        self.known = False

    def reference(self) -> str:
        return f"table of pooled features, {self.network.identity}"

    def take_originals(self, sums: Mapping[str, Tensor] | None) -> None:
        self.known = True
        if sums is not None:
            self.tables["original"].copy_(sums["original_features"])

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        if not self.known:
            self.tables["original"][indices] = self.network(images).pooled
        self.tables["reconstruction"][indices] = self.network(output.reconstruction).pooled

    def sums(self) -> dict[str, Tensor]:
        """Per side the features, float32 [images, 2048]: each row is zero on all processes but one."""
        return {f"{side}_features": table for side, table in self.tables.items()}


# -- kernel distance -------------------------------------------------------------------------------------------------


def kernel_distance(reconstructions: Tensor, originals: Tensor, *, subsets: int, subset_size: int,
                    seed: int) -> tuple[float, float]:
    """KID (arXiv:1801.01401): unbiased MMD^2 of the kernel (x.y / D + 1)^3, mean and deviation over random subsets.

    float [n, D] and [m, D]. Subsets are drawn as torch-fidelity does, from numpy's RandomState(seed), the
    reconstructions' first. In float64: the value is a small difference of large sums. Raises Incompatible where a
    side has fewer than `subset_size` images, or that is below 2.
    """
    smallest = min(len(reconstructions), len(originals))
    if not 2 <= subset_size <= smallest:
        raise Incompatible(f"KID on subsets of {subset_size} images needs {max(2, subset_size)}, got {smallest}")
    random = np.random.RandomState(seed)
    found = np.empty(subsets)
    for i in range(subsets):
        x, y = (side[torch.from_numpy(random.choice(len(side), subset_size, replace=False)).to(side.device)].double()
                for side in (reconstructions, originals))
        within = sum(float((gram := _kernel(z, z)).sum() - gram.trace()) for z in (x, y))
        found[i] = within / (subset_size * (subset_size - 1)) - 2 * float(_kernel(x, y).mean())
    return float(found.mean()), float(found.std())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ y.T).div_(x.shape[1])).add_(1).pow_(3)


# -- precision and recall --------------------------------------------------------------------------------------------


def coverage(points: Tensor, centres: Tensor, neighbours: int) -> float:
    """Share of the points [n, D] inside the manifold of the centres [m, D]: arXiv:1904.06991, eq. 2.

    With originals as centres it is the precision of points, with originals as points the recall of centres. A ball
    reaches, by Euclidean distance, to its centre's `neighbours`-th nearest other centre. Raises Incompatible where
    there are no more centres than `neighbours`.
    """
    shift = centres.mean(0)                     # distances do not change, and smaller numbers lose fewer digits
    points, centres = points - shift, centres - shift
    reach = radii(centres, neighbours)
    inside = 0
    for rows in points.split(TILE):
        hit = torch.zeros(len(rows), dtype=torch.bool, device=points.device)
        for columns, limits in zip(centres.split(TILE), reach.split(TILE), strict=True):
            hit |= (_squared_distances(rows, columns) <= limits).any(1)
        inside += int(hit.sum())
    return inside / len(points)


def radii(features: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each row [n, D] to its `neighbours`-th nearest other row, [n]. Blockwise."""
    if len(features) <= neighbours:
        raise Incompatible(f"precision and recall with {neighbours} neighbours need more than {neighbours} images, "
                           f"got {len(features)}")
    found = []
    for rows in features.split(TILE):
        nearest = features.new_empty(len(rows), 0)
        for columns in features.split(TILE):
            candidates = torch.cat([nearest, _squared_distances(rows, columns)], 1)
            nearest = candidates.topk(min(neighbours + 1, candidates.shape[1]), largest=False).values
        found.append(nearest[:, -1])            # of neighbours + 1, the row itself among them
    return torch.cat(found)


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """float32 [n, D], [m, D] -> [n, m]; what is below the rounding of the sum is 0, so that equal rows have none."""
    squares = rows.square().sum(1)[:, None] + columns.square().sum(1)
    distances = torch.addmm(squares, rows, columns.T, alpha=-2)
    return distances.masked_fill_(distances < squares * (32 * torch.finfo(rows.dtype).eps), 0)


# -- Inception score -------------------------------------------------------------------------------------------------


class ScoreSums:
    """Sums for the Inception score of n images in consecutive splits; constant memory, 8 kB a split."""

    def __init__(self, images: int, split_size: int, device: torch.device) -> None:
        count = max(1, math.ceil(images / split_size))
        self.split_size = split_size
        self.images = torch.zeros(count, dtype=torch.int64, device=device)
        self.negentropy = torch.zeros(count, dtype=torch.float64, device=device)        # sum of sum_c p log p
        self.classes = torch.zeros(count, CLASSES, dtype=torch.float64, device=device)  # sum of p

    def add(self, logits: Tensor, indices: Tensor) -> None:
        """logits float [B, 1008] of the images at these positions, int64 [B]."""
        split = indices.to(self.images.device) // self.split_size
        logs = logits.double().log_softmax(1)
        share = logs.exp()
        self.images.index_add_(0, split, torch.ones_like(split))
        self.negentropy.index_add_(0, split, (share * logs).sum(1))
        self.classes.index_add_(0, split, share)

    def sums(self) -> dict[str, Tensor]:
        return {"images": self.images, "negentropy": self.negentropy, "classes": self.classes}


def inception_score(sums: Mapping[str, Tensor]) -> list[float]:
    """exp(mean over images of KL(p(c|x) || p(c))) of each split (arXiv:1606.03498, eq. in section 4)."""
    count = sums["images"].double()
    marginal = sums["classes"] / count[:, None]
    divergence = sums["negentropy"] / count - torch.special.xlogy(marginal, marginal).sum(1)
    return divergence.exp().tolist()
