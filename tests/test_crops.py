"""Training crops against torchvision's transforms, and against the distributions they are drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from bench.crops import blurred, distorted, hue_turned, random_box, stretched, to_short_side
from bench.data import Order, StreamedBatches
from bench.datasets.imagenet import ImageNet
from bench.errors import BadInput

FILTERS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    return noise(6, 5, seed).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, wnid in (("train", "n01"), ("val", "n02")):
        folder = tmp_path / "imagenet" / split / wnid
        folder.mkdir(parents=True)
        noise(96, 75).save(folder / "a.png")
    return tmp_path


@pytest.mark.parametrize("filter", FILTERS)
def test_a_square_is_cut_from_the_picture_as_torchvision_resizes_it(root: Path, filter: str) -> None:
    images = ImageNet(root, "train", image_size=32, crop="square", filter=filter)
    whole = np.asarray(TF.resize(noise(96, 75), 32, FILTERS[filter])).transpose(2, 0, 1)
    assert whole.shape == (3, 32, 40)
    places = set()
    for seed in range(60):
        square = images.load(0, np.random.default_rng(seed))
        (place,) = [x for x in range(9) if np.array_equal(square, whole[:, :, x : x + 32])]
        places.add(place)
    assert places == set(range(9))                                  # each, the last among them


def test_a_square_may_be_smaller_than_the_short_side(root: Path) -> None:
    images = ImageNet(root, "train", image_size=32, crop="square", short_side=48)
    whole = np.asarray(TF.resize(noise(96, 75), 48)).transpose(2, 0, 1)
    tops = set()
    for seed in range(30):
        square = images.load(0, np.random.default_rng(seed))
        (place,) = [(y, x) for y in range(17) for x in range(30) if np.array_equal(square, whole[:, y : y + 32, x : x + 32])]
        tops.add(place[0])
    assert len(tops) > 5
    with pytest.raises(BadInput, match="holds no square"):
        ImageNet(root, "train", image_size=32, crop="square", short_side=31)


@pytest.mark.parametrize("area, ratio", [((0.8, 1.0), (3 / 4, 4 / 3)), ((0.2, 1.0), (3 / 4, 4 / 3)), ((0.5, 0.6), (1.0, 1.0))])
def test_parts_are_distributed_as_torchvisions(area: tuple[float, float], ratio: tuple[float, float]) -> None:
    picture, random, n = Image.new("RGB", (500, 375)), np.random.default_rng(0), 3000
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(picture, list(area), list(ratio)) for _ in range(n)], float)
    boxes = np.array([random_box(picture, area, ratio, random) for _ in range(n)], float)
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], 1)
    for i in range(4):                                              # top, left, height, width
        error = np.hypot(theirs[:, i].std(), ours[:, i].std()) / n**0.5
        assert abs(theirs[:, i].mean() - ours[:, i].mean()) < 4 * error + 1e-9
        assert ours[:, i].std() == pytest.approx(theirs[:, i].std(), rel=0.1)
    assert boxes.min() >= 0 and (boxes[:, 2] <= 500).all() and (boxes[:, 3] <= 375).all()


@pytest.mark.parametrize("size", [(400, 20), (20, 400)])
def test_where_no_part_fits_the_centre_is_taken_as_in_torchvision(size: tuple[int, int]) -> None:
    picture, area, ratio = Image.new("RGB", size), (0.8, 1.0), (3 / 4, 4 / 3)
    top, left, height, width = RandomResizedCrop.get_params(picture, list(area), list(ratio))
    assert random_box(picture, area, ratio, np.random.default_rng(0)) == (left, top, left + width, top + height)


@pytest.mark.parametrize("filter", FILTERS)
def test_a_part_is_resized_as_torchvision_does(root: Path, filter: str) -> None:
    images = ImageNet(root, "train", image_size=32, crop="part", filter=filter, area=(0.2, 1.0))
    for seed in range(5):
        left, top, right, bottom = random_box(noise(96, 75), (0.2, 1.0), (3 / 4, 4 / 3), np.random.default_rng(seed))
        wanted = TF.resized_crop(noise(96, 75), top, left, bottom - top, right - left, [32, 32], FILTERS[filter])
        assert np.array_equal(images.load(0, np.random.default_rng(seed)), np.asarray(wanted).transpose(2, 0, 1))
    with pytest.raises(BadInput, match="two shares above 0"):
        ImageNet(root, "train", crop="part", area=(1.0, 0.8))


@pytest.mark.parametrize("size", [(32, 25), (64, 50), (200, 150)])
def test_interpolated_is_bilinear_without_antialiasing(size: tuple[int, int]) -> None:
    picture = noise(96, 75)
    ours = np.asarray(stretched(picture, size, "interpolated"), float)
    wanted = F.interpolate(torch.tensor(np.asarray(picture, float)).permute(2, 0, 1)[None], size[::-1], mode="bilinear")
    assert np.abs(ours - wanted[0].permute(1, 2, 0).numpy()).max() <= 1.01
    if size[0] < 96:                                                # and not what averages over all pixels
        assert np.abs(ours - np.asarray(stretched(picture, size, "bilinear"), float)).max() > 30


def test_the_longer_side_is_rounded_down() -> None:
    for size in ((96, 75), (75, 96), (500, 333), (50, 50)):
        assert to_short_side(noise(*size), 32, "bilinear").size == TF.resize(noise(*size), 32).size


@pytest.mark.parametrize("turn", [-0.1, -0.05, 0.0, 0.033, 0.1])
def test_hue_is_turned_as_torchvision_does(turn: float) -> None:
    assert np.array_equal(np.asarray(hue_turned(noise(20, 20), turn)), np.asarray(TF.adjust_hue(noise(20, 20), turn)))


@pytest.mark.parametrize("size, deviation", [(3, 0.8), (5, 1.1), (7, 1.4)])
def test_blur_equals_torchvisions(size: int, deviation: float) -> None:
    wanted = TF.gaussian_blur(torch.tensor(np.asarray(noise(30, 20))).permute(2, 0, 1), [size, size], [deviation] * 2)
    assert np.abs(np.asarray(blurred(noise(30, 20), size), int) - wanted.permute(1, 2, 0).numpy()).max() <= 1


def test_distortions_come_as_often_and_as_strong_as_published() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))                # blur and hue leave it; contrast leaves its mean
    shades = np.array([np.asarray(distorted(grey, np.random.default_rng(i))).mean() for i in range(600)])
    assert (shades != 100).mean() == pytest.approx(0.8, abs=0.06)   # one level of the jitter's range is 100 itself
    assert 59 <= shades.min() < 64 and 136 < shades.max() <= 141
    edge = Image.fromarray(np.repeat(np.uint8([0, 0, 0, 255, 255, 255])[None, :, None], 6, 0).repeat(3, 2))
    levels = [len(np.unique(np.asarray(distorted(edge, np.random.default_rng(i))))) for i in range(600)]
    assert (np.array(levels) > 2).mean() == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("crop", ["random", "square", "part"])
def test_training_crops_are_functions_of_the_generator_and_leave_test_images_alone(root: Path, crop: str) -> None:
    keywords = {"image_size": 32, "crop": crop, "distort": True}
    images, test = ImageNet(root, "train", **keywords), ImageNet(root, "test", **keywords)
    one, other, again = (images.load(0, np.random.default_rng(seed)) for seed in (1, 2, 1))
    assert one.shape == (3, 32, 32) and np.array_equal(one, again) and not np.array_equal(one, other)
    assert images.random and not test.random
    assert np.array_equal(test.load(0), ImageNet(root, "test", image_size=32).load(0))


@pytest.mark.parametrize("crop", ["square", "part"])
def test_a_resumed_stream_goes_on_with_the_same_pixels(root: Path, crop: str) -> None:
    images = ImageNet(root, "train", image_size=32, crop=crop, distort=True)

    def stream() -> StreamedBatches:
        order = Order(len(images), seed=3, batch_size=2, accumulation=1, flip=True)
        return StreamedBatches(images, order, torch.device("cpu"), steps=4, accumulation=1, workers=0, channels_last=False)

    whole, rest = stream(), stream()
    seen = [whole(step, 0).images for step in range(4)]
    assert all(torch.equal(rest(step, 0).images, seen[step]) for step in (2, 3))
    assert not torch.equal(seen[0], seen[1])                        # one image, looked at anew
