"""ImageNet-1k (Russakovsky et al., arXiv:1409.0575) in class folders, cropped as the published tokenizers do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from bench.crops import distorted, random_box, random_square, stretched, to_short_side
from bench.errors import BadInput
from bench.image_dataset import Split
from bench.image_files import FileImages, Folder, adm_centre_crop, adm_random_crop, missing
from bench.registry import register

SUBFOLDER = {"train": "train", "test": "val"}
RATIO = 3 / 4, 4 / 3                            # width over height of a `part`


@register("dataset", "imagenet")
class ImageNet(FileImages):
    """ImageNet: ROOT/imagenet/train/<wnid>/* and ROOT/imagenet/val/<wnid>/*; testing uses val.

    The test images are always ADM's centre crop, so that every tokenizer is measured on the same pixels; these keywords
    are for the training images. Whatever is random draws anew at each look at an image, so nothing is then cached.
    crop: `centre`, ADM's centre crop. `random`, ADM's random crop (LlamaGen, FQGAN): the short side is resized to
        between 1 and 1.25 times the image size. `square`: the short side is resized to `short_side`, and a square of
        the image size cut at a random place (taming, RQ-VAE, ViT-VQGAN, TiTok, SEED-Voken, SimVQ). `part`: a random
        part of the picture, of `area` times its pixels and a width of 3/4 to 4/3 of its height, is resized to the
        square, which stretches shapes (MaskBit, OptVQ).
    short_side: with `square`, `image_size` where not given; with `part` the picture is first resized to it, where given.
    filter: of `square` and `part`; bilinear and bicubic are Pillow's, with antialiasing, `interpolated` is OpenCV's
        bilinear without.
    distort: colours changed in 80 % of the pictures and Gaussian blur in 50 %, as OptVQ; the result is also the target.
    Labels number the sorted class folders of both splits together (of the complete set: the usual 0..999).
    Raises BadInput for a short side below the image size, and for shares out of order.
    """

    title = "ImageNet"
    neutral = {"short_side": None, "filter": "bilinear", "area": (0.8, 1.0), "distort": False}
    official_size: ClassVar[Mapping[str, int]] = {"train": 1_281_167, "test": 50_000}

    def __init__(
        self, root: Path | None, split: Split, *, image_size: int = 64,
        crop: Literal["centre", "random", "square", "part"] = "centre", short_side: int | None = None,
        filter: Literal["bilinear", "bicubic", "interpolated"] = "bilinear",
        area: tuple[float, float] = (0.8, 1.0), distort: bool = False,
    ) -> None:
        if crop == "square" and short_side is not None and short_side < image_size:
            raise BadInput(f"imagenet: short_side = {short_side} holds no square of image_size = {image_size}")
        if not 0 < area[0] <= area[1] <= 1:
            raise BadInput(f"imagenet: area {tuple(area)} must be two shares above 0, the smaller first")
        layout = "imagenet/train/<wnid>/ and imagenet/val/<wnid>/"
        if root is None:
            raise missing(self.title, None, layout)
        self.folder = root / "imagenet"
        folder = self.folder / SUBFOLDER[split]
        if not folder.is_dir():
            raise missing(self.title, folder, layout)
        self.crop = crop if split == "train" else "centre"
        self.distort = distort and split == "train"
        self.random = self.crop != "centre" or self.distort
        self.short_side, self.filter, self.area = short_side, filter, area
        super().__init__(Folder(folder), split, image_size)

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        """int64 [len]; None where pictures lie outside class folders."""
        classes = [name.partition("/")[0] for name in self.rows()[0] if "/" in name]
        if len(classes) < len(self):
            return None
        known: set[str] = set(classes)
        for name in SUBFOLDER.values():
            if (folder := self.folder / name).is_dir():
                with os.scandir(folder) as entries:
                    known.update(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        number = {name: i for i, name in enumerate(sorted(known))}
        return np.array([number[c] for c in classes], np.int64)

    def picture(self, image: Image.Image, path: str, generator: np.random.Generator | None) -> Image.Image:
        if not self.random:
            return adm_centre_crop(image, self.image_size)
        if generator is None:
            raise ValueError("a random crop needs a generator")
        image = self._cropped(image, generator)
        return distorted(image, generator) if self.distort else image

    def _cropped(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        match self.crop:
            case "centre":
                return adm_centre_crop(image, self.image_size)
            case "random":
                return adm_random_crop(image, self.image_size, generator)
            case "square":
                image = to_short_side(image, self.short_side or self.image_size, self.filter)
                return random_square(image, self.image_size, generator)
        if self.short_side is not None:
            image = to_short_side(image, self.short_side, self.filter)
        box = random_box(image, self.area, RATIO, generator)
        return stretched(image.crop(box), (self.image_size,) * 2, self.filter)
