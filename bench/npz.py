"""Sets of images as the ADM evaluator reads them: an .npz whose arr_0 is uint8 [n, H, W, 3]. Torch-free, in blocks.

50,000 images of 256 x 256 are 9.8 GB: neither writing nor reading ever holds more than a block of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bench.errors import BadInput
from bench.files import sync_folder

NAME = b"arr_0.npy"
READ = 1 << 24          # bytes at once
MAX32 = 0xFFFFFFFF
ZIP64 = 45              # version of the format that knows sizes of 64 bits


class NpzWriter:
    """Writes `count` images in any order, each at its place; the file appears when it is complete.

    Alone: `with NpzWriter(path, count, height, width) as out: out.add(0, images)`. With several processes of one
    machine: the main one makes a writer, and after a barrier the others one with `create=False`; each adds its own
    images and the others close theirs; after a barrier the main one calls `close(written)` with the number that all
    have added. Across machines, send the images to the main process.
    """

    def __init__(self, path: Path, count: int, height: int, width: int, *, create: bool = True) -> None:
        """Raises BadInput where the file cannot be written, as where the disk has no room for it."""
        self.path, self.count, self.shape, self.main = Path(path), count, (height, width, 3), create
        self.written = 0                        # images that this process has added
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)})
        self._header, self._image = header.getvalue(), height * width * 3
        self._size = len(self._header) + count * self._image
        self._start = len(self._local(0))       # of the header of the array
        self._aside = self.path.with_name(f".{self.path.name}.part")
        self._crc: int | None = zlib.crc32(self._header)        # None: images came out of order, it is read again
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if create else 0)
            self._file = os.open(self._aside, flags, 0o666)
            if create:
                os.ftruncate(self._file, self._start + self._size)
                self._write(self._header, self._start)
        except OSError as error:
            raise BadInput(f"cannot write {self.path} ({error.strerror or error}); choose another folder") from error

    def add(self, index: int, images: Any) -> None:
        """images uint8: a tensor [b, 3, H, W] on any device, or an array [b, H, W, 3]; the first is number `index`."""
        if not isinstance(images, np.ndarray):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if images.dtype != np.uint8 or images.shape[1:] != self.shape or not 0 <= index <= self.count - len(images):
            raise ValueError(f"{images.dtype} {images.shape} from {index} on: not in {(self.count, *self.shape)}")
        data = np.ascontiguousarray(images).data.cast("B")
        in_order = self.main and index == self.written
        self._crc = zlib.crc32(data, self._crc) if in_order and self._crc is not None else None
        try:
            self._write(data, self._start + len(self._header) + index * self._image)
        except OSError as error:
            raise BadInput(f"cannot write {self.path} ({error.strerror or error}); it needs "
                           f"{self._size / 1e9:.1f} GB") from error
        self.written += len(images)

    def close(self, written: int | None = None) -> None:
        """On the main process: check that all `written` images are there (default: those added here), and let the
        file appear. On the others: done with it."""
        if not self.main:
            os.close(self._file)
            return
        if (written if written is not None else self.written) != self.count:
            self.discard()
            raise ValueError(f"{self.path}: {written or self.written} of {self.count} images were added")
        crc = self._crc if self._crc is not None and self.written == self.count else self._checksum()
        self._write(self._local(crc), 0)
        self._write(self._directory(crc), self._start + self._size)
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self._aside, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        if self.main:
            self._aside.unlink(missing_ok=True)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        rest = memoryview(data)
        while len(rest):
            done = os.pwrite(self._file, rest, offset)
            rest, offset = rest[done:], offset + done

    def _checksum(self) -> int:
        crc, place, end = 0, self._start, self._start + self._size
        while place < end:
            block = os.pread(self._file, min(READ, end - place), place)
            crc, place = zlib.crc32(block, crc), place + len(block)
        return crc

    # The two records of a zip archive of one stored member, with sizes of 64 bits throughout (APPNOTE 4.3 and 4.5.3).

    def _local(self, crc: int) -> bytes:
        extra = struct.pack("<HHQQ", 1, 16, self._size, self._size)
        record = struct.pack("<4s5H3L2H", b"PK\3\4", ZIP64, 0, 0, 0, 0x21, crc, MAX32, MAX32, len(NAME), len(extra))
        return record + NAME + extra

    def _directory(self, crc: int) -> bytes:
        extra = struct.pack("<HHQQ", 1, 16, self._size, self._size)
        entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", ZIP64, ZIP64, 0, 0, 0, 0x21, crc, MAX32, MAX32, len(NAME),
                            len(extra), 0, 0, 0, 0o600 << 16, 0) + NAME + extra
        start = self._start + self._size
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, ZIP64, ZIP64, 0, 0, 1, 1, len(entry), start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(entry), 1)
        return entry + end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), min(start, MAX32), 0)


def save_npz(path: Path, images: Any, *, block: int = 256) -> None:
    """Write uint8 images, an array or memory map [n, H, W, 3], or a tensor [n, 3, H, W], as arr_0. Raises BadInput."""
    height, width = images.shape[1:3] if isinstance(images, np.ndarray) else images.shape[2:]
    with NpzWriter(path, len(images), height, width) as out:
        for start in range(0, len(images), block):
            out.add(start, images[start : start + block])


@dataclass(frozen=True, slots=True)
class NpzImages:
    """arr_0 of a file: uint8 [count, height, width, 3], read once from front to back, compressed or not."""

    path: Path
    count: int
    height: int
    width: int

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """uint8 [b, height, width, 3] in order, b = size but for the last. Raises BadInput for a damaged file."""
        image = self.height * self.width * 3
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _header(file, self.path)
            for start in range(0, self.count, size):
                wanted = min(size, self.count - start)
                data = bytearray(wanted * image)
                view = memoryview(data)
                while len(view) and (got := file.readinto(view)):           # type: ignore[attr-defined]
                    view = view[got:]
                if len(view):
                    raise BadInput(f"{self.path}: ends in the middle of its images; write it again")
                yield np.frombuffer(data, np.uint8).reshape(wanted, self.height, self.width, 3)


def open_images(path: Path) -> NpzImages | None:
    """The images of an .npz, or None where it has no arr_0. Raises BadInput for what is no npz or holds no images."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            return None
        with archive.open("arr_0.npy") as file:
            shape, kind = _header(file, path)
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise BadInput(f"{path}: arr_0 is {kind} {list(shape)}; the ADM evaluator's form is uint8 [n, height, width, 3]")
    return NpzImages(path, *shape[:3])


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the small arrays (statistics) that the file holds. Raises BadInput for a damaged file."""
    with _reading(path), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names if name in file.files}


def _header(file: Any, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, kind = read[np.lib.format.read_magic(file)](file)
    if fortran:
        raise BadInput(f"{path}: arr_0 is stored by columns; save a C-contiguous array")
    return shape, kind


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except FileNotFoundError as error:
        raise BadInput(f"{path}: there is no such file") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: no readable .npz file ({error or type(error).__name__})") from error
