"""Random crops of real photographs that ship inside the scikit-image package: no download."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.errors import BadInput
from bench.image_dataset import ImageDataset, Split
from bench.image_files import check_image_size, decode, pixels, resized
from bench.registry import register

# The natural, colourful photographs of the wheel (no pooch needed), with the first digits of their sha256:
# another picture under the same name is refused. Left out: motorcycle_right (the same scene), retina and
# the deep field (nearly one colour), grey ones, drawings.
PICTURES = {
    "astronaut": ("astronaut.png", "88431cd9653c"),
    "chelsea": ("chelsea.png", "596aa1e7cb87"),
    "coffee": ("coffee.png", "cc02f8ca188b"),
    "ihc": ("ihc.png", "f8dd1aa387dd"),
    "motorcycle": ("motorcycle_left.png", "db18e9c41576"),
    "rocket": ("rocket.jpg", "c2dd0de7c538"),
}
NAMES = tuple(PICTURES)
TEST_SHARE = 3                                  # the right third of each picture is for testing
SMALLEST = 64                                   # pixels: smaller crops of these pictures hold no structure


@register("dataset", "photos")
class Photos(ImageDataset):
    """Random crops of six photographs. Training sees the left two thirds of each, testing the right third.

    Crop `i` of a split is a function of `i` alone, in integers, hence the same on every machine: picture i
    mod 6, a square with side between max(image_size, 64) and the largest that the right third holds (150 to
    247 pixels), resized bicubically with antialiasing. From image_size 150 on, some are enlarged.
    """

    title = "Photographs"

    def __init__(
        self, root: Path | None, split: Split, *, image_size: int = 64, train_images: int = 8192,
        test_images: int = 512,
    ) -> None:
        check_image_size(self.title, image_size)
        if min(train_images, test_images) < 1:
            raise BadInput(f"photos: {train_images} train_images, {test_images} test_images: at least 1 each")
        package = importlib.util.find_spec("skimage")       # found, not imported: planning stays quick
        if package is None or not package.submodule_search_locations:
            raise FileNotFoundError("photos: scikit-image is not installed; pip install scikit-image")
        self.folder = Path(package.submodule_search_locations[0]) / "data"
        if absent := [file for file, _ in PICTURES.values() if not (self.folder / file).is_file()]:
            raise FileNotFoundError(f"photos: {self.folder} has no {', '.join(absent)}; install "
                                    "scikit-image 0.26 from its wheel")
        self.split, self.image_size = split, image_size
        self._kept: Sequence[int] = range(train_images if split == "train" else test_images)
        self._all = len(self._kept)
        self._pictures: dict[str, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def listing(self) -> Sequence[tuple[str, int]]:
        return [(self._name(i), 3 * self.image_size**2) for i in self._kept]

    def is_official(self) -> bool:
        """Every crop there is: how many that is, is a keyword and thereby in the identity."""
        return len(self._kept) == self._all

    def without(self, names: frozenset[str]) -> Photos:
        rest = copy.copy(self)
        rest._kept = [i for i in self._kept if self._name(i) not in names]
        return rest

    def region(self, index: int) -> tuple[str, tuple[int, int, int, int]]:
        """Picture and box (left, top, right, bottom) in its pixels, of one crop."""
        number = self._kept[index]
        name = NAMES[number % len(NAMES)]
        width, height = self._picture(name).size
        cut = width - width // TEST_SHARE
        left, right = (0, cut) if self.split == "train" else (cut, width)
        largest = min(width - cut, height)
        smallest = min(max(self.image_size, SMALLEST), largest)
        digest = hashlib.blake2b(f"photos/{self.split}/{number}".encode(), digest_size=24).digest()
        a, b, c = (int.from_bytes(digest[k : k + 8], "little") for k in (0, 8, 16))
        side = smallest + a % (largest - smallest + 1)
        x, y = left + b % (right - left - side + 1), c % (height - side + 1)
        return name, (x, y, x + side, y + side)

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        name, box = self.region(index)
        # Cropped first: a resize with a box would let the filter reach over the cut between train and test.
        return pixels(resized(self._picture(name).crop(box), self.image_size, "bicubic"))

    def _name(self, number: int) -> str:
        return f"{NAMES[number % len(NAMES)]}/{number:06d}"

    def _picture(self, name: str) -> Image.Image:
        if name not in self._pictures:
            file, digest = PICTURES[name]
            data = (self.folder / file).read_bytes()
            if not hashlib.sha256(data).hexdigest().startswith(digest):
                raise BadInput(f"{self.folder / file}: not the picture that `photos` is defined by; "
                               "reinstall scikit-image")
            self._pictures[name] = decode(data, str(self.folder / file), name)
        return self._pictures[name]
