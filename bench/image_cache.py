"""From a data set to its fingerprint and to one memory-mapped array of decoded images. Torch-free.

Everything lies in the cache folder (Places.cache) and may be deleted at any time:
    listings/<key>.npz          listings of folders, valid while no folder's mtime has moved
    left_out/<listing>.json     files the user chose to leave out, each with the hash of its bytes
    images/<key>.u8, .json      uint8 [n, 3, H, W] of one split after one preprocessing, and what it is
    images/<key>.building/      the same in the making: pixels, one marker per finished block, leases
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from bench.errors import BadInput
from bench.files import sync_folder, write_atomic
from bench.image_dataset import ImageDataset, Split, UnreadableImage
from bench.places import Places
from bench.results import DataRecord

FORMAT = 1                                      # of the files in images/; part of their key
POLL = 0.2                                      # seconds between looks at workers, or at another builder
BEAT = 2.0                                      # seconds between signs of life of a builder
STALE = 30.0                                    # seconds without one after which a builder is given up
CHUNK = 8 << 20                                 # bytes read or copied at once

_ELSEWHERE = "make room or name another folder with BENCH_CACHE or `cache:` in the user file"

Progress = Callable[[int, int], None]           # (images done, of all)


@dataclass(frozen=True, slots=True)
class OpenSplit:
    """One split as it is used: the data set without what was left out, and what the record says of it."""

    split: Split
    dataset: ImageDataset
    record: DataRecord
    complete: ImageDataset                      # with what was left out: a decision belongs to this listing

    @property
    def identity(self) -> str:
        """What enters the ids: "official", or the fingerprint of the images really used."""
        return self.record.fingerprint


class LeftOut(Exception):
    """Unreadable files were left out, as asked: identities change. `opened` is the rest, its pixels ready."""

    def __init__(self, opened: OpenSplit, names: Sequence[str]) -> None:
        super().__init__(f"{len(names)} unreadable {'file' if len(names) == 1 else 'files'} left out of the "
                         f"{opened.split} split: {_some(names)}")
        self.opened, self.names = opened, tuple(names)


# -- fingerprints and decisions ----------------------------------------------------------------------------


def fingerprint(dataset: ImageDataset) -> str:
    """`official` for the complete published split, else the first 12 digits of `listing_hash`."""
    return "official" if dataset.is_official() else listing_hash(dataset)[:12]


def listing_hash(dataset: ImageDataset) -> str:
    """64 hex digits over the sorted (name, bytes): independent of order, folder and machine."""
    lines = [f"{name}\0{size}\n" for name, size in sorted(dataset.listing())]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def open_split(
    build: Callable[[Path | None, Split], ImageDataset], split: Split, places: Places,
) -> OpenSplit:
    """List one split, leave out what the user decided to leave out, and say what is left; nothing is decoded.

    `build` is the data set's constructor with its keywords bound. Raises FileNotFoundError when the data
    are not on this machine, BadInput for a malformed data set.
    """
    dataset = build(places.data, split)
    dataset.listings = places.cache / "listings"
    return _opened(dataset, split, _decided(dataset, places))


def _opened(complete: ImageDataset, split: Split, left_out: frozenset[str]) -> OpenSplit:
    dataset = complete.without(left_out) if left_out else complete
    record = DataRecord(
        # A set from which something is missing is not the published one, whatever its class says.
        fingerprint=listing_hash(dataset)[:12] if left_out else fingerprint(dataset),
        images=len(dataset), of=complete.official_size.get(split), left_out=tuple(sorted(left_out)),
    )
    return OpenSplit(split, dataset, record, complete)


def _decision_file(dataset: ImageDataset, places: Places) -> Path:
    return places.cache / "left_out" / f"{listing_hash(dataset)[:24]}.json"


def _content(dataset: ImageDataset, index: int) -> str:
    try:
        return hashlib.sha256(dataset.encoded(index)).hexdigest()
    except UnreadableImage:
        return "unreadable"


def _decided(dataset: ImageDataset, places: Places) -> frozenset[str]:
    """Names left out by an earlier decision, of those whose bytes are still the unreadable ones."""
    if not (places.cache / "left_out").is_dir() or not (file := _decision_file(dataset, places)).is_file():
        return frozenset()
    try:
        decided: dict[str, str] = json.loads(file.read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); remove it and decide anew") from error
    position = {name: i for i, (name, _) in enumerate(dataset.listing())}
    return frozenset(name for name, content in decided.items()
                     if name in position and _content(dataset, position[name]) == content)


def _decide(opened: OpenSplit, names: frozenset[str], places: Places) -> None:
    position = {name: i for i, (name, _) in enumerate(opened.complete.listing())}
    every = sorted(names | set(opened.record.left_out))
    text = {"files": {n: _content(opened.complete, position[n]) for n in every}, "decided": _now()}
    file = _decision_file(opened.complete, places)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(text, indent=1))


# -- decoded images ----------------------------------------------------------------------------------------


def decoded(
    opened: OpenSplit, component_key: str, places: Places, *, leave_out: bool = False,
    progress: Progress | None = None, workers: int | None = None,
) -> np.ndarray:
    """All images of a split, uint8 [n, 3, H, W] in index order, memory-mapped copy-on-write; decoded once.

    `component_key` is the JSON text of the data set's name, revision and keywords. `progress(done, of)` is
    called from the calling thread. Interrupted at any moment, the next call goes on with the blocks that
    were finished. Of two processes, one builds while the other waits; a dead one is replaced. Raises
    BadInput for unreadable images (all of them are collected), for a cache that cannot be written and for
    files that changed since they were listed. With `leave_out`, unreadable images are left out from now on,
    and `LeftOut` carries the new split.
    """
    if opened.dataset.native:
        raise BadInput("images in their own sizes (dataset.native) are for `bench eval --checkpoint` alone; leave it out to train, "
                       "and for everything that is measured on square images")
    if opened.dataset.random:
        raise ValueError("a data set that loads at random has no decoded form; stream it")
    if changed := opened.dataset.changed():
        raise BadInput(f"{len(changed)} files of the {opened.split} split changed since they were listed "
                       f"({_some(changed)}); run the command again, so that identities follow the files")
    target = _Pixels.of(opened, component_key, places)
    say = progress or (lambda done, of: None)
    try:
        if (ready := target.open()) is not None:
            return ready
        target.building.mkdir(parents=True, exist_ok=True)
        lease = _Lease(target.building)
        while not lease.claim():
            say(min(target.finished_images(), target.count), target.count)
            time.sleep(POLL)
            if (ready := target.open()) is not None:
                return ready
        try:
            if (ready := target.open()) is not None:    # finished between our look and our claim
                shutil.rmtree(target.building, ignore_errors=True)
                return ready
            unreadable = target.build(opened.dataset, lease, say, workers or _cores())
            if not unreadable:
                return target.finish(component_key, lease)
            names = frozenset(u.name for u in unreadable)
            if not leave_out or len(names) == target.count:
                raise BadInput(_refusal(unreadable, target.count, opened.split))
            rest = _opened(opened.complete, opened.split, names | frozenset(opened.record.left_out))
            remaining = _Pixels.of(rest, component_key, places)
            remaining.copy_from(target, opened.dataset, names, component_key, lease)
            _decide(opened, names, places)
            shutil.rmtree(target.building, ignore_errors=True)
            raise LeftOut(rest, sorted(names))
        finally:
            lease.release()
    except BrokenPipeError:                             # of `progress`, not of the cache
        raise
    except OSError as error:
        if (ready := target.open()) is not None:        # another process finished it under our hands
            return ready
        reason = error.strerror or error
        raise BadInput(f"{target.file.parent}: decoded images cannot be kept there ({reason}); "
                       f"{_ELSEWHERE}") from error


def _refusal(unreadable: Sequence[UnreadableImage], count: int, split: str) -> str:
    first = "; ".join(f"{u.path} ({u.reason})" for u in unreadable[:5])
    more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    return (f"{len(unreadable)} of {count} images of the {split} split cannot be decoded: {first}{more}; "
            "mend or replace them, or leave them out with `bench run SUITE --leave-out-unreadable`")


@dataclass(frozen=True, slots=True)
class _Pixels:
    """The file of one split's decoded images, finished or in the making."""

    file: Path
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, opened: OpenSplit, component_key: str, places: Places) -> _Pixels:
        size = opened.dataset.image_size
        digest = hashlib.sha256(f"{FORMAT}\n{component_key}\n{opened.split}\n{size}\n".encode())
        listing = "".join(f"{name}\0{size}\n" for name, size in opened.dataset.listing())
        digest.update(listing.encode("utf-8", "surrogateescape"))
        digest.update(np.asarray(opened.dataset.stamps(), np.int64).tobytes())
        file = places.cache / "images" / f"{digest.hexdigest()[:24]}.u8"
        return cls(file, (len(opened.dataset), 3, size, size))

    @property
    def count(self) -> int:
        return self.shape[0]

    @property
    def item(self) -> int:
        """Bytes of one image."""
        return self.shape[1] * self.shape[2] * self.shape[3]

    @property
    def building(self) -> Path:
        return self.file.with_suffix(".building")

    @property
    def part(self) -> Path:
        return self.building / "pixels"

    @property
    def per_block(self) -> int:
        """Images in a block: 2 MiB, or more where that were over 1,000 blocks. The same in every process."""
        return max(1, (2 << 20) // self.item, -(-self.count // 1000))

    @property
    def blocks(self) -> int:
        return -(-self.count // self.per_block)

    def marker(self, block: int) -> Path:
        return self.building / f"block-{block:06d}.json"

    def finished_images(self) -> int:
        return self.per_block * sum(1 for _ in self.building.glob("block-*.json"))

    def open(self) -> np.ndarray | None:
        """The finished array, or None. Copy-on-write: torch does not warn, and the file is safe."""
        try:
            if self.file.stat().st_size != self.count * self.item:
                return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        return np.memmap(self.file, np.uint8, mode="c", shape=self.shape)

    def build(
        self, dataset: ImageDataset, lease: _Lease, say: Progress, workers: int,
    ) -> list[UnreadableImage]:
        """Decode what no marker says is done; images that could not be read the last time are tried again.

        Every process that gets here writes the same bytes to the same places, so that two at once, after a
        wrong guess that the other is dead, waste time and damage nothing.
        """
        pixels = self._part()
        unreadable: dict[int, UnreadableImage] = {}
        todo: dict[int, list[int]] = {}
        done = 0
        for block in range(self.blocks):
            indices = list(range(block * self.per_block, min((block + 1) * self.per_block, self.count)))
            wanted = self._missing(block, indices)
            done += len(indices) - len(wanted)
            if wanted:
                todo[block] = wanted
        stop = threading.Event()
        counts = dict.fromkeys(todo, 0)         # each entry is written by one thread only

        def work(block: int) -> None:
            failed: list[int] = []
            for index in todo[block]:
                if stop.is_set():
                    return
                try:
                    _pwrite(pixels, dataset.load(index), index * self.item)
                except UnreadableImage as error:
                    unreadable[index] = error
                    failed.append(index)
                counts[block] += 1
            os.fsync(pixels)                    # the marker must not outlive the pixels in a power cut
            write_atomic(self.marker(block), json.dumps(failed))

        if todo:                                # what is read once for all images, before the threads start
            try:
                dataset.load(next(iter(todo.values()))[0])
            except UnreadableImage:
                pass
        # Threads: Pillow releases the interpreter while it decodes and resizes. Measured on two cores with
        # CelebA: 2,100 images/s against 1,500 with processes, which also have to be started and can be
        # orphaned.
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            pending = {pool.submit(work, block) for block in todo}
            while pending:
                finished, pending = wait(pending, POLL, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                lease.beat()
                say(done + sum(counts.values()), self.count)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            os.close(pixels)
        return [unreadable[i] for i in sorted(unreadable)]

    def _part(self) -> int:
        """A descriptor of the pixels in the making, of full size (sparse where nothing was written yet)."""
        size = self.count * self.item
        try:
            found = os.open(self.part, os.O_RDWR)
            if os.fstat(found).st_size == size:
                self._room(size - os.fstat(found).st_blocks * 512)
                return found
            os.close(found)
        except FileNotFoundError:
            pass
        # Markers without pixels are worth nothing. (Whoever finished has renamed the pixels and left the
        # final file.)
        for marker in self.building.glob("block-*.json"):
            marker.unlink(missing_ok=True)
        self._room(size)
        aside = self.part.with_suffix(f".{os.getpid()}")
        with open(aside, "wb") as file:
            file.truncate(size)
        os.replace(aside, self.part)
        return os.open(self.part, os.O_RDWR)

    def _room(self, needed: int) -> None:
        free = shutil.disk_usage(self.building).free
        if needed > free:
            raise BadInput(f"{self.file.parent}: decoded images need {needed / 1e9:.1f} GB and "
                           f"{free / 1e9:.1f} GB are free; {_ELSEWHERE}")

    def _missing(self, block: int, indices: list[int]) -> list[int]:
        try:
            return [i for i in json.loads(self.marker(block).read_text()) if i in indices]
        except (FileNotFoundError, ValueError, TypeError):
            return indices

    def finish(self, component_key: str, lease: _Lease, part: Path | None = None) -> np.ndarray:
        """Describe the pixels, move them to their place, forget how they were made."""
        part = part or self.part
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                lease.beat()
            os.fsync(file.fileno())
        about: dict[str, Any] = {
            "component": component_key, "shape": list(self.shape), "sha256": digest.hexdigest(),
            "made": _now(), "pillow": PIL.__version__,
        }
        write_atomic(self.file.with_suffix(".json"), json.dumps(about, indent=1))
        os.replace(part, self.file)
        sync_folder(self.file.parent)
        shutil.rmtree(self.building, ignore_errors=True)
        if (ready := self.open()) is None:
            raise BadInput(f"{self.file}: vanished while it was made; run again")
        return ready

    def copy_from(
        self, other: _Pixels, dataset: ImageDataset, without: frozenset[str], component_key: str,
        lease: _Lease,
    ) -> None:
        """Take the pixels of `other` (built, of `dataset`) except some names': nothing is decoded again."""
        if self.open() is None:
            keep = np.array([name not in without for name, _ in dataset.listing()])
            source = np.memmap(other.part, np.uint8, mode="r", shape=(other.count, other.item))
            aside = other.building / f"rest.{os.getpid()}"
            rows = max(1, CHUNK // other.item)
            with open(aside, "wb") as file:
                for first in range(0, other.count, rows):
                    file.write(source[first : first + rows][keep[first : first + rows]].tobytes())
                    lease.beat()
            self.finish(component_key, lease, part=aside)


class _Lease:
    """Who builds. Claimed by creating the next number exclusively; alive while its mtime moves.

    A wrong guess that the owner is dead costs time only (see _Pixels.build), so the guess may be quick: at
    once for a process of this host that is gone, else after STALE seconds on the waiting process's own
    clock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mine: Path | None = None
        self._beaten = 0.0
        self._seen: tuple[str, int] = ("", 0)
        self._seen_at = 0.0

    def claim(self) -> bool:
        held = sorted(self.folder.glob("lease.*"))
        if held and self._alive(held[-1]):
            return False
        number = int(held[-1].name.partition(".")[2]) + 1 if held else 0
        mine = self.folder / f"lease.{number:06d}"
        try:
            with open(mine, "x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        except FileNotFoundError:               # the folder went away: the other has finished
            self.folder.mkdir(parents=True, exist_ok=True)
            return False
        self.mine, self._beaten = mine, time.monotonic()
        return True

    def beat(self) -> None:
        if self.mine is not None and time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            try:
                os.utime(self.mine)
            except FileNotFoundError:           # given up for dead, and finished by another
                pass

    def release(self) -> None:
        if self.mine is not None:
            self.mine.unlink(missing_ok=True)

    def _alive(self, lease: Path) -> bool:
        try:
            sign = (lease.name, lease.stat().st_mtime_ns)
            owner = json.loads(lease.read_text() or "{}")
        except (FileNotFoundError, ValueError):
            return True                         # just going, or just coming: look again
        if sign != self._seen:
            self._seen, self._seen_at = sign, time.monotonic()
        if owner.get("host") == socket.gethostname() and isinstance(owner.get("pid"), int):
            try:
                os.kill(owner["pid"], 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass
        return time.monotonic() - self._seen_at <= STALE


# -- small things ------------------------------------------------------------------------------------------


def _cores() -> int:
    """Threads to decode with: the cores this process may use, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, max(2, cores))


def _pwrite(descriptor: int, array: np.ndarray, offset: int) -> None:
    rest = np.ascontiguousarray(array).data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)       # short where a disk has just become full
        rest, offset = rest[written:], offset + written


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
