"""ImageNet-1k (Russakovsky et al., arXiv:1409.0575) in class folders, cropped as ADM does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from bench.image_dataset import Split
from bench.image_files import FileImages, Folder, adm_centre_crop, adm_random_crop, missing
from bench.registry import register

SUBFOLDER = {"train": "train", "test": "val"}


@register("dataset", "imagenet")
class ImageNet(FileImages):
    """ImageNet: ROOT/imagenet/train/<wnid>/* and ROOT/imagenet/val/<wnid>/*; testing uses val.

    `crop: centre` is ADM's centre crop, of both splits. `crop: random` is ADM's random crop, of the
    training split only; each look at an image then draws anew, so nothing is cached. Labels number the
    sorted class folders of both splits together (of the complete set: the usual 0..999).
    """

    title = "ImageNet"
    official_size: ClassVar[Mapping[str, int]] = {"train": 1_281_167, "test": 50_000}

    def __init__(
        self, root: Path | None, split: Split, *, image_size: int = 64,
        crop: Literal["centre", "random"] = "centre",
    ) -> None:
        layout = "imagenet/train/<wnid>/ and imagenet/val/<wnid>/"
        if root is None:
            raise missing(self.title, None, layout)
        self.folder = root / "imagenet"
        folder = self.folder / SUBFOLDER[split]
        if not folder.is_dir():
            raise missing(self.title, folder, layout)
        self.random = crop == "random" and split == "train"
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
        return adm_random_crop(image, self.image_size, generator)
