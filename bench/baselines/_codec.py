"""What JPEG and WebP have in common: the quality whose mean rate over the test images is nearest below a target."""

from __future__ import annotations

import functools
import io
import os
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.baseline import Baseline, MeasuredLayout
from bench.errors import BadInput, Incompatible

T = TypeVar("T")
SAMPLE = 1000           # images that the search looks at before it looks at all


class Codec(Baseline):
    """An image format of Pillow's. Bits that depend on the image count; headers and tables, equal for all, do not:
    a tokenizer's codebook is not counted either.
    """

    matched = ("bits",)
    qualities: ClassVar[tuple[int, int]]        # the lowest and the highest that the format knows
    uncounted: ClassVar[str]                    # what of a file is not counted: "headers and tables"

    def __init__(self, *, bits: float | None = None, quality: int | None = None) -> None:
        """Give `bits` per image, or the `quality`. Raises BadInput for both, and for a quality that is none."""
        low, high = self.qualities
        if bits is not None and quality is not None:
            raise BadInput(f"{self.title} takes bits or quality, not both (bits = {bits:g}, quality = {quality})")
        if quality is not None and not low <= quality <= high:
            raise BadInput(f"{self.title}: quality = {quality}: expected {low} to {high}")
        self.target, self.quality = bits, quality

    @abstractmethod
    def encode(self, image: Image.Image, quality: int) -> bytes:
        """A whole file."""

    @abstractmethod
    def payload(self, file: bytes) -> int:
        """Bytes of a file that depend on the image."""

    def fit(self, train: np.ndarray | None, test: np.ndarray) -> None:
        """Raises Incompatible where neither bits nor a quality is known."""
        rates = functools.cache(lambda quality: self._rates(test, quality))
        unreachable = False
        if self.quality is None:
            if self.target is None:
                raise Incompatible(f"there is no rate to match {self.title} to; give it bits or quality")
            self.quality = self._search(test, lambda quality: rates(quality)[0])
            unreachable = rates(self.quality)[0] > self.target
        spent, whole = rates(self.quality)
        self.label = f"{self.title}, quality {self.quality}"
        self.layout = MeasuredLayout(0, (), bits=spent)
        wanted = "" if self.target is None or unreachable else f" (at most {self.target:,.0f} wanted)"
        self.notes = (f"{spent:,.0f} bits per image{wanted} are spent on the image; with {self.uncounted}, which are equal for "
                      f"all images and not counted, a file has {whole:,.0f} bits",)
        if unreachable:
            self.notes += (f"{self.target:,.0f} bits were wanted, {spent:,.0f} bits is the least",)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, None]:
        def one(image: Image.Image) -> np.ndarray:
            with Image.open(io.BytesIO(self.encode(image, self.quality))) as coded:
                return np.asarray(coded.convert("RGB"))

        return torch.from_numpy(np.stack(_each(one, images.numpy()))).permute(0, 3, 1, 2).contiguous(), None

    def _rates(self, images: np.ndarray, quality: int) -> tuple[float, float]:
        """Mean bits per image: that count, and of whole files."""
        def one(image: Image.Image) -> tuple[int, int]:
            file = self.encode(image, quality)
            return self.payload(file), len(file)

        counted, whole = np.mean(_each(one, images), axis=0)
        return 8 * float(counted), 8 * float(whole)

    def _search(self, images: np.ndarray, rate: Callable[[int], float]) -> int:
        """The highest quality whose rate is not above the target, else the lowest of all. Rates grow with quality."""
        low, high = self.qualities
        few = images[:: -(-len(images) // SAMPLE)]
        below, above = low, high + 1
        while above - below > 1:                # found on a sample first: whole sets take minutes a quality
            middle = (below + above) // 2
            below, above = (middle, above) if self._rates(few, middle)[0] <= self.target else (below, middle)
        while below > low and rate(below) > self.target:
            below -= 1
        while below < high and rate(below + 1) <= self.target:
            below += 1
        return below


def _each(what: Callable[[Image.Image], T], images: np.ndarray) -> list[T]:
    """In order, of each of uint8 [n, 3, H, W]; the formats' encoders leave the interpreter's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda image: what(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))), images))
