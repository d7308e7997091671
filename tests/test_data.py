"""Batches are a function of (step, part), however the images are held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data import CachedBatches, Order, StreamedBatches, to_model_range
from bench.datasets.photos import Photos
from bench.image_dataset import ImageDataset
from bench.suite import Suite

CPU = torch.device("cpu")


class Noisy(ImageDataset):
    """Decoding draws from the generator, as a random crop does."""

    image_size, random = 4, True

    def listing(self) -> list[tuple[str, int]]:
        return [(f"{i}", 1) for i in range(10)]

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        return generator.integers(0, 256, (3, 4, 4), dtype=np.uint8)

    def without(self, names: frozenset[str]) -> ImageDataset:
        return self


def order(images: int, **change: object) -> Order:
    return Order(images, **{"seed": 3, "batch_size": 6, "accumulation": 2, "flip": True, **change})


def streamed(dataset: ImageDataset, workers: int = 0) -> StreamedBatches:
    return StreamedBatches(dataset, order(len(dataset)), CPU, steps=8, accumulation=2, workers=workers,
                           channels_last=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_the_cached_ones(workers: int) -> None:
    photos = Photos(None, "train", image_size=16, train_images=20)
    pixels = np.stack([photos.load(i) for i in range(len(photos))])
    cached = CachedBatches(pixels, None, order(20), CPU, channels_last=False, on_device=False)
    stream = streamed(photos, workers)
    for step in range(8):                                       # 48 images of 20: over the ends of two epochs
        for part in range(2):
            torch.testing.assert_close(stream(step, part).images, cached(step, part).images, rtol=0, atol=0)


def test_a_stream_that_starts_in_the_middle_gives_what_an_uninterrupted_one_gives() -> None:
    whole = [streamed(Noisy()) for _ in range(2)]
    images = {(s, p): whole[0](s, p).images for s in range(4) for p in range(2)}
    for s, p in [(2, 0), (2, 1), (3, 0), (1, 1)]:
        torch.testing.assert_close(whole[1](s, p).images, images[s, p], rtol=0, atol=0)


def test_the_same_image_is_cropped_differently_in_every_epoch() -> None:
    stream = streamed(Noisy())
    images = torch.cat([stream(s, p).images for s in range(4) for p in range(2)])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


def test_model_range_is_minus_one_to_one_and_round_trips() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = to_model_range(pixels, torch.tensor([False]), channels_last=False)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(((images + 1) * 127.5).round().to(torch.uint8), pixels)
    torch.testing.assert_close(to_model_range(pixels, torch.tensor([True]), channels_last=True), images.flip(3))


def test_a_training_set_above_the_cache_limit_is_streamed_and_random_crops_always(tmp_path: Path) -> None:
    from bench.places import Places
    from bench.run import open_images, streams

    root = Path(__file__).resolve().parent.parent
    places = Places(*(tmp_path / n for n in ("results", "reports", "runs", "cache")))
    for limit, expected in (("1.0", False), ("0.001", True)):
        run = Suite.load(root / "suites/quickstart.yaml", [f"train.cache_gib={limit}"]).expand(places)[0]
        assert streams(run, open_images(run, "train", places)) is expected
