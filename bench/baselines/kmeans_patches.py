"""Vector quantization of pixel patches by k-means: the codebook without an encoder."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bench.baseline import Baseline
from bench.errors import BadInput, Incompatible
from bench.registry import register
from bench.types import TokenLayout

MOST_CODES = 16384      # of a table that takes minutes on a CPU
PER_CODE = 4            # patches that each code must be learned from, at least
MOST_IMAGES = 10_000    # that patches are taken of
BATCH = 4096            # patches of a step
GREEDY_START = 4096     # codes up to which centres start by k-means++, whose time grows with K^2


@register("baseline", "kmeans_patches")
class KMeansPatches(Baseline):
    """Each square patch of `patch` pixels becomes the nearest of K centres (mini-batch k-means, Sculley 2010, as in
    scikit-learn) of at most `samples` patches of the training images: as many tokens and bits as a tokenizer with
    that grid and codebook.

    Left null, `patch` and `codebook_size` are those of the tokenizer. Where its tokens are no square grid of one
    level, both follow from `bits`: of all patches that divide the image, the one with the largest codebook of at most
    4,096 that does not need more bits.
    """

    title = "k-means patches"
    revision = 1
    matched = ("patch", "codebook_size", "bits")
    learns = True

    def __init__(
        self, *, patch: int | None = None, codebook_size: int | None = None, bits: float | None = None,
        samples: int = 200_000, seed: int = 0,
    ) -> None:
        """Raises BadInput for a patch without a codebook size, or the reverse."""
        if (patch is None) != (codebook_size is None):
            raise BadInput("kmeans_patches takes patch and codebook_size together, or bits, or none of them")
        if patch is not None and (patch < 1 or codebook_size < 1):
            raise BadInput(f"kmeans_patches: patch = {patch}, codebook_size = {codebook_size}: at least 1 each")
        self.patch, self.codebook_size, self.bits = patch, codebook_size, bits
        self.samples, self.seed = samples, seed

    def fit(self, train: np.ndarray | None, test: np.ndarray) -> None:
        """Raises Incompatible where patches do not fill the image, or a codebook is too large for k-means here."""
        from sklearn.cluster import MiniBatchKMeans

        assert train is not None
        size = test.shape[-1]
        if self.patch is None:
            self.patch, self.codebook_size = self._settled(size)
        p, k = self.patch, self.codebook_size
        if size % p:
            raise Incompatible(f"patches of {p} pixels do not fill images of {size}")
        per_image = (size // p) ** 2
        if k > MOST_CODES:
            raise Incompatible(f"k-means with {k:,} centres takes too long (at most {MOST_CODES:,})")
        few = min(self.samples, len(train) * per_image)
        if few < k * PER_CODE:
            raise Incompatible(f"{k:,} centres cannot be learned from {few:,} patches of {len(train):,} training images")
        patches = self._sample(train, few, np.random.default_rng(self.seed))
        found = MiniBatchKMeans(
            k, init="k-means++" if k <= GREEDY_START else "random", n_init=1, batch_size=max(BATCH, k), max_iter=20,
            random_state=self.seed,
        ).fit(patches.numpy())
        self.centres = torch.from_numpy(found.cluster_centers_).round_().clamp_(0, 255)        # [K, 3 * p * p]
        grid = (size // p, size // p)
        self.layout = TokenLayout(per_image, (k,), (grid,))
        self.codebook = tuple(self.centres.shape)
        self.label = f"{self.title}, {p} x {p}, K = {k:,}"
        self.notes = (f"each patch of {p} x {p} pixels as the nearest of {k:,} k-means centres of {len(patches):,} training patches: "
                      f"{self.layout.bits_per_image:,.0f} bits per image",)

    def _settled(self, size: int) -> tuple[int, int]:
        """(patch, K) from bits alone."""
        if self.bits is None:
            raise Incompatible("there is no rate to match k-means of patches to; give it patch and codebook_size, or bits")
        options = [(int(2 ** min(bits + 1e-9, 60.0)), p) for p in range(1, size + 1)
                   if size % p == 0 and (bits := self.bits / (size // p) ** 2) >= 1]
        fitting = [(k, p) for k, p in options if k <= 4096]
        if not fitting:
            raise Incompatible(f"{self.bits:,.0f} bits are too many or too few for patches of images of {size} pixels")
        k, p = max(fitting)
        return p, k

    def _sample(self, train: np.ndarray, count: int, generator: np.random.Generator) -> Tensor:
        """About so many patches, float32 [n, 3 * p * p], equally many of each image; a memory map is read in order."""
        chosen = np.sort(generator.choice(len(train), min(len(train), MOST_IMAGES), replace=False))
        found = []
        for start in range(0, len(chosen), 64):
            images = torch.from_numpy(np.ascontiguousarray(train[chosen[start : start + 64]]))
            patches = self._patches(images)
            whole = len(chosen) * (len(patches) // len(images))
            kept = generator.permutation(len(patches))[: -(-count * len(patches) // whole)]
            found.append(patches[torch.from_numpy(kept)].float())
        return torch.cat(found)

    def _patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B * N, 3 * p * p], row by row."""
        p = self.patch
        grid = images.unfold(2, p, p).unfold(3, p, p)                                   # [B, 3, h, w, p, p]
        return grid.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * p * p)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> codes int64 [B, N, 1], the nearest centre as rounded to 8 bits."""
        from sklearn.metrics import pairwise_distances_argmin

        codes = pairwise_distances_argmin(self._patches(images).float().numpy(), self.centres.numpy())
        return torch.from_numpy(codes.astype(np.int64)).view(len(images), -1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 [B, N, 1] -> uint8 [B, 3, H, W]."""
        p, side = self.patch, math.isqrt(codes.shape[1])
        tiles = self.centres.to(torch.uint8)[codes[..., 0]].view(len(codes), side, side, 3, p, p)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(codes), 3, side * p, side * p)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.encode(images)
        return self.decode(codes), codes
