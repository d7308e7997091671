"""From files to fingerprint, record and decoded array: what is noticed, what survives, what is shared."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import image_cache
from bench.datasets.celeba import CelebA
from bench.datasets.imagenet import ImageNet
from bench.errors import BadInput
from bench.image_cache import LeftOut, OpenSplit, decoded, fingerprint, open_split
from bench.image_dataset import ImageDataset, Split, UnreadableImage
from bench.places import Places

REPOSITORY = Path(__file__).resolve().parent.parent
KEY = '{"name": "celeba"}'


def places_at(root: Path, cache: str = "cache") -> Places:
    return Places(results=root, reports=root, runs=root, cache=root / cache, data=root)


def faces(folder: Path, count: int, first: int = 1) -> None:
    """`count` different pictures of the training part."""
    images = folder / "celeba" / "img_align_celeba"
    images.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        colour = np.random.default_rng(i).integers(0, 256, (7, 6, 3), np.uint8)
        Image.fromarray(colour).resize((178, 218)).save(images / f"{i:06d}.jpg")
    names = sorted(p.name for p in images.iterdir())
    (folder / "celeba" / "list_eval_partition.txt").write_text("".join(f"{n} 0\n" for n in names))


def opened_at(root: Path, cache: str = "cache") -> OpenSplit:
    return open_split(functools.partial(CelebA, image_size=16), "train", places_at(root, cache))


def image_path(root: Path, number: int) -> Path:
    return root / "celeba" / "img_align_celeba" / f"{number:06d}.jpg"


def settle(root: Path) -> None:
    """Give every folder an old mtime: a listing is kept only of folders that are no longer being filled."""
    for folder in [root, *root.rglob("*")]:
        if folder.is_dir():
            os.utime(folder, (1_600_000_000, 1_600_000_000))


class Slow(ImageDataset):
    """`count` images that are their own index, each loaded in `seconds`; each load is a file in `looks`."""

    def __init__(self, root: Path, split: Split, *, count: int, looks: Path, seconds: float = 0.0) -> None:
        self.split, self.image_size, self.count, self.looks, self.seconds = split, 64, count, looks, seconds

    def listing(self) -> Sequence[tuple[str, int]]:
        return [(f"{i}", 1) for i in range(self.count)]

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        time.sleep(self.seconds)
        (self.looks / f"{index}.{os.getpid()}.{time.monotonic_ns()}").touch()
        return np.full((3, 64, 64), index % 251, np.uint8)

    def without(self, names: frozenset[str]) -> ImageDataset:
        raise NotImplementedError


def slow_at(root: Path, count: int, seconds: float = 0.0) -> OpenSplit:
    (root / "looks").mkdir(exist_ok=True)
    build = functools.partial(Slow, count=count, looks=root / "looks", seconds=seconds)
    return open_split(build, "train", places_at(root))


SEARCHED = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))}
BUILDER = """
import sys
from pathlib import Path

from test_image_cache import places_at, slow_at
from bench.image_cache import decoded

root, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
decoded(slow_at(root, count, seconds), "slow", places_at(root), workers=2)
"""


@pytest.fixture
def start_builder(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    (tmp_path / "looks").mkdir()
    (tmp_path / "builder.py").write_text(BUILDER)
    started: list[subprocess.Popen] = []

    def start(count: int, seconds: float) -> subprocess.Popen:
        program = [sys.executable, str(tmp_path / "builder.py"), str(tmp_path), str(count), str(seconds)]
        started.append(subprocess.Popen(program, cwd=REPOSITORY, env=SEARCHED))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(claim: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def right(array: np.ndarray) -> bool:
    first = array[:, :1, :1, :1]
    return np.array_equal(first.ravel(), np.arange(len(array)) % 251) and bool((array == first).all())


# -- fingerprint and record --------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_wherever_and_in_whatever_order_the_files_came(tmp_path: Path) -> None:
    faces(tmp_path / "a", 5)
    (tmp_path / "b" / "celeba" / "img_align_celeba").mkdir(parents=True)
    for number in (4, 2, 5, 1, 3):
        shutil.copy(image_path(tmp_path / "a", number), image_path(tmp_path / "b", number))
    lines = (tmp_path / "a" / "celeba" / "list_eval_partition.txt").read_text().splitlines()
    (tmp_path / "b" / "celeba" / "list_eval_partition.txt").write_text("\n".join(reversed(lines)))
    assert opened_at(tmp_path / "a").identity == opened_at(tmp_path / "b").identity
    assert len(opened_at(tmp_path / "a").identity) == 12


@pytest.mark.parametrize("change", ["added", "removed", "resized"])
def test_the_fingerprint_follows_names_and_bytes(change: str, tmp_path: Path) -> None:
    faces(tmp_path, 5)
    before = opened_at(tmp_path).identity
    if change == "added":
        faces(tmp_path, 1, first=9)
    elif change == "removed":
        image_path(tmp_path, 3).unlink()
    else:
        with open(image_path(tmp_path, 3), "ab") as file:
            file.write(b"\0")
    assert opened_at(tmp_path).identity != before


def test_the_record_of_a_partial_copy_says_how_many_of_how_many(tmp_path: Path) -> None:
    faces(tmp_path, 5)
    record = opened_at(tmp_path).record
    assert (record.images, record.of, record.left_out) == (5, 162_770, ())
    assert record.fingerprint != "official"


def test_a_complete_split_is_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CelebA, "official_size", {"train": 5, "test": 0})
    faces(tmp_path, 5)
    assert opened_at(tmp_path).identity == "official"


# -- kept listings -----------------------------------------------------------------------------------------


def test_a_listing_is_kept_and_a_folder_that_changed_is_listed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    faces(tmp_path, 5)
    settle(tmp_path / "celeba")
    first = opened_at(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda *_: pytest.fail("listed again"))
        again = opened_at(tmp_path)
    assert again.record == first.record and again.dataset.stamps() == first.dataset.stamps()
    faces(tmp_path, 1, first=9)
    assert opened_at(tmp_path).record.images == 6


def test_a_listing_of_a_folder_that_is_being_filled_is_not_kept(tmp_path: Path) -> None:
    faces(tmp_path, 5)
    opened_at(tmp_path)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_file_overwritten_after_it_was_listed_stops_the_run_that_would_mistake_it(tmp_path: Path) -> None:
    faces(tmp_path, 5)
    settle(tmp_path / "celeba")
    before = opened_at(tmp_path)
    decoded(before, KEY, places_at(tmp_path))
    with open(image_path(tmp_path, 3), "ab") as file:           # in place: no folder's mtime moves
        file.write(b"\0")
    stale = opened_at(tmp_path)
    assert stale.identity == before.identity
    with pytest.raises(BadInput, match=r"1 files .* changed .*000003.jpg.*run the command again"):
        decoded(stale, KEY, places_at(tmp_path))
    fresh = opened_at(tmp_path)
    assert fresh.identity != before.identity and len(decoded(fresh, KEY, places_at(tmp_path))) == 5


def test_a_kept_listing_that_is_damaged_is_ignored(tmp_path: Path) -> None:
    faces(tmp_path, 5)
    settle(tmp_path / "celeba")
    first = opened_at(tmp_path)
    kept, = (tmp_path / "cache" / "listings").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert opened_at(tmp_path).record == first.record


# -- decoded images ----------------------------------------------------------------------------------------


def test_the_array_holds_every_image_in_index_order(tmp_path: Path) -> None:
    faces(tmp_path, 7)
    seen: list[tuple[int, int]] = []
    opened = opened_at(tmp_path)
    array = decoded(opened, KEY, places_at(tmp_path), progress=lambda done, of: seen.append((done, of)))
    assert array.dtype == np.uint8 and array.shape == (7, 3, 16, 16)
    assert all(np.array_equal(array[i], opened.dataset.load(i)) for i in range(7))
    assert seen[-1] == (7, 7)


def test_images_are_decoded_once_and_again_when_a_file_or_the_preprocessing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    faces(tmp_path, 4)
    looks: list[int] = []
    real = CelebA.load
    monkeypatch.setattr(CelebA, "load", lambda self, i, g=None: (looks.append(i), real(self, i, g))[1])

    def decodes(key: str = KEY) -> bool:
        before = len(looks)
        decoded(opened_at(tmp_path), key, places_at(tmp_path))
        return len(looks) > before

    assert decodes() and not decodes()
    assert decodes('{"name": "celeba", "revision": 2}')
    state = image_path(tmp_path, 2).stat()
    content = bytearray(image_path(tmp_path, 2).read_bytes())
    content[-100] ^= 1
    image_path(tmp_path, 2).write_bytes(content)                # another picture of as many bytes
    assert image_path(tmp_path, 2).stat().st_size == state.st_size
    assert decodes() and not decodes()


def test_torch_takes_the_array_without_a_warning_and_writing_never_reaches_the_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    faces(tmp_path, 3)
    array = decoded(opened_at(tmp_path), KEY, places_at(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(array)
    before = int(tensor[0, 0, 0, 0])
    tensor[0, 0, 0, 0] = 255 - before
    assert decoded(opened_at(tmp_path), KEY, places_at(tmp_path))[0, 0, 0, 0] == before


def test_beside_the_pixels_is_written_what_they_are(tmp_path: Path) -> None:
    import hashlib

    faces(tmp_path, 3)
    array = decoded(opened_at(tmp_path), KEY, places_at(tmp_path))
    about, = (tmp_path / "cache" / "images").glob("*.json")
    text = json.loads(about.read_text())
    assert text["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    assert text["shape"] == [3, 3, 16, 16] and text["component"] == KEY
    assert str(tmp_path) not in about.read_text()
    assert {p.suffix for p in (tmp_path / "cache" / "images").iterdir()} == {".u8", ".json"}


def test_a_set_that_crops_at_random_has_no_decoded_form(tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "train" / "n01").mkdir(parents=True)
    Image.new("RGB", (80, 80)).save(tmp_path / "imagenet" / "train" / "n01" / "a.png")
    opened = open_split(functools.partial(ImageNet, crop="random"), "train", places_at(tmp_path))
    with pytest.raises(ValueError, match="stream it"):
        decoded(opened, KEY, places_at(tmp_path))


@pytest.mark.parametrize("cache", ["cache", "cache/images"])
def test_a_cache_that_cannot_be_written_is_one_sentence_with_the_way_out(cache: str, tmp_path: Path) -> None:
    faces(tmp_path, 2)
    (tmp_path / cache).parent.mkdir(exist_ok=True)
    (tmp_path / cache).write_text("a file where a folder should be")
    with pytest.raises(BadInput, match=r"cache.*BENCH_CACHE"):
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path))


def test_a_full_disk_is_noticed_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces(tmp_path, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    monkeypatch.setattr(CelebA, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadInput, match=r"GB are free.*BENCH_CACHE"):
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path))


def test_a_disk_that_fills_up_while_decoding_is_a_sentence_and_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = slow_at(tmp_path, 600)
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset > 500 * 3 * 64 * 64:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(BadInput, match="No space left on device.*BENCH_CACHE"):
            decoded(opened, "slow", places_at(tmp_path), workers=1)
    before = len(list((tmp_path / "looks").iterdir()))
    assert right(decoded(opened, "slow", places_at(tmp_path)))
    assert len(list((tmp_path / "looks").iterdir())) - before <= 262


# -- interruption, and two at once -------------------------------------------------------------------------


def test_a_killed_build_goes_on_where_it_stopped(
    tmp_path: Path, start_builder: Callable[..., subprocess.Popen],
) -> None:
    process = start_builder(1200, 0.002)
    building = tmp_path / "cache" / "images"
    wait_for(lambda: len(list(building.glob("*.building/block-*.json"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(list((tmp_path / "looks").iterdir()))
    assert before < 1200 and not list(building.glob("*.u8"))
    opened = slow_at(tmp_path, 1200)
    began = time.monotonic()
    array = decoded(opened, "slow", places_at(tmp_path))
    again = len(list((tmp_path / "looks").iterdir())) - before
    # all but the three finished blocks of 170 images (and one looked at before the threads start)
    assert right(array) and again <= 1200 - 3 * 170 + 1
    assert time.monotonic() - began < 10, "a dead builder of this host is replaced at once"
    assert {p.suffix for p in building.iterdir()} == {".u8", ".json"}


def test_ctrl_c_stops_at_once_and_loses_no_finished_block(tmp_path: Path) -> None:
    opened = slow_at(tmp_path, 1000, 0.001)

    def interrupt(done: int, of: int) -> None:
        if done > 400:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        decoded(opened, "slow", places_at(tmp_path), progress=interrupt, workers=2)
    assert threading.active_count() == threads
    before = len(list((tmp_path / "looks").iterdir()))
    assert before < 1000 and right(decoded(opened, "slow", places_at(tmp_path)))
    assert len(list((tmp_path / "looks").iterdir())) < before + 1000


def test_of_two_processes_one_builds_and_the_other_waits(
    tmp_path: Path, start_builder: Callable[..., subprocess.Popen],
) -> None:
    start_builder(600, 0.002)
    start_builder(600, 0.002)
    opened = slow_at(tmp_path, 600, 0.002)
    seen: list[int] = []
    wait_for(lambda: list((tmp_path / "cache" / "images").glob("*.building/lease.*")))
    assert right(decoded(opened, "slow", places_at(tmp_path), progress=lambda done, of: seen.append(done)))
    assert len(list((tmp_path / "looks").iterdir())) == 600 + 1 and seen


def test_a_silent_builder_on_another_host_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = slow_at(tmp_path, 5)
    target = image_cache._Pixels.of(opened, "slow", places_at(tmp_path))
    target.building.mkdir(parents=True)
    (target.building / "lease.000004").write_text('{"host": "another", "pid": 1}')
    monkeypatch.setattr(image_cache, "STALE", 0.3)
    assert right(decoded(opened, "slow", places_at(tmp_path)))


def test_markers_without_pixels_are_worth_nothing(tmp_path: Path) -> None:
    opened = slow_at(tmp_path, 500)
    target = image_cache._Pixels.of(opened, "slow", places_at(tmp_path))
    target.building.mkdir(parents=True)
    target.marker(0).write_text("[]")
    assert right(decoded(opened, "slow", places_at(tmp_path)))


# -- unreadable images -------------------------------------------------------------------------------------


def damage(root: Path, *numbers: int) -> None:
    for number in numbers:
        content = image_path(root, number).read_bytes()
        image_path(root, number).write_bytes(content[: len(content) // 2])


def test_unreadable_images_stop_the_run_and_all_are_counted_with_their_paths(tmp_path: Path) -> None:
    faces(tmp_path, 12)
    damage(tmp_path, 2, 3, 5, 7, 8, 11)
    with pytest.raises(BadInput) as caught:
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path))
    text = str(caught.value)
    assert text.startswith("6 of 12 images of the train split") and "\n" not in text
    assert str(image_path(tmp_path, 2)) in text and "and 1 more" in text and "--leave-out-unreadable" in text


def test_leaving_out_changes_count_record_and_fingerprint_for_this_and_later_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CelebA, "official_size", {"train": 6, "test": 0})
    faces(tmp_path, 6)
    damage(tmp_path, 2, 5)
    opened = opened_at(tmp_path)
    assert opened.identity == "official"
    with pytest.raises(LeftOut, match="2 unreadable files left out .*: 000002.jpg, 000005.jpg") as caught:
        decoded(opened, KEY, places_at(tmp_path), leave_out=True)
    rest = caught.value.opened
    assert (rest.record.images, rest.record.of) == (4, 6)
    assert rest.record.left_out == ("000002.jpg", "000005.jpg")
    assert rest.identity not in ("official", fingerprint(opened.dataset)) and len(rest.identity) == 12
    assert opened_at(tmp_path).record == rest.record
    with monkeypatch.context() as patch:
        patch.setattr(CelebA, "load", lambda *_: pytest.fail("decoded again"))
        array = decoded(opened_at(tmp_path), KEY, places_at(tmp_path))
    assert all(np.array_equal(array[i], rest.dataset.load(i)) for i in range(4))
    assert {p.suffix for p in (tmp_path / "cache" / "images").iterdir()} == {".u8", ".json"}


def test_a_copy_that_never_had_the_left_out_files_has_the_same_fingerprint(tmp_path: Path) -> None:
    faces(tmp_path / "a", 5)
    damage(tmp_path / "a", 2)
    with pytest.raises(LeftOut) as caught:
        decoded(opened_at(tmp_path / "a"), KEY, places_at(tmp_path / "a"), leave_out=True)
    shutil.copytree(tmp_path / "a" / "celeba", tmp_path / "b" / "celeba")
    image_path(tmp_path / "b", 2).unlink()
    assert opened_at(tmp_path / "b").identity == caught.value.opened.identity


def test_a_mended_file_is_back_even_when_it_has_as_many_bytes(tmp_path: Path) -> None:
    faces(tmp_path, 3)
    good = image_path(tmp_path, 2).read_bytes()
    image_path(tmp_path, 2).write_bytes(b"?" * len(good))
    with pytest.raises(LeftOut):
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path), leave_out=True)
    assert opened_at(tmp_path).record.images == 2
    image_path(tmp_path, 2).write_bytes(good)
    assert opened_at(tmp_path).record.images == 3
    assert len(decoded(opened_at(tmp_path), KEY, places_at(tmp_path))) == 3


def test_an_image_that_could_not_be_read_once_is_tried_again_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    faces(tmp_path, 6)
    looks: list[int] = []
    real = CelebA.load

    def sometimes(self: CelebA, index: int, generator: object = None) -> np.ndarray:
        looks.append(index)
        if index == 4 and server_down:
            raise UnreadableImage("x/000005.jpg", "000005.jpg", "Input/output error")
        return real(self, index)

    monkeypatch.setattr(CelebA, "load", sometimes)
    server_down = True
    with pytest.raises(BadInput, match="Input/output error"):
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path))
    server_down = False
    looks.clear()
    array = decoded(opened_at(tmp_path), KEY, places_at(tmp_path))
    assert set(looks) == {4} and array[4].std() > 0


def test_when_no_image_is_readable_there_is_nothing_to_leave_out(tmp_path: Path) -> None:
    faces(tmp_path, 2)
    damage(tmp_path, 1, 2)
    with pytest.raises(BadInput, match="2 of 2 images"):
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path), leave_out=True)


def test_a_decision_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    faces(tmp_path, 3)
    damage(tmp_path, 2)
    with pytest.raises(LeftOut):
        decoded(opened_at(tmp_path), KEY, places_at(tmp_path), leave_out=True)
    decision, = (tmp_path / "cache" / "left_out").iterdir()
    decision.write_text("{")
    with pytest.raises(BadInput, match=r"left_out.*remove it"):
        opened_at(tmp_path)
