"""Pictures on disk: found quickly, decoded strictly, cropped as published. Torch-free."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import struct
import time
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from bench.errors import BadInput
from bench.image_dataset import ImageDataset, Split, UnreadableImage
from bench.places import user_file

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FILTERS = {
    "box": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
#: all that Pillow's decoders were seen to raise on damaged files
UNDECODABLE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError, struct.error,
    zlib.error, zipfile.BadZipFile, Image.DecompressionBombError,
)


def missing(title: str, looked_for: Path | None, layout: str, *, prepare: bool = False) -> FileNotFoundError:
    """The one sentence about data that are not there. `layout`: what the data folder should hold."""
    found = "no data folder is named" if looked_for is None else f"nothing usable at {looked_for}"
    fetch = ", or fetch it with `bench prepare`" if prepare else ""
    return FileNotFoundError(
        f"{title} is not on this machine: {found}; name the folder that holds {layout} with --data, "
        f"BENCH_DATA or `data:` in {user_file()}{fetch} (see docs/data.md)"
    )


# -- finding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scan:
    """All pictures of a source, sorted by name."""

    names: list[str]                            # relative, with "/" between folders
    sizes: np.ndarray                           # int64 [n], bytes
    stamps: np.ndarray                          # int64 [n], changes when the picture is replaced
    kept: bool = False                          # read from a listing that an earlier process kept


class Source(Protocol):
    """Where pictures lie: a folder, or zip files."""

    def scan(self, listings: Path | None) -> Scan: ...
    def changed(self, listings: Path | None) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def path(self, name: str) -> str: ...


class Folder:
    """The pictures below one folder. Hidden files (`._x.jpg` of macOS archives among them) do not count."""

    def __init__(self, folder: Path, *, deep: bool = True) -> None:
        self.folder, self.deep = folder, deep
        self._scan: Scan | None = None

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """Raises OSError."""
        return (self.folder / name).read_bytes()

    def scan(self, listings: Path | None) -> Scan:
        """List once; from the listing kept in `listings` while no folder's mtime has moved."""
        if self._scan is None:
            self._scan = self._recall(listings) or self._walk(listings)
        return self._scan

    def changed(self, listings: Path | None) -> list[str]:
        """Overwriting a file in place moves no folder's mtime: compare a kept listing with the files."""
        old = self.scan(listings)
        if not old.kept:
            return []
        new = self._scan = self._walk(listings)
        same = (np.array_equal(a, b) for a, b in ((new.sizes, old.sizes), (new.stamps, old.stamps)))
        if new.names == old.names and all(same):
            return []
        now = dict(zip(new.names, zip(new.sizes.tolist(), new.stamps.tolist(), strict=True), strict=True))
        then = dict(zip(old.names, zip(old.sizes.tolist(), old.stamps.tolist(), strict=True), strict=True))
        return sorted(n for n in now.keys() | then.keys() if now.get(n) != then.get(n))

    def _walk(self, listings: Path | None) -> Scan:
        began = time.time_ns()
        found: list[tuple[str, int, int]] = []
        folders: list[tuple[str, int]] = []
        seen: set[tuple[int, int]] = set()      # a symbolic link may lead back up
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            here = os.stat(self.folder / prefix)
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            folders.append((prefix, here.st_mtime_ns))
            with os.scandir(self.folder / prefix) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if name[name.rfind("."):].lower() in SUFFIXES and entry.is_file():
                        state = entry.stat()
                        found.append((prefix + name, state.st_size, state.st_mtime_ns))
                    elif self.deep and entry.is_dir():
                        waiting.append(f"{prefix}{name}/")
        found.sort()
        scan = Scan([f[0] for f in found], np.array([f[1] for f in found], np.int64),
                    np.array([f[2] for f in found], np.int64))
        # A change within the clock's grain of the listing would not show later: keep only settled folders.
        if listings is not None:
            settled = max(mtime for _, mtime in folders) < began - 2_000_000_000
            try:
                if settled:
                    self._keep(listings, scan, folders)
                else:
                    self._kept_as(listings).unlink(missing_ok=True)
            except OSError as error:            # a convenience only: the next process lists again
                log.debug("listing of %s not kept: %s", self.folder, error)
        return scan

    def _kept_as(self, listings: Path) -> Path:
        text = json.dumps([1, str(self.folder.absolute()), self.deep, sorted(SUFFIXES)])
        return listings / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"

    def _keep(self, listings: Path, scan: Scan, folders: list[tuple[str, int]]) -> None:
        target = self._kept_as(listings)
        aside = target.with_suffix(f".{os.getpid()}.tmp")
        text = "\0".join(scan.names).encode("utf-8", "surrogateescape")
        listings.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.savez(file, names=np.frombuffer(text, np.uint8), sizes=scan.sizes, stamps=scan.stamps,
                     folders=np.frombuffer(json.dumps(folders).encode(), np.uint8))
        os.replace(aside, target)

    def _recall(self, listings: Path | None) -> Scan | None:
        if listings is None or not (file := self._kept_as(listings)).is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as kept:
                for prefix, mtime in json.loads(kept["folders"].tobytes()):
                    if os.stat(self.folder / prefix).st_mtime_ns != mtime:
                        return None
                text = kept["names"].tobytes().decode("utf-8", "surrogateescape")
                return Scan(text.split("\0") if text else [], kept["sizes"], kept["stamps"], kept=True)
        except UNDECODABLE as error:
            log.debug("kept listing of %s not used: %s", self.folder, error)
            return None


class Zips:
    """The pictures inside zip files, read in place. Threads share one handle per process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = sorted(paths)
        self._scan: Scan | None = None
        self._where: dict[str, Path] = {}
        self._open: dict[tuple[int, Path], zipfile.ZipFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _zip(self, path: Path) -> zipfile.ZipFile:
        key = (os.getpid(), path)               # a forked worker must not move its parent's file position
        if key not in self._open:
            self._open[key] = zipfile.ZipFile(path)
        return self._open[key]

    def path(self, name: str) -> str:
        return f"{self._where.get(name, self.paths[0])}:{name}"

    def read(self, name: str) -> bytes:
        """Raises OSError, zlib.error or BadZipFile (wrong checksum)."""
        return self._zip(self._where[name]).read(name)

    def changed(self, listings: Path | None) -> list[str]:
        return []                               # never kept: a zip's directory is one read

    def scan(self, listings: Path | None) -> Scan:
        """List the members; the stamp is the stored checksum. Raises BadInput for a file that is no zip."""
        if self._scan is None:
            found: list[tuple[str, int, int]] = []
            for path in self.paths:
                try:
                    members = self._zip(path).infolist()
                except (OSError, zipfile.BadZipFile) as error:
                    raise BadInput(f"{path}: cannot be read as a zip ({error}); fetch it again") from error
                for member in members:
                    name = member.filename
                    if name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/"):
                        continue
                    if os.path.splitext(name)[1].lower() in SUFFIXES:
                        if name in self._where:
                            raise BadInput(f"{path} and {self._where[name]} both hold {name}; keep one")
                        self._where[name] = path
                        found.append((name, member.file_size, member.CRC))
            found.sort()
            self._scan = Scan([f[0] for f in found], np.array([f[1] for f in found], np.int64),
                              np.array([f[2] for f in found], np.int64))
        return self._scan


# -- decoding and cropping ---------------------------------------------------------------------------------


def decode(data: bytes, path: str, name: str) -> Image.Image:
    """An RGB picture. Raises UnreadableImage for one that is damaged, cut short or impossibly large."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False     # some libraries switch it on for the whole process
    try:
        with Image.open(BytesIO(data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, name, f"{len(data)} bytes of no known image format") from error
    except UNDECODABLE as error:
        raise UnreadableImage(path, name, str(error) or type(error).__name__) from error


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [3, H, W] of an RGB picture."""
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def resized(image: Image.Image, image_size: int, resample: str) -> Image.Image:
    """image_size x image_size, with antialiasing (Pillow's resize always has it); as it is where it fits."""
    return image if image.size == (image_size,) * 2 else image.resize((image_size,) * 2, FILTERS[resample])


def centre_square(image: Image.Image, side: int | None = None) -> Image.Image:
    """The centred square of `side` pixels; the largest one where side is None or does not fit."""
    side = min(*image.size, side or max(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _adm_resize(image: Image.Image, short_side: int) -> Image.Image:
    # Halving by box means before the bicubic step is part of the published preprocessing: Pillow's bicubic
    # alone gives other pixels. Source: ADM (arXiv:2105.05233, guided-diffusion), also DiT, LlamaGen, MAR.
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def adm_centre_crop(image: Image.Image, image_size: int) -> Image.Image:
    """ADM: box halvings, bicubic to short side = image_size, centre crop."""
    return centre_square(_adm_resize(image, image_size), image_size)


def adm_random_crop(image: Image.Image, image_size: int, generator: np.random.Generator) -> Image.Image:
    """ADM: short side uniform among the integers of [s, ceil(s / 0.8)], s x s at a random place."""
    image = _adm_resize(image, int(generator.integers(image_size, math.ceil(image_size / 0.8) + 1)))
    left = int(generator.integers(image.width - image_size + 1))
    top = int(generator.integers(image.height - image_size + 1))
    return image.crop((left, top, left + image_size, top + image_size))


# -- data sets of files and of arrays ----------------------------------------------------------------------


def check_image_size(title: str, image_size: int) -> None:
    """Raises BadInput for a size that no picture can have."""
    if image_size < 1:
        raise BadInput(f"{title}: image_size = {image_size}: expected a positive number of pixels")


class FileImages(ImageDataset):
    """A data set of one file per image. A subclass says which are the split's and how one is cropped."""

    title = "images"

    def __init__(self, source: Source, split: Split, image_size: int) -> None:
        check_image_size(self.title, image_size)
        self.source, self.split, self.image_size = source, split, image_size
        self._left_out: frozenset[str] = frozenset()
        self._rows: tuple[list[str], np.ndarray, np.ndarray] | None = None

    def chosen(self, names: list[str]) -> Sequence[int]:
        """Positions, in index order, of this split's images among all names of the source (sorted)."""
        return range(len(names))

    @abstractmethod
    def picture(self, image: Image.Image, path: str, generator: np.random.Generator | None) -> Image.Image:
        """Crop and resize one decoded RGB picture to image_size x image_size."""

    def rows(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names, bytes [n] and stamps [n] in index order. Raises FileNotFoundError where there are none."""
        if self._rows is None:
            scan = self.source.scan(self.listings)
            order = self.chosen(scan.names)
            if self._left_out:
                order = [i for i in order if scan.names[i] not in self._left_out]
            if not len(order):
                where = self.source.path("")
                raise FileNotFoundError(f"{self.title}: no image of the {self.split} split is at {where}; "
                                        "see docs/data.md for the expected layout")
            index = np.asarray(order, np.int64)
            self._rows = [scan.names[i] for i in order], scan.sizes[index], scan.stamps[index]
        return self._rows

    def __len__(self) -> int:
        return len(self.rows()[0])

    def listing(self) -> Sequence[tuple[str, int]]:
        names, sizes, _ = self.rows()
        return list(zip(names, sizes.tolist(), strict=True))

    def stamps(self) -> Sequence[int]:
        return self.rows()[2].tolist()

    def changed(self) -> Sequence[str]:
        changed = self.source.changed(self.listings)
        if changed:
            self._rows = None
        return changed

    def encoded(self, index: int) -> bytes:
        """Raises UnreadableImage for a file that cannot be read at all."""
        name = self.rows()[0][index]
        try:
            return self.source.read(name)
        except UNDECODABLE as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise UnreadableImage(self.source.path(name), name, reason) from error

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        name = self.rows()[0][index]
        path = self.source.path(name)
        return pixels(self.picture(decode(self.encoded(index), path, name), path, generator))

    def without(self, names: frozenset[str]) -> FileImages:
        rest = copy.copy(self)
        rest._left_out, rest._rows = self._left_out | names, None
        return rest


class ArrayImages(ImageDataset):
    """A data set published as arrays in a few files; its images have numbers for names."""

    title = "images"

    def __init__(self, split: Split, image_size: int, count: int, files: Sequence[Path]) -> None:
        check_image_size(self.title, image_size)
        self.split, self.image_size, self.files = split, image_size, list(files)
        self._kept = np.arange(count)
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None

    @abstractmethod
    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 [n, H, W] or [n, H, W, 3], and labels, int64 [n]. Raises BadInput."""

    @property
    @abstractmethod
    def bytes_each(self) -> int:
        """Stored bytes of one image."""

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """`read`, once."""
        if self._arrays is None:
            self._arrays = self.read()
        return self._arrays

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self.arrays()[1][self._kept]

    def __len__(self) -> int:
        return len(self._kept)

    def listing(self) -> Sequence[tuple[str, int]]:
        return [(f"{i:05d}", self.bytes_each) for i in self._kept.tolist()]

    def stamps(self) -> Sequence[int]:
        return [file.stat().st_mtime_ns for file in self.files]

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        # Grey pictures are resized before they are repeated: the same pixels for a third of the work.
        image = Image.fromarray(self.arrays()[0][self._kept[index]])
        return pixels(resized(image, self.image_size, "bilinear").convert("RGB"))

    def without(self, names: frozenset[str]) -> ArrayImages:
        rest = copy.copy(self)
        rest._kept = np.array([i for i in self._kept.tolist() if f"{i:05d}" not in names], np.int64)
        return rest


def through_torchvision(title: str, fetch: Any, by_hand: str) -> None:
    """Run one of torchvision's downloads; any failure becomes BadInput with a sentence."""
    try:
        fetch()
    except Exception as error:                  # URLError, RuntimeError, gdown's own: all mean the same
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{title} could not be fetched through torchvision ({reason}); {by_hand}") from error
