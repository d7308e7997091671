"""The data sets: which images belong to which split, and that their pixels are the published ones."""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFile

from bench.datasets import cifar10 as cifar10_module
from bench.datasets.celeba import CelebA
from bench.datasets.cifar10 import CIFAR10
from bench.datasets.ffhq import FFHQ
from bench.datasets.image_folder import ImageFolder
from bench.datasets.imagenet import ImageNet
from bench.datasets.mnist import MNIST
from bench.datasets.photos import Photos
from bench.errors import BadInput
from bench.image_cache import fingerprint
from bench.image_dataset import ImageDataset, UnreadableImage
from bench.image_files import Folder, decode
from bench.registry import available, resolve, signature

REPOSITORY = Path(__file__).resolve().parent.parent


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth and colourful, so that a shifted crop or another filter shows."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def celeba_at(root: Path, parts: dict[str, int], on_disk: set[str] | None = None) -> None:
    for i, name in enumerate(parts):
        if on_disk is None or name in on_disk:
            save(picture(178, 218, i), root / "celeba" / "img_align_celeba" / name, quality=95)
    text = "".join(f"{name} {part}\n" for name, part in parts.items())
    (root / "celeba" / "list_eval_partition.txt").write_text(text)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository."""
    folder = Path(os.environ.get("BENCH_SHARED") or REPOSITORY.parent / "shared") / "data"
    if not (folder / "unpack.py").is_file():
        pytest.skip("no shared/data beside the repository; name the folder `shared` with BENCH_SHARED")
    return folder


@pytest.fixture(scope="session")
def real_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    program = [sys.executable, shared_data / "unpack.py", root, "celeba"]
    subprocess.run(program, check=True, capture_output=True)
    return root


# -- every data set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", available("dataset"))
def test_every_data_set_has_a_title_and_literal_defaults(name: str) -> None:
    found = signature("dataset", name)
    assert found.title != name and "image_size" in found.keywords
    assert issubclass(resolve("dataset", name), ImageDataset)


@pytest.mark.parametrize("name", [n for n in available("dataset") if n != "photos"])
@pytest.mark.parametrize("rooted", [False, True])
def test_missing_data_are_one_sentence_that_says_what_to_do(name: str, rooted: bool, tmp_path: Path) -> None:
    keywords = {"folder": "mine"} if name == "image_folder" else {}
    with pytest.raises(FileNotFoundError) as caught:
        resolve("dataset", name)(tmp_path if rooted else None, "train", **keywords)
    text = str(caught.value)
    assert all(word in text for word in ("--data", "BENCH_DATA", "data:")) and "\n" not in text
    assert not rooted or str(tmp_path) in text


def test_data_sets_and_cache_never_import_torch() -> None:
    names = [f"bench.datasets.{n}" for n in available("dataset")] + ["bench.image_cache"]
    program = f"import sys, {', '.join(names)}; sys.exit(bool({{'torch', 'torchvision'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize("kind", [CelebA, CIFAR10, MNIST])
def test_a_failed_download_is_a_sentence(
    kind: type[ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no\nnetwork")

    fake = SimpleNamespace(CelebA=broken, CIFAR10=broken, MNIST=broken)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=fake))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    with pytest.raises(BadInput, match=r"torchvision \(no network\); put .* by hand"):
        kind.download(tmp_path)


def test_an_image_size_of_zero_is_refused() -> None:
    with pytest.raises(BadInput, match="image_size = 0"):
        Photos(None, "train", image_size=0)


# -- photos ------------------------------------------------------------------------------------------------


def test_photo_crops_of_train_and_test_are_disjoint_and_inside_their_picture() -> None:
    reach: dict[str, dict[str, tuple[int, int]]] = {"train": {}, "test": {}}
    for split, extent in reach.items():
        photos = Photos(None, split, train_images=3000, test_images=3000)
        for i in range(len(photos)):
            name, (left, top, right, bottom) = photos.region(i)
            width, height = photos._picture(name).size
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert right - left == bottom - top >= 64
            low, high = extent.get(name, (width, 0))
            extent[name] = (min(low, left), max(high, right))
    assert len(reach["train"]) == 6
    for name, (_, last) in reach["train"].items():
        assert last <= reach["test"][name][0]


def test_photo_crops_are_functions_of_their_index_alone() -> None:
    long, short = Photos(None, "train", image_size=32), Photos(None, "train", image_size=32, train_images=50)
    assert all(np.array_equal(long.load(i), short.load(i)) for i in (49, 0, 7))
    assert [long.region(i) for i in range(3)] == PHOTO_REGIONS     # on every machine


PHOTO_REGIONS = [
    ("astronaut", (153, 363, 237, 447)), ("chelsea", (97, 50, 172, 125)), ("coffee", (142, 99, 328, 285)),
]


def test_photos_are_uint8_planes_of_the_size_asked_for() -> None:
    for size in (32, 64, 256):
        image = Photos(None, "test", image_size=size).load(3)
        assert image.dtype == np.uint8 and image.shape == (3, size, size) and image.flags.c_contiguous
        assert image.std() > 1


def test_photos_are_official_until_one_is_left_out() -> None:
    photos = Photos(None, "test")
    assert fingerprint(photos) == "official" and len(photos) == 512
    rest = photos.without(frozenset({photos.listing()[5][0]}))
    assert fingerprint(rest) != "official" and len(rest) == 511
    assert np.array_equal(rest.load(5), photos.load(6))


# -- CelebA ------------------------------------------------------------------------------------------------


def test_celeba_crop_equals_the_reference_transforms_of_torchvision(tmp_path: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    functional = transforms.functional
    celeba_at(tmp_path, {f"{i:06d}.jpg": 0 for i in range(1, 4)})
    for size in (64, 128, 50):
        faces = CelebA(tmp_path, "train", image_size=size)
        reference = transforms.Compose([
            transforms.Lambda(lambda x: functional.crop(x, 121 - 64, 89 - 64, 128, 128)),
            transforms.Resize((size, size), antialias=True), transforms.ToTensor(),
        ])
        for i, (name, _) in enumerate(faces.listing()):
            with Image.open(tmp_path / "celeba" / "img_align_celeba" / name) as image:
                wanted = (reference(image.convert("RGB")) * 255).round().byte().numpy()
            assert np.array_equal(faces.load(i), wanted)


def test_celeba_splits_are_parts_0_and_2_of_what_is_on_disk(tmp_path: Path) -> None:
    parts = {"000003.jpg": 0, "000001.jpg": 0, "000002.jpg": 1, "000004.jpg": 2, "000005.jpg": 0}
    celeba_at(tmp_path, parts, on_disk=set(parts) - {"000005.jpg"})
    save(picture(178, 218), tmp_path / "celeba" / "img_align_celeba" / "stranger.jpg")
    save(picture(178, 218), tmp_path / "celeba" / "img_align_celeba" / "._000001.jpg", format="JPEG")
    assert [n for n, _ in CelebA(tmp_path, "train").listing()] == ["000001.jpg", "000003.jpg"]
    assert [n for n, _ in CelebA(tmp_path, "test").listing()] == ["000004.jpg"]
    assert fingerprint(CelebA(tmp_path, "test")) != "official"


def test_celeba_is_official_only_with_exactly_the_official_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CelebA, "official_size", {"train": 3, "test": 1})
    celeba_at(tmp_path, {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 0, "182638.jpg": 2})
    assert fingerprint(CelebA(tmp_path, "train")) == fingerprint(CelebA(tmp_path, "test")) == "official"
    folder = tmp_path / "celeba" / "img_align_celeba"
    (folder / "000003.jpg").rename(folder / "000004.jpg")
    with open(tmp_path / "celeba" / "list_eval_partition.txt", "a") as file:
        file.write("000004.jpg 0\n")
    assert len(CelebA(tmp_path, "train")) == 3 and fingerprint(CelebA(tmp_path, "train")) != "official"


def test_a_malformed_partition_is_named_with_its_line(tmp_path: Path) -> None:
    celeba_at(tmp_path, {"000001.jpg": 0})
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg train\n")
    with pytest.raises(BadInput, match=r"list_eval_partition.txt:2: '000002.jpg train'"):
        CelebA(tmp_path, "train").listing()


def test_celeba_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    celeba_at(tmp_path, {"000001.jpg": 0})
    save(picture(200, 200), tmp_path / "celeba" / "img_align_celeba" / "000001.jpg")
    with pytest.raises(BadInput, match="200x200 pixels.*178x218"):
        CelebA(tmp_path, "train").load(0)


def test_the_shared_celeba_is_a_partial_copy(real_root: Path) -> None:
    train, test = CelebA(real_root, "train"), CelebA(real_root, "test")
    assert (len(train), len(test)) == (2822, 705) and not train.is_official()
    assert not {n for n, _ in train.listing()} & {n for n, _ in test.listing()}
    assert train.load(0).shape == (3, 64, 64)


# -- damaged files -----------------------------------------------------------------------------------------


def jpeg() -> bytes:
    stream = io.BytesIO()
    picture(178, 218).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    picture(178, 218).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("damage", [
    lambda: b"", lambda: b"<html>not found</html>", lambda: b"\xff\xd8\xff" + bytes(500),
    lambda: jpeg()[:-2000], lambda: jpeg()[:200], lambda: png()[:-2000],
    lambda: png()[:3000] + b"?" * 100 + png()[3100:],
], ids=["empty", "html", "header_only", "truncated", "truncated_header", "truncated_png", "corrupt_png"])
@pytest.mark.parametrize("tolerant", [False, True])
def test_a_damaged_picture_is_reported_with_its_path(
    damage: Callable[[], bytes], tolerant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)      # as other libraries leave it
    celeba_at(tmp_path, {"000001.jpg": 0})
    path = tmp_path / "celeba" / "img_align_celeba" / "000001.jpg"
    path.write_bytes(damage())
    with pytest.raises(UnreadableImage) as caught:
        CelebA(tmp_path, "train").load(0)
    assert (caught.value.path, caught.value.name) == (str(path), "000001.jpg")
    assert str(path) in str(caught.value)


def test_a_picture_that_is_too_large_to_be_one_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(jpeg(), "x.jpg", "x.jpg")


def test_a_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    celeba_at(tmp_path, {"000001.jpg": 0})
    faces = CelebA(tmp_path, "train")
    faces.listing()
    (tmp_path / "celeba" / "img_align_celeba" / "000001.jpg").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        faces.load(0)


def test_an_unreadable_image_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "b.jpg", "cut short")))
    assert (error.path, error.name, error.reason) == ("a/b.jpg", "b.jpg", "cut short")


# -- ImageNet ----------------------------------------------------------------------------------------------


def adm_centre_by_arrays(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop, halvings as means of 2 x 2 pixels in NumPy and the crop by slicing."""
    array = np.asarray(image)
    while min(array.shape[:2]) >= 2 * size:
        h, w = array.shape[0] // 2, array.shape[1] // 2
        if (2 * h, 2 * w) == array.shape[:2]:
            means = array.reshape(h, 2, w, 2, 3).astype(np.float64).mean((1, 3))
            array = np.floor(means + 0.5).astype(np.uint8)
        else:
            array = np.asarray(Image.fromarray(array).resize((w, h), Image.Resampling.BOX))
    short = min(array.shape[:2])
    scaled = tuple(round(n * (size / short)) for n in (array.shape[1], array.shape[0]))
    array = np.asarray(Image.fromarray(array).resize(scaled, Image.Resampling.BICUBIC))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size].transpose(2, 0, 1)


def imagenet_at(root: Path) -> None:
    for split, wnids in {"train": ("n02", "n01"), "val": ("n03", "n01")}.items():
        for wnid in wnids:
            for i, size in enumerate([(96, 64), (500, 375), (640, 512)]):
                save(picture(*size, i), root / "imagenet" / split / wnid / f"{wnid}_{i}.JPEG")


@pytest.mark.parametrize("size", [64, 128, 256])
def test_imagenet_centre_crop_equals_an_independent_formula(size: int, tmp_path: Path) -> None:
    imagenet_at(tmp_path)
    images = ImageNet(tmp_path, "test", image_size=size)
    for i, (name, _) in enumerate(images.listing()):
        with Image.open(tmp_path / "imagenet" / "val" / name) as image:
            wanted = adm_centre_by_arrays(image.convert("RGB"), size)
        # a mean over 2 x 2 pixels and Pillow's fixed-point box differ by one level now and then
        assert np.abs(images.load(i).astype(int) - wanted).max() <= 2


def test_imagenet_labels_number_the_sorted_classes_of_both_splits(tmp_path: Path) -> None:
    imagenet_at(tmp_path)
    assert ImageNet(tmp_path, "train").labels.tolist() == [0] * 3 + [1] * 3
    assert ImageNet(tmp_path, "test").labels.tolist() == [0] * 3 + [2] * 3


def test_random_crops_follow_the_generator_and_are_for_training_only(tmp_path: Path) -> None:
    imagenet_at(tmp_path)
    images = ImageNet(tmp_path, "train", crop="random")
    assert images.random and not ImageNet(tmp_path, "test", crop="random").random
    one, other, again = (images.load(2, np.random.default_rng(seed)) for seed in (1, 2, 1))
    assert one.shape == (3, 64, 64) and np.array_equal(one, again) and not np.array_equal(one, other)
    with pytest.raises(ValueError, match="generator"):
        images.load(0)


def test_random_crops_have_adms_scales(tmp_path: Path) -> None:
    """A picture that counts its own columns: the step from pixel to pixel tells the short side drawn."""
    ramp = np.repeat(np.linspace(0, 255, 256)[None], 256, 0)
    columns = Image.fromarray(np.stack([ramp] * 3, -1).round().astype(np.uint8))
    save(columns, tmp_path / "imagenet" / "train" / "n01" / "a.png")
    images, random = ImageNet(tmp_path, "train", image_size=64, crop="random"), np.random.default_rng(0)
    sides = set()
    for _ in range(200):
        row = images.load(0, random)[0, 32].astype(float)
        sides.add(round(255 / ((row[60] - row[4]) / 56)))
    largest = math.ceil(64 / 0.8)
    assert min(sides) in range(63, 67) and max(sides) in range(largest - 2, largest + 3)


# -- the other sets ----------------------------------------------------------------------------------------


def test_ffhq_splits_by_number_from_a_folder_or_a_zip(tmp_path: Path) -> None:
    for number in (7, 59999, 60000, 69999):
        name = f"{number // 1000:02d}000/{number:05d}.png"
        save(picture(32, 32, number), tmp_path / "a" / "ffhq" / name)
    (tmp_path / "b").mkdir()
    with zipfile.ZipFile(tmp_path / "b" / "ffhq.zip", "w") as file:
        for path in (tmp_path / "a" / "ffhq").rglob("*.png"):
            file.write(path, path.relative_to(tmp_path / "a" / "ffhq").as_posix())
    for split, wanted in {"train": ["00000/00007.png", "59000/59999.png"],
                          "test": ["60000/60000.png", "69000/69999.png"]}.items():
        folder, packed = (FFHQ(tmp_path / x, split, image_size=16, source_size=32) for x in "ab")
        assert [n for n, _ in folder.listing()] == [n for n, _ in packed.listing()] == wanted
        assert fingerprint(folder) == fingerprint(packed)
        assert np.array_equal(folder.load(1), packed.load(1)) and folder.load(1).shape == (3, 16, 16)


def test_ffhq_of_another_size_than_declared_is_refused(tmp_path: Path) -> None:
    save(picture(32, 32), tmp_path / "ffhq" / "00001.png")
    with pytest.raises(BadInput, match="32x32 pixels, but dataset.source_size = 1024"):
        FFHQ(tmp_path, "train").load(0)


def test_ffhq_originals_and_thumbnails_lie_side_by_side(tmp_path: Path) -> None:
    save(picture(128, 128), tmp_path / "ffhq" / "thumbnails128x128" / "00001.png")
    save(picture(256, 256), tmp_path / "ffhq" / "images256x256" / "00001.png")
    assert FFHQ(tmp_path, "train", source_size=128, image_size=64).load(0).shape == (3, 64, 64)
    with pytest.raises(BadInput, match="several pictures of one number"):
        FFHQ(tmp_path, "train").listing()


def test_a_damaged_zip_member_is_unreadable_and_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    save(picture(32, 32), tmp_path / "00001.png")
    (tmp_path / "ffhq").mkdir()
    packed = tmp_path / "ffhq" / "part.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.write(tmp_path / "00001.png", "00001.png")
    content = bytearray(packed.read_bytes())
    content[300] ^= 255
    packed.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"part.zip:00001.png"):
        FFHQ(tmp_path, "train", source_size=32).load(0)
    packed.write_bytes(b"no zip")
    with pytest.raises(BadInput, match="cannot be read as a zip"):
        FFHQ(tmp_path, "train").listing()


def test_an_image_folder_follows_its_subfolders(tmp_path: Path) -> None:
    save(picture(80, 60), tmp_path / "mine" / "train" / "deep" / "a.png")
    save(picture(60, 80), tmp_path / "mine" / "val" / "b.jpg")
    (tmp_path / "mine" / "train" / "notes.txt").write_text("no picture")
    assert [n for n, _ in ImageFolder(tmp_path, "train", folder="mine").listing()] == ["deep/a.png"]
    assert [n for n, _ in ImageFolder(None, "test", folder=str(tmp_path / "mine")).listing()] == ["b.jpg"]


def test_an_image_folder_without_subfolders_splits_by_name_also_when_it_grows(tmp_path: Path) -> None:
    for i in range(40):
        save(picture(8, 8, i), tmp_path / "mine" / f"{i}.png")

    def names(split: str) -> set[str]:
        return {n for n, _ in ImageFolder(tmp_path, split, folder="mine", test_share=0.3).listing()}

    train, test = names("train"), names("test")
    assert not train & test and len(train | test) == 40 and 4 <= len(test) <= 20
    save(picture(8, 8), tmp_path / "mine" / "new.png")
    assert names("train") >= train and names("test") >= test


def test_an_image_folder_crops_the_centred_square(tmp_path: Path) -> None:
    image = picture(250, 200)
    save(image, tmp_path / "mine" / "test" / "a.png")
    whole = ImageFolder(tmp_path, "test", folder="mine", image_size=200).load(0)
    assert np.array_equal(whole, np.asarray(image.crop((25, 0, 225, 200))).transpose(2, 0, 1))
    middle = ImageFolder(tmp_path, "test", folder="mine", image_size=128, crop_size=128).load(0)
    assert np.array_equal(middle, np.asarray(image.crop((61, 36, 189, 164))).transpose(2, 0, 1))


def test_a_listing_survives_a_symbolic_link_to_its_own_folder(tmp_path: Path) -> None:
    save(picture(8, 8), tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "loop").symlink_to(tmp_path / "mine")
    assert Folder(tmp_path / "mine").scan(None).names == ["a.png"]


def cifar_batch(seed: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (20, 3072), np.uint8), random.integers(0, 10, 20).tolist()


def test_cifar10_reads_python_and_binary_batches_alike_and_refuses_unknown_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hashlib

    monkeypatch.setattr(cifar10_module, "PER_BATCH", 20)
    monkeypatch.setattr(CIFAR10, "official_size", {"train": 100, "test": 20})
    data, labels = cifar_batch(0)
    python, binary = (tmp_path / x / "cifar10" / f"cifar-10-batches-{x}" for x in ("py", "bin"))
    python.mkdir(parents=True), binary.mkdir(parents=True)
    content = pickle.dumps({b"data": data, b"labels": labels}, protocol=3)
    (python / "test_batch").write_bytes(content)
    (binary / "test_batch.bin").write_bytes(np.column_stack([np.array(labels, np.uint8), data]).tobytes())
    unknown = CIFAR10(tmp_path / "py", "test")
    with pytest.raises(BadInput, match="not the published file"):
        unknown.load(0)
    monkeypatch.setitem(cifar10_module.MD5, "test_batch", hashlib.md5(content).hexdigest())
    one, other = CIFAR10(tmp_path / "py", "test"), CIFAR10(tmp_path / "bin", "test")
    assert np.array_equal(one.load(7), data[7].reshape(3, 32, 32))
    assert np.array_equal(other.load(7), one.load(7))
    assert one.labels.tolist() == other.labels.tolist() == labels
    assert fingerprint(one) == fingerprint(other) == "official"
    assert fingerprint(one.without(frozenset({"00003"}))) != "official"
    assert np.array_equal(one.without(frozenset({"00003"})).load(3), one.load(4))


def test_a_pickle_that_would_run_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hashlib

    content = pickle.dumps({b"data": os.getcwd, b"labels": []})
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    monkeypatch.setitem(cifar10_module.MD5, "test_batch", hashlib.md5(content).hexdigest())
    with pytest.raises(BadInput, match="asks for posix.getcwd"):
        CIFAR10(tmp_path, "test").load(0)


def test_cifar10_class_folders_are_never_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "official_size", {"train": 2, "test": 2})
    for i, name in enumerate(("cat", "airplane")):
        save(picture(32, 32, i), tmp_path / "cifar10" / "train" / name / "1.png")
    images = CIFAR10(tmp_path, "train", image_size=64)
    assert images.labels.tolist() == [0, 1] and images.load(1).shape == (3, 64, 64)
    assert not images.is_official()


@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_reads_idx_files_and_repeats_grey(folder: str, packed: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (5, 28, 28), np.uint8), random.integers(0, 10, 5, np.uint8)
    (tmp_path / folder).mkdir(parents=True)
    for name, array in {"t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte": labels}.items():
        content = struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        path = tmp_path / folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
    digits = MNIST(tmp_path, "test", image_size=28)
    assert np.array_equal(digits.load(4), np.stack([images[4]] * 3))
    assert digits.labels.tolist() == labels.tolist()
    assert MNIST(tmp_path, "test").load(0).shape == (3, 32, 32) and not digits.is_official()
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(BadInput, match="fetch it again"):
        MNIST(tmp_path, "test").read()
