"""FFHQ, 70,000 aligned faces (Karras et al., arXiv:1812.04948), from a folder or from zip files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from bench.errors import BadInput
from bench.image_dataset import Split
from bench.image_files import FileImages, Folder, Zips, missing, resized
from bench.registry import register

TRAIN = 60_000                                  # the authors' metadata: numbers below are training
WHOLE = 70_000


@register("dataset", "ffhq")
class FFHQ(FileImages):
    """FFHQ: pictures below ROOT/ffhq/, or ROOT/ffhq.zip, or ROOT/ffhq/*.zip; the first 60,000 train.

    The number is the file's name (00000.png), whatever the subfolders, so a partial copy keeps the split.
    70,000 files without numbers are split by sorted name. `source_size` declares the pictures' own height
    and width, since thumbnails and originals bear the same names; each picture is checked against it.
    Resized with antialiasing by the filter `resample`.
    """

    title = "FFHQ"
    official_size: ClassVar[Mapping[str, int]] = {"train": 60_000, "test": 10_000}

    def __init__(
        self, root: Path | None, split: Split, *, image_size: int = 256, source_size: int = 1024,
        resample: Literal["lanczos", "bicubic", "bilinear", "box"] = "lanczos",
    ) -> None:
        layout = "ffhq/ with the pictures, or ffhq.zip"
        if root is None:
            raise missing(self.title, None, layout)
        self.source_size, self.resample = source_size, resample
        folder = root / "ffhq"
        if zips := [*folder.glob("*.zip"), *root.glob("ffhq.zip")]:
            source: Folder | Zips = Zips(zips)
        elif folder.is_dir():
            # The authors' own subfolders, so that originals and thumbnails may lie side by side.
            own = [folder / f"{kind}{source_size}x{source_size}" for kind in ("images", "thumbnails")]
            source = Folder(next((f for f in own if f.is_dir()), folder))
        else:
            raise missing(self.title, folder, layout)
        super().__init__(source, split, image_size)

    def chosen(self, names: list[str]) -> Sequence[int]:
        """Positions by number. Raises BadInput for two pictures of one number, or some without one."""
        stems = [PurePosixPath(name).stem for name in names]
        train = self.split == "train"
        if not all(stem.isdecimal() for stem in stems):
            if len(names) == WHOLE:
                return range(TRAIN) if train else range(TRAIN, WHOLE)
            raise BadInput(f"ffhq: {self.source.path('')} holds {len(names)} pictures whose names are "
                           "not all numbers, so their split is unknown; restore them or use image_folder")
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) < len(numbers):
            raise BadInput(f"ffhq: {self.source.path('')} holds several pictures of one number (two sizes?); "
                           "keep one set")
        return sorted((i for i, n in enumerate(numbers) if (n < TRAIN) == train), key=numbers.__getitem__)

    def picture(self, image: Image.Image, path: str, generator: np.random.Generator | None) -> Image.Image:
        if image.size != (self.source_size, self.source_size):
            raise BadInput(f"{path}: {image.width}x{image.height} pixels, but dataset.source_size = "
                           f"{self.source_size}; set it to what the files are (it is in the identity)")
        return resized(image, self.image_size, self.resample)
