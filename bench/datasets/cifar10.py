"""CIFAR-10 (Krizhevsky, 2009): the published batches, or class folders of pictures."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from bench.errors import BadInput
from bench.image_dataset import ImageDataset, Split
from bench.image_files import ArrayImages, FileImages, Folder, missing, resized, through_torchvision
from bench.registry import register

#: md5 of the python batches, as torchvision publishes them: what is unpickled is a known file
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f", "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751", "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb", "test_batch": "40351d587109b95175f43aff81a1287e",
}
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
PER_BATCH = 10_000
RECORD = 1 + 3 * 32 * 32                        # bytes of an image in a binary batch: label, red, green, blue


@register("dataset", "cifar10")
class CIFAR10(ImageDataset):
    """CIFAR-10 from the first form that is found.

    That is cifar-10-batches-py or cifar-10-batches-bin in ROOT/cifar10 or in ROOT, else class folders
    ROOT/cifar10/{train,test}/<class>/*.png or .jpg.

    Resized bilinearly with antialiasing where image_size is not 32. Class folders never count as official: a
    re-encoded copy has other pixels.
    """

    title = "CIFAR-10"
    official_size: ClassVar[Mapping[str, int]] = {"train": 50_000, "test": 10_000}

    def __init__(self, root: Path | None, split: Split, *, image_size: int = 32) -> None:
        self.split, self.image_size = split, image_size
        self._form = _found(root, split, image_size)

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        """int64 [len]; classes in the published order, which is alphabetical."""
        return self._form.labels

    def is_official(self) -> bool:
        return isinstance(self._form, _Batches) and len(self) == self.official_size[self.split]

    def listing(self) -> Sequence[tuple[str, int]]:
        self._form.listings = self.listings
        return self._form.listing()

    def stamps(self) -> Sequence[int]:
        return self._form.stamps()

    def changed(self) -> Sequence[str]:
        return self._form.changed()

    def encoded(self, index: int) -> bytes:
        return self._form.encoded(index)

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        return self._form.load(index, generator)

    def without(self, names: frozenset[str]) -> CIFAR10:
        rest = object.__new__(CIFAR10)
        rest.__dict__ = {**self.__dict__, "_form": self._form.without(names)}
        return rest

    @classmethod
    def download(cls, root: Path) -> None:
        """170 MB, through torchvision, into ROOT/cifar10. Raises BadInput."""
        def fetch() -> None:
            from torchvision.datasets import CIFAR10 as Published

            Published(str(root / "cifar10"), download=True)

        through_torchvision(cls.title, fetch, f"put cifar-10-batches-py/ under {root / 'cifar10'} by hand")


class _Batches(ArrayImages):
    """The published batches, pickled or binary."""

    title = CIFAR10.title
    bytes_each = RECORD

    def __init__(self, split: Split, image_size: int, files: list[Path]) -> None:
        super().__init__(split, image_size, PER_BATCH * len(files), files)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, 32, 32, 3] and int64 [n]."""
        batches = [(_binary if f.suffix == ".bin" else _pickled)(f) for f in self.files]
        data, labels = zip(*batches, strict=True)
        planes = np.concatenate(data).reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate(labels).astype(np.int64)


class _Classes(FileImages):
    """Class folders of pictures."""

    title = CIFAR10.title

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        classes = [name.partition("/")[0] for name in self.rows()[0]]
        number = {name: i for i, name in enumerate(sorted(set(classes)))}
        return np.array([number[c] for c in classes], np.int64)

    def picture(self, image: Image.Image, path: str, generator: np.random.Generator | None) -> Image.Image:
        if image.size != (32, 32):
            raise BadInput(f"{path}: {image.width}x{image.height} pixels, but CIFAR-10's pictures have 32x32")
        return resized(image, self.image_size, "bilinear")


def _found(root: Path | None, split: Split, image_size: int) -> _Batches | _Classes:
    layout = "cifar10/cifar-10-batches-py/ (or cifar-10-batches-bin/, or cifar10/{train,test}/<class>/)"
    if root is None:
        raise missing(CIFAR10.title, None, layout, prepare=True)
    for folder in (root / "cifar10", root):
        for form, suffix in (("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin")):
            if (folder / form).is_dir():
                files = [folder / form / f"{name}{suffix}" for name in BATCHES[split]]
                if absent := [file for file in files if not file.is_file()]:
                    raise missing(CIFAR10.title, absent[0], layout, prepare=True)
                return _Batches(split, image_size, files)
    classes = root / "cifar10" / split
    if not classes.is_dir():
        raise missing(CIFAR10.title, root / "cifar10", layout, prepare=True)
    return _Classes(Folder(classes), split, image_size)


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.fromfile(file, np.uint8)
    if data.size != PER_BATCH * RECORD or data.reshape(-1, RECORD)[:, 0].max() > 9:
        raise BadInput(f"{file}: not a published binary batch ({data.size} bytes); fetch it again")
    rows = data.reshape(-1, RECORD)
    return rows[:, 1:], rows[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and nothing else: a pickle may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _pickled(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[file.name]:
        raise BadInput(f"{file}: not the published file (its md5 should be {MD5[file.name]}); fetch it again")
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        return batch[b"data"], np.array(batch[b"labels"])
    except (pickle.UnpicklingError, KeyError, EOFError, TypeError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); fetch it again") from error
