"""MNIST, handwritten digits (LeCun et al., 1998), grey repeated to RGB."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.errors import BadInput
from bench.image_dataset import Split
from bench.image_files import ArrayImages, missing, through_torchvision
from bench.registry import register

PREFIX = {"train": "train", "test": "t10k"}
SIDE = 28


@register("dataset", "mnist")
class MNIST(ArrayImages):
    """MNIST: ROOT/MNIST/raw (as torchvision lays it out) or ROOT/mnist, idx files as they are or gzipped.

    Resized bilinearly with antialiasing where image_size is not 28.
    """

    title = "MNIST"
    official_size: ClassVar[Mapping[str, int]] = {"train": 60_000, "test": 10_000}
    bytes_each = SIDE * SIDE

    def __init__(self, root: Path | None, split: Split, *, image_size: int = 32) -> None:
        layout = "MNIST/raw/ with the idx files"
        if root is None:
            raise missing(self.title, None, layout, prepare=True)
        self.pictures, self.answers = (
            _find(root, f"{PREFIX[split]}-{part}", layout)
            for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        shape = _shape(self.pictures, 3)
        if shape[1:] != (SIDE, SIDE):
            raise BadInput(f"{self.pictures}: {shape[1]}x{shape[2]} pixels, but MNIST's pictures have 28x28")
        super().__init__(split, image_size, shape[0], [self.pictures, self.answers])

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, 28, 28] and int64 [n]."""
        images, labels = _idx(self.pictures, 3), _idx(self.answers, 1)
        if len(images) != len(labels):
            raise BadInput(f"{self.answers}: {len(labels)} labels, {len(images)} pictures; fetch both again")
        return images, labels.astype(np.int64)

    @classmethod
    def download(cls, root: Path) -> None:
        """11 MB, through torchvision, into ROOT/MNIST/raw. Raises BadInput."""
        def fetch() -> None:
            from torchvision.datasets import MNIST as Published

            Published(str(root), download=True)

        by_hand = f"put the four idx files under {root / 'MNIST' / 'raw'} by hand"
        through_torchvision(cls.title, fetch, by_hand)


def _find(root: Path, name: str, layout: str) -> Path:
    for folder in (root / "MNIST" / "raw", root / "mnist" / "raw", root / "mnist"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise missing(MNIST.title, root / "MNIST" / "raw" / name, layout, prepare=True)


def _bytes(path: Path, limit: int = -1) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read ({error}); fetch it again") from error


def _shape(path: Path, dims: int) -> tuple[int, ...]:
    """The header of an idx file: 0, 0, 8 (unsigned bytes), dimensions, each as big-endian int32."""
    head = _bytes(path, 4 + 4 * dims)
    if head[:4] != bytes((0, 0, 8, dims)) or len(head) < 4 + 4 * dims:
        raise BadInput(f"{path}: not an idx file of unsigned bytes with {dims} dimensions; fetch it again")
    return tuple(np.frombuffer(head, ">i4", dims, 4).tolist())


def _idx(path: Path, dims: int) -> np.ndarray:
    shape, data = _shape(path, dims), _bytes(path)
    if len(data) != 4 + 4 * dims + int(np.prod(shape)):
        raise BadInput(f"{path}: {len(data)} bytes do not hold {'x'.join(map(str, shape))}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
