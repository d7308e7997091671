"""The contract of a data set. Torch-free: planning reads listings at once, decoding starts quickly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bench.errors import BadInput

Split = Literal["train", "test"]


class ImageDataset(ABC):
    """A finite, ordered set of RGB images of one size, for one split.

    The constructor is `__init__(self, root: Path | None, split: Split, *, keywords)`: the first two are the
    harness's to give (`root` is the folder that holds all data sets, as given by --data), keywords come from
    the suite and are part of the identity. It lists files but decodes nothing. It raises `FileNotFoundError`,
    with a sentence that says what is missing where and what to do, when the data are not on this machine.
    """

    #: images of the complete published split, for "2,822 of 162,770"; empty where there is no such thing
    official_size: ClassVar[Mapping[str, int]] = {}

    image_size: int                             # height and width of every image, in pixels
    labels: np.ndarray | None = None            # int64 [len], where the data set has classes
    native: bool = False                        # True: each image in its own size, for evaluation alone; see image_sizes
    random: bool = False                        # True: `load` wants a generator; then nothing is cached
    listings: Path | None = None                # where listings of folders are kept; set before listing()

    @abstractmethod
    def listing(self) -> Sequence[tuple[str, int]]:
        """(relative name, bytes) of every image in index order, without decoding."""

    @abstractmethod
    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        """Decode, crop and resize one image: uint8 [3, H, W]. Raises `UnreadableImage` with the path."""

    @abstractmethod
    def without(self, names: frozenset[str]) -> ImageDataset:
        """The same data set with some files (names of `listing`) left out."""

    def stamps(self) -> Sequence[int]:
        """Numbers that change when a file behind the images is replaced: its mtime in ns."""
        return ()

    def changed(self) -> Sequence[str]:
        """Names whose file differs from a listing that an earlier process kept; forgets it."""
        return ()

    def encoded(self, index: int) -> bytes:
        """The stored bytes of one image, undecoded; empty where images are no files of their own."""
        return b""

    def is_official(self) -> bool:
        """Whether this is the complete published split, by its listing."""
        size = self.official_size.get(getattr(self, "split", ""))
        return size is not None and len(self) == size

    def __len__(self) -> int:
        return len(self.listing())

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch the data set into `root` (for `bench prepare`). Raises `BadInput` where it cannot."""
        raise BadInput(f"{cls.__name__} cannot be downloaded by a program; put it under {root} by hand "
                       "(see docs/data.md)")


class UnreadableImage(ValueError):
    """A corrupt or truncated image; carries the path and the name under which to leave it out."""

    def __init__(self, path: str, name: str, reason: str) -> None:
        super().__init__(f"{path}: cannot be decoded ({reason})")
        self.path, self.name, self.reason = path, name, reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str, str]]:
        return type(self), (self.path, self.name, self.reason)      # a worker process hands it over
