"""CelebA, aligned and cropped faces (Liu et al., arXiv:1411.7766), with the reference crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from bench.errors import BadInput
from bench.image_dataset import Split
from bench.image_files import FileImages, Folder, missing, resized, through_torchvision
from bench.registry import register

PARTITION = {"train": "0", "test": "2"}         # 1 is the validation part, used by nothing here
FIRST = {"train": 1, "test": 182_638}           # numbers in file names are consecutive within a part
SIZE = (178, 218)                               # width, height of every aligned picture
BOX = (25, 57, 25 + 128, 57 + 128)              # 128 x 128 around (89, 121), as StyleGAN's dataset_tool


@register("dataset", "celeba")
class CelebA(FileImages):
    """CelebA: ROOT/celeba/img_align_celeba/*.jpg and ROOT/celeba/list_eval_partition.txt, parts 0 and 2.

    The 128 x 128 box at top 57, left 25 of the 178 x 218 picture, resized bilinearly with antialiasing:
    equal to the reference's torchvision transforms. Files named by the partition that are not on disk do
    not count.
    """

    title = "CelebA"
    official_size: ClassVar[Mapping[str, int]] = {"train": 162_770, "test": 19_962}

    def __init__(self, root: Path | None, split: Split, *, image_size: int = 64) -> None:
        layout = "celeba/img_align_celeba/ and celeba/list_eval_partition.txt"
        if root is None:
            raise missing(self.title, None, layout, prepare=True)
        folder = root / "celeba" / "img_align_celeba"
        self.partition = root / "celeba" / "list_eval_partition.txt"
        for path in (folder, self.partition):
            if not path.exists():
                raise missing(self.title, path, layout, prepare=True)
        super().__init__(Folder(folder, deep=False), split, image_size)

    def chosen(self, names: list[str]) -> Sequence[int]:
        """The files of this part that are on disk, by name. Raises BadInput for a malformed partition."""
        text = self.partition.read_text()
        words = text.split()                    # all at once: 0.03 s for 202,599 lines
        if len(words) % 2 or not {"0", "1", "2"}.issuperset(words[1::2]):
            for number, line in enumerate(text.splitlines(), 1):
                if len(parts := line.split()) not in (0, 2) or parts[1:] not in ([], ["0"], ["1"], ["2"]):
                    raise BadInput(f"{self.partition}:{number}: {line[:60]!r}: expected a name and 0, 1 or 2")
        part = PARTITION[self.split]
        wanted = {name for name, of in zip(words[::2], words[1::2], strict=True) if of == part}
        return [i for i, name in enumerate(names) if name in wanted]

    def is_official(self) -> bool:
        """The complete part, by its names."""
        if len(self) != self.official_size[self.split]:
            return False
        first = FIRST[self.split]
        return self.rows()[0] == [f"{n:06d}.jpg" for n in range(first, first + len(self))]

    def picture(self, image: Image.Image, path: str, generator: np.random.Generator | None) -> Image.Image:
        if image.size != SIZE:
            raise BadInput(f"{path}: {image.width}x{image.height} pixels, but aligned CelebA pictures have "
                           "178x218; use the set `img_align_celeba`, or image_folder for these")
        return resized(image.crop(BOX), self.image_size, "bilinear")

    @classmethod
    def download(cls, root: Path) -> None:
        """1.4 GB from Google Drive, through torchvision. Raises BadInput; the drive has a daily quota."""
        def fetch() -> None:
            from torchvision.datasets import CelebA as Published

            Published(str(root), split="all", target_type=[], download=True)

        through_torchvision(cls.title, fetch, "put img_align_celeba/ and list_eval_partition.txt under "
                            f"{root / 'celeba'} by hand, or try again tomorrow (it needs pip install gdown)")
