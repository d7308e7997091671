"""Baselines that are measured beside the runs: what they reconstruct, what they cost, and that nothing is measured twice."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import bench.sanity
from bench.baselines.jpeg import JPEG
from bench.baselines.kmeans_patches import KMeansPatches
from bench.baselines.mean_colour import MeanColour
from bench.baselines.webp import WebP
from bench.errors import BadInput, Incompatible
from bench.places import Places
from bench.registry import available, resolve
from bench.results import Record, read_records, write_records
from bench.sanity import FILE, measure_sanity
from bench.suite import Suite
from bench.weights import FILES

ROOT = Path(__file__).resolve().parents[1]
ALL = ["identity", "mean_colour", "jpeg", "webp", "kmeans_patches"]


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Forty CelebA images, uint8 [40, 3, 64, 64], cropped to 140 and resized."""
    path = Path(os.environ.get("BENCH_SHARED") or ROOT.parent / "shared") / "data/celeba/test-00.tar"
    if not path.is_file():
        pytest.skip("the shared folder of real images is not here (BENCH_SHARED or ../shared)")
    found = []
    with tarfile.open(path) as tar:
        while len(found) < 40:
            member = tar.next()
            if member.isfile():
                picture = Image.open(tar.extractfile(member)).convert("RGB")
                left, top = (picture.width - 140) // 2, (picture.height - 140) // 2
                picture = picture.crop((left, top, left + 140, top + 140)).resize((64, 64), Image.Resampling.BILINEAR)
                found.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(found)


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    squares = np.square(one.astype(np.float64) - other.astype(np.float64)).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(squares, 1e-10 * 255**2))


# -- what they reconstruct ---------------------------------------------------------------------------------------------


def test_mean_colour_is_the_nearest_of_all_single_colours(faces: np.ndarray) -> None:
    baseline = MeanColour()
    baseline.fit(None, faces)
    coded, codes = baseline.reconstruct(torch.from_numpy(faces))
    assert codes is None and baseline.layout.bits_per_image == 24
    wanted = np.floor(faces.astype(np.float64).mean((2, 3)) + 0.5)
    assert (coded.numpy() == wanted[:, :, None, None]).all()
    here = psnr(faces, coded.numpy())
    assert all((here >= psnr(faces, np.clip(coded.numpy().astype(int) + d, 0, 255)) - 1e-9).all() for d in (-1, 1))


@pytest.mark.parametrize("kind, quality", [("jpeg", 1), ("jpeg", 12), ("jpeg", 95), ("webp", 0), ("webp", 40)])
def test_bits_are_those_of_the_files_without_what_is_equal_in_all(kind: str, quality: int, faces: np.ndarray) -> None:
    baseline = resolve("baseline", kind)(quality=quality)
    baseline.fit(None, faces)
    files = []
    for image in faces:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, kind.upper(), quality=quality)
        files.append(file.getvalue())
    if kind == "jpeg":                              # the scan follows its own header of 12 bytes behind the marker
        heads = {f[: f.index(b"\xff\xda") + 14] for f in files}
        assert len(heads) == 1 and all(f.endswith(b"\xff\xd9") for f in files)
        extra = len(heads.pop()) + 2
    else:                                           # 20 bytes of container, 3 of a frame's tag, start code and size
        assert len({f[23:30] for f in files}) == 1 and all(f[12:16] == b"VP8 " for f in files)
        extra = 27
    assert baseline.layout.bits_per_image == pytest.approx(np.mean([8 * (len(f) - extra) for f in files]), abs=1e-9)
    assert f"{np.mean([8 * len(f) for f in files]):,.0f} bits" in baseline.notes[0]
    coded, codes = baseline.reconstruct(torch.from_numpy(faces))
    assert codes is None and coded.shape == faces.shape and coded.dtype == torch.uint8
    for one, file in zip(coded, files, strict=True):
        assert (one.numpy() == np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("kind", [JPEG, WebP])
@pytest.mark.parametrize("target", [2304.0, 5000.0])
def test_the_quality_is_the_highest_that_does_not_exceed_the_target(kind: type, target: float, faces: np.ndarray) -> None:
    baseline = kind(bits=target)
    baseline.fit(None, faces)
    rates = {}
    for quality in (baseline.quality, baseline.quality + 1):
        fixed = kind(quality=quality)
        fixed.fit(None, faces)
        rates[quality] = fixed.layout.bits_per_image
    first, second = rates.values()
    assert baseline.layout.bits_per_image == first <= target < second
    assert baseline.label == f"{kind.title}, quality {baseline.quality}"


def test_a_rate_below_the_least_is_told(faces: np.ndarray) -> None:
    baseline = JPEG(bits=300.0)
    baseline.fit(None, faces)
    spent = baseline.layout.bits_per_image
    assert baseline.quality == 1 and spent > 300
    assert baseline.notes[1] == f"300 bits were wanted, {spent:,.0f} bits is the least"


def test_both_bits_and_quality_are_refused() -> None:
    with pytest.raises(BadInput, match="not both"):
        JPEG(bits=2304.0, quality=12)
    with pytest.raises(BadInput, match="expected 1 to 100"):
        JPEG(quality=0)


def test_patches_are_the_nearest_centres_and_codes_decode_to_the_same_image(faces: np.ndarray) -> None:
    baseline = KMeansPatches(patch=8, codebook_size=32)
    baseline.fit(faces[:30], faces[30:])
    test = torch.from_numpy(faces[30:])
    coded, codes = baseline.reconstruct(test)
    layout = baseline.layout
    assert (layout.num_tokens, layout.vocab_sizes, layout.grids) == (64, (32,), ((8, 8),))
    assert codes.shape == (10, 64, 1) and layout.bits_per_image == 320
    assert torch.equal(baseline.decode(codes), coded)
    tiles = {"".join(map(str, c.tolist())) for c in baseline.centres.int()}
    for n, row, column in ((0, 0, 0), (3, 2, 5), (9, 7, 7)):
        where = np.s_[n, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        patch = faces[30:][where].astype(np.float64).reshape(-1)
        distances = np.square(baseline.centres.numpy().astype(np.float64) - patch).sum(1)
        shown = coded.numpy()[where].astype(np.float64).reshape(-1)
        assert np.square(shown - patch).sum() == pytest.approx(distances.min())
        assert "".join(str(int(v)) for v in shown) in tiles


def test_centres_are_better_than_random_patches_and_the_same_again(faces: np.ndarray) -> None:
    baseline, again = (KMeansPatches(patch=8, codebook_size=32) for _ in range(2))
    baseline.fit(faces[:30], faces[30:])
    again.fit(faces[:30], faces[30:])
    assert torch.equal(baseline.centres, again.centres)
    learned = psnr(faces[30:], baseline.reconstruct(torch.from_numpy(faces[30:]))[0].numpy()).mean()
    patches = baseline._patches(torch.from_numpy(faces[:30])).float()
    again.centres = patches[torch.from_numpy(np.random.default_rng(0).permutation(len(patches))[:32])]
    drawn = psnr(faces[30:], again.reconstruct(torch.from_numpy(faces[30:]))[0].numpy()).mean()
    assert learned > drawn + 0.5


@pytest.mark.parametrize("bits, patch, size", [(384.0, 8, 64), (256.0 * 9, 4, 512), (100.0, 16, 76), (16 * 12.0, 16, 4096)])
def test_bits_alone_settle_the_patch_and_the_codebook(bits: float, patch: int, size: int) -> None:
    assert KMeansPatches(bits=bits)._settled(64) == (patch, size)
    assert (64 // patch) ** 2 * np.log2(size) <= bits < (64 // patch) ** 2 * np.log2(size + 1)


def test_what_cannot_be_learned_is_said(faces: np.ndarray) -> None:
    for given, why in (({"patch": 16, "codebook_size": 512}, "from 480 patches of 30 training images"),
                       ({"patch": 5, "codebook_size": 8}, "do not fill images of 64"),
                       ({"patch": 4, "codebook_size": 1 << 18}, "takes too long"), ({}, "no rate to match")):
        with pytest.raises(Incompatible, match=why):
            KMeansPatches(**given).fit(faces[:30], faces[30:])
    with pytest.raises(BadInput, match="together"):
        KMeansPatches(patch=4)


# -- measured as the runs are ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENCH_WEIGHTS folder with seeded random files for Inception and SqueezeNet."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), folder / FILES["lpips_squeeze"].file)
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
            network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=nothing)
        for parameter in network.parameters():
            if parameter.dim() == 4:
                torch.nn.init.kaiming_normal_(parameter)
        torch.save(network.state_dict(), folder / FILES["inception"].file)
    return folder


class Bench:
    """A suite of tiny tokenizers on photographs, and the places it works in."""

    def __init__(self, folder: Path, weights: Path | None = None) -> None:
        self.folder = folder
        self.places = Places(folder / "results", folder / "reports", folder / "runs", folder / "cache", weights=weights)

    def suite(self, *values: str, sizes: tuple[int, ...] = (16,), images: int = 12, sanity: Any = (), **changes: Any) -> Suite:
        data = {
            "name": "tiny", "question": "Is it sane?",
            "base": {
                "dataset": {"name": "photos", "image_size": 32, "train_images": 120, "test_images": images},
                "tokenizer": {"name": "vqvae", "hidden": 8, "quantizer": {"name": "vq", "codebook_size": 16, "codebook_dim": 4}},
                "objective": {"name": "reconstruction"}, "train": {"steps": 20, "batch_size": 8},
                "optimizers": {"tokenizer": {"name": "adam", "lr": 1e-3}},
                "measure": {"protocol": "ours-1-squeeze", "values": list(values or ("psnr", "usage"))}},
            "axes": {"tokenizer.quantizer.codebook_size": list(sizes)}, "sanity": sanity, **changes}
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return Suite.load(path)

    def measure(self, asked: list[Any], *values: str, **given: Any) -> list[Record]:
        return measure_sanity("tiny", self.suite(*values, **given).expand(self.places), asked, self.places, device="cpu")

    @property
    def file(self) -> Path:
        return self.places.results / "tiny" / FILE


@pytest.fixture
def bench_(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def numbers(record: Record) -> dict[str, float | None]:
    return {v.name: v.number for v in record.values.values()}


def test_identity_is_the_best_of_every_metric(tmp_path: Path, networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_WEIGHTS", str(networks))
    here = Bench(tmp_path, networks)
    row, = here.measure(["identity"], "psnr", "ssim", "lpips", "rfid", "usage")
    assert row.state == "done" and row.layout["bits_per_image"] == 24 * 32 * 32 and row.layout["bits_per_pixel"] == 24
    assert numbers(row) == {"psnr": 100.0, "ssim": pytest.approx(1, abs=1e-7), "lpips": pytest.approx(0, abs=1e-7),
                            "rfid": pytest.approx(0, abs=1e-3), "usage": None}
    reason, = (v.reason for v in row.values.values() if v.number is None)
    assert reason == "identity has no codes to count"
    assert all(v.images == 12 for v in row.values.values())


def test_rows_have_the_rates_of_the_tokenizers(bench_: Bench) -> None:
    rows = bench_.measure(["mean_colour", "jpeg", "kmeans_patches"], "psnr", "usage", "perplexity", sizes=(16, 64))
    assert [(r.fields["sanity"], r.layout.get("target_bits")) for r in rows] == [
        ("mean_colour", None), ("jpeg", 256.0), ("jpeg", 384.0), ("kmeans_patches", 256.0), ("kmeans_patches", 384.0)]
    for r in rows:
        assert r.state == "done" and r.components["tokenizer"].title == r.label and r.components["tokenizer"].source
        assert (r.provenance["note"] and "train" not in r.data) or r.fields["sanity"] == "kmeans_patches"
    assert all(r.layout["bits_per_image"] == r.layout["target_bits"] and r.layout["grids"] == [[8, 8]]
               and 0 < numbers(r)["usage"] <= 1 and r.parameters["codebook"] == 48 * r.layout["vocab_sizes"][0]
               for r in rows[3:])
    found = numbers(rows[0])["psnr"]
    images = bench_.suite(sizes=(16,)).expand(bench_.places)[0]
    pixels = bench.sanity._Images(images, bench_.places).test
    assert found == pytest.approx(psnr(pixels, np.floor(pixels.mean((2, 3), keepdims=True, dtype=np.float64) + 0.5)).mean())


def test_of_many_rates_three_are_matched(bench_: Bench) -> None:
    rows = bench_.measure([{"name": "webp"}], "psnr", sizes=(8, 16, 32, 64))
    assert [r.layout["target_bits"] for r in rows] == [192.0, 256.0, 384.0]
    assert all("of the 4 rates of the suite" in r.provenance["note"] for r in rows)
    row, = bench_.measure([{"name": "jpeg", "quality": 30}], "psnr", sizes=(8, 16, 32, 64))
    assert row.label == "JPEG, quality 30" and "target_bits" not in row.layout


def test_a_second_call_measures_nothing(bench_: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench_.measure(ALL)
    assert [r.fields["sanity"] for r in first] == ALL
    written = bench_.file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(bench.sanity, "measure", lambda *_, **__: pytest.fail("measured again"))
        patch.setattr(bench.sanity, "decoded", lambda *_, **__: pytest.fail("images opened again"))
        assert bench_.measure(ALL) == first
    assert bench_.file.read_bytes() == written
    assert {r.train_id: numbers(r) for r in read_records(bench_.file)} == {r.train_id: numbers(r) for r in first}


def test_no_row_takes_the_value_ids_of_a_run(bench_: Bench) -> None:
    """Whether somebody has asked the runs for their ids before, as planning does, changes nothing."""
    runs = bench_.suite(sizes=(16, 64)).expand(bench_.places)
    of_runs = {w.value_id for run in runs for w in run.values}
    row, = measure_sanity("tiny", runs, ["identity"], bench_.places, device="cpu")
    assert of_runs.isdisjoint(row.values) and sorted(numbers(row)) == ["psnr", "usage"] and len(row.values) == 2
    assert bench_.measure(["identity"], sizes=(16, 64)) == [row]


def test_only_what_is_new_is_measured(bench_: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench_.measure(["identity", "jpeg"])
    asked: list[int] = []
    real = bench.sanity.measure

    def counted(tokenizer: Any, images: Any, metrics: dict[str, Any], **given: Any) -> Any:
        asked.append(len(metrics))
        return real(tokenizer, images, metrics, **given)

    monkeypatch.setattr(bench.sanity, "measure", counted)
    after = bench_.measure(["identity", "jpeg"], "psnr", "usage", "ssim", "psnr@xyfjason-2025")
    assert asked == [1 + (len(r.values) - 3) for r in after]        # ssim, and the other protocol's PSNR if it differs
    assert [r.train_id for r in after] == [r.train_id for r in before]
    for old, new in zip(before, after, strict=True):
        assert old.values.items() <= new.values.items()


def test_other_test_images_are_measured_anew_and_old_rows_leave(bench_: Bench) -> None:
    before = bench_.measure(["identity", "mean_colour"])
    after = bench_.measure(["mean_colour"], images=13)
    assert {r.train_id for r in after}.isdisjoint(r.train_id for r in before)
    assert len(read_records(bench_.file)) == 3, "another data set's rows stay"
    again = bench_.measure(["mean_colour"])
    assert again == [before[1]] and {r.train_id for r in read_records(bench_.file)} == {before[1].train_id, after[0].train_id}


def test_a_missing_network_leaves_one_reason_and_is_asked_again(
    tmp_path: Path, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_WEIGHTS", str(networks))
    here = Bench(tmp_path, networks)
    with monkeypatch.context() as patch:
        patch.setattr(bench.sanity, "missing", lambda names, places: list(names))
        without, = here.measure(["mean_colour"], "psnr", "lpips")
        assert here.measure(["mean_colour"], "psnr", "lpips") == [without]
    assert numbers(without)["psnr"] is not None
    lpips, = (v for v in without.values.values() if v.number is None)
    assert lpips.name == "lpips" and lpips.images == 12
    assert lpips.reason.startswith("not measured: the pretrained network squeezenet1_1") and str(networks) not in lpips.reason
    row, = here.measure(["mean_colour"], "psnr", "lpips")
    assert row.values.keys() == without.values.keys() and None not in numbers(row).values()


def test_rates_of_recorded_runs_count_and_rates_nobody_has_leave(bench_: Bench) -> None:
    rows = bench_.measure(["jpeg"], "psnr", sizes=(16, 64))
    assert len(rows) == 2 == len(read_records(bench_.file))
    run = bench_.suite(sizes=(256,)).expand(bench_.places)[0]
    done = Record(train_id=run.train_id, label="recorded", state="done", spec=run.train.model_dump(mode="json"), fields={},
                  layout={"num_tokens": 64, "vocab_sizes": [256], "grids": [[8, 8]], "bits_per_image": 512.0})
    write_records(bench_.file.with_name("records.jsonl"), [done])
    again = bench_.measure(["jpeg"], "psnr", sizes=(16,))
    assert [r.layout["target_bits"] for r in again] == [256.0, 512.0] and again[0] == rows[0]
    assert {r.train_id for r in read_records(bench_.file)} == {r.train_id for r in again}


def test_replaced_test_images_are_measured_anew(bench_: Bench, faces: np.ndarray) -> None:
    root = bench_.folder / "data"
    for split, pictures in (("train", faces[:8]), ("test", faces[8:12])):
        (root / "mine" / split / "a").mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(root / f"mine/{split}/a/{i}.png")
    bench_.places = replace(bench_.places, data=root)
    dataset = {"name": "image_folder", "folder": "mine", "image_size": 32}

    def measured() -> Record:
        suite = bench_.suite("psnr", override=[{"match": {"train.steps": 20}, "set": {"dataset": dataset}}])
        return measure_sanity("tiny", suite.expand(bench_.places), ["mean_colour"], bench_.places, device="cpu")[0]

    before = measured()
    Image.new("RGB", (64, 64), "red").save(root / "mine/test/a/0.png")
    after = measured()
    assert after.train_id != before.train_id and numbers(after)["psnr"] > numbers(before)["psnr"] + 10
    assert read_records(bench_.file) == [after]


def test_what_cannot_be_had_is_a_skipped_row(bench_: Bench) -> None:
    row, = bench_.measure([{"name": "kmeans_patches", "patch": 16, "codebook_size": 400}])
    assert row.state == "skipped" and "cannot be learned from 480 patches" in row.reason and not row.values
    assert read_records(bench_.file) == [row]


# -- in a suite --------------------------------------------------------------------------------------------------------


def test_every_baseline_can_be_asked_for(bench_: Bench) -> None:
    assert available("baseline") == sorted(ALL)
    suite = bench_.suite(sanity=["identity", {"name": "jpeg", "bits": 2304}])
    assert [b.name for b in suite.baselines()] == ["identity", "jpeg"]
    assert suite.baselines()[1].kwargs["bits"] == 2304.0


@pytest.mark.parametrize("entry, said", [
    ("identty", "sanity.1.name = \"identty\": there is no baseline 'identty'; did you mean identity?"),
    ({"name": "jpeg", "qualty": 3}, "sanity.1.qualty = 3: jpeg has no such key; did you mean quality?"),
    ({"name": "jpeg", "quality": "3"}, "sanity.1.quality = \"3\": expected int | None; a number in quotes is text")])
def test_a_mistake_is_told_with_its_line(bench_: Bench, entry: Any, said: str) -> None:
    suite = bench_.suite(sanity=["identity", entry])
    lines = (bench_.folder / "tiny.yaml").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, start=1) if "identty" in text or "qualty" in text or "quality" in text)
    for call in (suite.baselines, lambda: suite.expand(bench_.places)):
        with pytest.raises(BadInput) as caught:
            call()
        assert str(caught.value) == f"{bench_.folder / 'tiny.yaml'}:{line}: {said}"


def test_the_command_line_can_ask(bench_: Bench) -> None:
    bench_.suite()
    suite = Suite.load(bench_.folder / "tiny.yaml", ["sanity=[identity, nothing]"])
    with pytest.raises(BadInput, match="^command line: sanity.1.name = \"nothing\": there is no baseline"):
        suite.expand(bench_.places)
