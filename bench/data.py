"""(step, part) -> Batch: a pure function of the seed, so that a resumed run sees what an uninterrupted one sees.

Decoded images come from a memory-mapped uint8 cache, on the device where they fit; sets too large for the cache
are decoded by worker processes that run ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.distributed import derived_seed, rank, world_size
from bench.image_dataset import ImageDataset
from bench.types import Batch


@dataclass(frozen=True, slots=True)
class Slice:
    """What one micro-batch of one process is made of."""

    indices: Tensor                             # int64 [B] into the data set
    flips: Tensor                               # bool [B]
    first: int                                  # position of the first image in the stream


class Order:
    """The stream of images: one permutation after the other; batches are consecutive pieces of it.

    The stream has no gaps at the end of an epoch, so every image is seen equally often whatever the batch size.
    """

    def __init__(self, images: int, *, seed: int, batch_size: int, accumulation: int, flip: bool) -> None:
        if images < 1:
            raise ValueError("the training set holds no image")
        share = batch_size // accumulation
        if share % world_size():
            raise ValueError(f"a micro-batch of {share} images cannot be shared by {world_size()} processes")
        self.images, self.seed, self.flip = images, seed, flip
        self.batch_size, self.part_size = batch_size, share
        self.share = share // world_size()
        self.rank = rank()                      # here, not in a decoding worker, which may be no member of the group
        self._epochs: dict[int, Tensor] = {}

    def slice(self, step: int, part: int) -> Slice:
        first = step * self.batch_size + part * self.part_size + self.rank * self.share
        positions = range(first, first + self.share)
        indices = torch.cat([
            self._epoch(epoch)[max(first - epoch * self.images, 0) : positions[-1] + 1 - epoch * self.images]
            for epoch in range(first // self.images, positions[-1] // self.images + 1)
        ])
        if not self.flip:
            return Slice(indices, torch.zeros(self.share, dtype=torch.bool), first)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "flip", step))
        flips = torch.rand(self.batch_size, generator=generator) < 0.5
        start = first - step * self.batch_size
        return Slice(indices, flips[start : start + self.share], first)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "epoch", epoch))
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = torch.randperm(self.images, generator=generator)
        return self._epochs[epoch]


def to_model_range(pixels: Tensor, flips: Tensor, *, channels_last: bool) -> Tensor:
    """uint8 [B, 3, H, W] -> float [-1, 1], some flipped left to right."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = pixels.contiguous(memory_format=layout).float().div_(127.5).sub_(1.0)
    if flips.any():                             # flips are on the CPU: no synchronisation
        where = flips.to(pixels.device, non_blocking=True)[:, None, None, None]
        images = torch.where(where, images.flip(3), images)
    return images


class CachedBatches:
    """Batches from decoded images [n, 3, H, W]: gathered on the device, or from a memory map without workers."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None, order: Order, device: torch.device, *,
        channels_last: bool, on_device: bool,
    ) -> None:
        self.order, self.device, self.channels_last = order, device, channels_last
        self.images = torch.from_numpy(images)
        self.labels = None if labels is None else torch.from_numpy(np.asarray(labels))
        if on_device:
            self.images = self.images.to(device)
            self.labels = None if self.labels is None else self.labels.to(device)

    def __call__(self, step: int, part: int) -> Batch:
        piece = self.order.slice(step, part)
        indices = piece.indices.to(self.images.device, non_blocking=True)
        pixels = self.images.index_select(0, indices)
        if pixels.device != self.device:
            if self.device.type == "cuda":
                pixels = pixels.pin_memory()
            pixels = pixels.to(self.device, non_blocking=True)
        images = to_model_range(pixels, piece.flips, channels_last=self.channels_last)
        labels = None if self.labels is None else self.labels.index_select(0, indices).to(self.device)
        return Batch(images, labels)


class _Decoding(torch.utils.data.Dataset):
    """Item (step, part) is a decoded micro-batch; random crops draw from (seed, position in the stream)."""

    def __init__(self, dataset: ImageDataset, order: Order) -> None:
        self.dataset, self.order = dataset, order

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        piece = self.order.slice(*key)
        pixels = [
            self.dataset.load(int(i), np.random.default_rng(derived_seed(self.order.seed, "crop", piece.first + k)))
            for k, i in enumerate(piece.indices)
        ]
        return torch.from_numpy(np.stack(pixels)), piece.flips, piece.indices


class StreamedBatches:
    """Batches decoded by worker processes that run ahead; asked for out of order, they start anew there."""

    def __init__(
        self, dataset: ImageDataset, order: Order, device: torch.device, *, steps: int, accumulation: int,
        workers: int, channels_last: bool,
    ) -> None:
        self.dataset, self.order, self.device = dataset, order, device
        self.steps, self.accumulation, self.workers = steps, accumulation, workers
        self.channels_last = channels_last
        self.labels = None if dataset.labels is None else torch.from_numpy(np.asarray(dataset.labels))
        self.next: tuple[int, int] | None = None
        self.stream: Iterator | None = None

    def __call__(self, step: int, part: int) -> Batch:
        if self.stream is None or self.next != (step, part):
            keys = [(s, p) for s in range(step, self.steps) for p in range(self.accumulation)]
            keys = keys[part:]
            self.stream = iter(torch.utils.data.DataLoader(
                _Decoding(self.dataset, self.order), batch_size=None, sampler=keys, num_workers=self.workers,
                prefetch_factor=2 if self.workers else None, pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),    # its own: the loader draws a seed when it starts, also on resuming
            ))
        pixels, flips, indices = next(self.stream)
        self.next = (step, part + 1) if part + 1 < self.accumulation else (step + 1, 0)
        images = to_model_range(pixels.to(self.device, non_blocking=True), flips, channels_last=self.channels_last)
        return Batch(images, None if self.labels is None else self.labels[indices].to(self.device))


def fits_on_device(images: np.ndarray, device: torch.device) -> bool:
    """Whether decoded images take at most a quarter of the device's memory."""
    if device.type != "cuda":
        return False
    return images.nbytes <= torch.cuda.get_device_properties(device).total_memory / 4
