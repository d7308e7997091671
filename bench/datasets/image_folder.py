"""Any folder of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from bench.errors import BadInput
from bench.image_dataset import Split
from bench.image_files import FileImages, Folder, centre_square, missing, resized
from bench.registry import register

SUBFOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


@register("dataset", "image_folder")
class ImageFolder(FileImages):
    """Pictures below ROOT/<folder>/train and ROOT/<folder>/test (or val), at any depth.

    Without such subfolders, the share `test_share` of all pictures below ROOT/<folder> is for testing,
    chosen by a hash of each name: adding pictures moves none from one split to the other. Cropped to the
    centred square of `crop_size` source pixels (the largest square where that is null or does not fit),
    then resized with antialiasing. `folder` may be absolute, but then the path is part of the identity.
    native: pictures as they are, neither cropped nor resized, for checkpoints of tokenizers that take any size.
    """

    title = "Image folder"
    neutral = {"native": False}

    def __init__(
        self, root: Path | None, split: Split, *, folder: str, image_size: int = 64,
        crop_size: int | None = None, native: bool = False,
        resample: Literal["lanczos", "bicubic", "bilinear", "box"] = "bicubic", test_share: float = 0.1,
    ) -> None:
        if not 0 <= test_share <= 1:
            raise BadInput(f"image_folder: test_share = {test_share}: expected a share between 0 and 1")
        if crop_size is not None and crop_size < 1:
            raise BadInput(f"image_folder: crop_size = {crop_size}: expected a positive number, or null")
        title = f"Image folder {folder!r}"
        if root is None and not Path(folder).is_absolute():
            raise missing(title, None, f"{folder}/")
        base = Path(folder) if root is None else root / folder
        if not base.is_dir():
            raise missing(title, base, f"{folder}/")
        found = {of: next((base / n for n in names if (base / n).is_dir()), None)
                 for of, names in SUBFOLDERS.items()}
        if found[split] is None and any(found.values()):
            raise missing(title, base / split, f"{folder}/{split}/")
        self.crop_size, self.resample, self.native = crop_size, resample, native
        self.test_share = None if found[split] else test_share
        super().__init__(Folder(found[split] or base), split, image_size)

    def chosen(self, names: list[str]) -> Sequence[int]:
        """All of them, or those whose name's hash falls to this split."""
        if self.test_share is None:
            return range(len(names))
        test = self.split == "test"
        return [i for i, name in enumerate(names) if (_place(name) < self.test_share) == test]

    def picture(self, image: Image.Image, path: str, generator: np.random.Generator | None) -> Image.Image:
        if self.native:
            return image
        return resized(centre_square(image, self.crop_size), self.image_size, self.resample)


def _place(name: str) -> float:
    """A number in [0, 1) that is a function of the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
