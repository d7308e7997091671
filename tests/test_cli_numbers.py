"""The commands about numbers, as a user types them, on two small trained runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import Bench, suite
from inception_file import write_random_inception

from bench.places import Places
from bench.results import Record, read_records
from bench.runs import RunFolder
from bench.samples import save_samples
from bench.suite import Suite


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    folder = tmp_path_factory.mktemp("numbers")
    weights = folder / "weights"
    weights.mkdir()
    write_random_inception(weights)
    bench = Bench(folder, folder / "cache", {"BENCH_WEIGHTS": str(weights), "TORCH_HOME": str(folder)}, stub=False)
    content = suite(name="numbers", seeds=[0, 1], sanity=["identity", "mean_colour"])
    content["base"]["measure"]["values"] = ["usage", "psnr", "ssim@llamagen", "psnr@llamagen", "psnr@optvq"]
    content["report"]["tables"] = [{"name": "main", "rows": ["tokenizer.quantizer"], "over": "seed",
                                    "columns": ["usage", "psnr", "psnr@llamagen", "ssim@llamagen", "psnr@optvq"]}]
    path = bench.write(content, "numbers")
    out = bench("run", str(path), "--launcher", "debug")
    assert "identity" in out and "reconstructions.png" in out
    return bench, path


def test_one_pass_measures_every_dialect_and_the_sanity_rows(trained: tuple[Bench, Path]) -> None:
    bench, _ = trained
    home = bench.folder / "results" / "numbers"
    for record in read_records(home / "records.jsonl"):
        values = {v.name: v for v in record.values.values()}
        assert values.keys() == {"usage", "psnr", "ssim@llamagen", "psnr@optvq"}       # psnr@llamagen is psnr
        assert values["ssim@llamagen"].protocol == "llamagen" and values["ssim@llamagen"].keywords["data_range"] == 510
        assert values["psnr@optvq"].number > values["psnr"].number                      # studio range adds 1.32 dB
    rows = {r.fields["sanity"]: {v.name: v.number for v in r.values.values()} for r in read_records(home / "sanity.jsonl")}
    assert rows["identity"]["psnr"] == 100 and rows["identity"]["ssim@llamagen"] == pytest.approx(1, abs=1e-6)
    assert 5 < rows["mean_colour"]["psnr"] < 20
    table = (bench.folder / "reports" / "numbers" / "table.md").read_text()
    assert "PSNR (llamagen)" in table and "identity" in table.lower()
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| EMA")]
    assert lines[0][3].split("<")[0] == lines[0][4].split("<")[0]                       # one number in both columns


def test_diff_names_the_setting_and_pairs_the_images(trained: tuple[Bench, Path]) -> None:
    bench, _ = trained
    one, other = (r.train_id for r in read_records(bench.folder / "results" / "numbers" / "records.jsonl"))
    out = bench("diff", one, other)
    assert "train.seed" in out and "psnr" in out and "bootstrap" in out
    said = json.loads(bench("diff", one, other, "--json").rpartition("\n}")[0] + "\n}")
    assert json.dumps(said).count("train.seed") and "psnr" in json.dumps(said)
    assert "are the same run" in bench("diff", one, one, code=2)
    assert "nobody" in bench("diff", one, "nobody", code=2)


def test_verify_says_that_nothing_is_published(trained: tuple[Bench, Path]) -> None:
    bench, path = trained
    out = bench("verify", str(path))
    assert "no published number" in out
    assert "tolerance" in bench("verify", str(path), "--tolerance", "psnr:1", code=2)
    elsewhere = bench.folder / "elsewhere"
    shutil.copytree(bench.folder / "results" / "numbers", elsewhere / "numbers")
    (elsewhere / "published.csv").write_text("not,what,it,has,to,be\n")
    out = bench("verify", str(path), "--results", str(elsewhere), code=2)
    assert "elsewhere/published.csv:1: the columns have to be" in out, "the published numbers beside the records count"


def test_sanity_measures_a_further_row_and_nothing_twice(trained: tuple[Bench, Path]) -> None:
    bench, path = trained
    out = bench("sanity", str(path), "--row", "identity", "--row", "jpeg")
    assert "JPEG" in out
    assert "did you mean identity" in bench("sanity", str(path), "--row", "identty", code=2)
    first = {r.fields["sanity"] for r in read_records(bench.folder / "results" / "numbers" / "sanity.jsonl")}
    assert first == {"identity", "mean_colour", "jpeg"}, "the rows that were there stay"
    bench("report", str(path))
    assert "JPEG" in (bench.folder / "reports" / "numbers" / "table.md").read_text()


def test_reconstructions_are_saved_and_scored(trained: tuple[Bench, Path]) -> None:
    """The originals score 0 against themselves; what is saved of a run has the PSNR that was measured."""
    bench, path = trained
    folder = bench.folder / "samples"
    bench("eval", str(path), "--launcher", "debug", "--save-npz", str(folder))
    files = {file.stem: np.load(file)["arr_0"] for file in folder.glob("*.npz")}
    stem, = (name for name in files if name.startswith("originals-photos-32px-"))
    original = files.pop(stem)
    assert original.dtype == np.uint8 and original.shape[1:] == (32, 32, 3) and len(files) == 2
    records = {r.train_id: r for r in read_records(bench.folder / "results" / "numbers" / "records.jsonl")}
    for name, pictures in files.items():
        squares = np.square(pictures.astype(float) - original).mean((1, 2, 3)) / 255**2
        measured = next(v.number for v in records[name[-12:]].values.values() if v.name == "psnr")
        assert -10 * np.log10(squares).mean() == pytest.approx(measured, abs=1e-6)
    reference = str(folder / f"{stem}.npz")
    said = bench("score", reference, reference, "--json", seconds=300)
    values = json.loads(said[said.index("{"): said.rindex("}") + 1])["values"]
    assert values["fid"] == pytest.approx(0, abs=1e-5) and values["precision"] == values["recall"] == 1
    assert "not trained yet" in bench("eval", str(path), "train.steps=21", "--launcher", "debug", "--save-npz", str(folder), code=2)


def test_each_set_of_test_images_has_its_own_originals(trained: tuple[Bench, Path]) -> None:
    """Fewer images, or others, are not what the other runs' samples are to be scored against; what is impossible is left out."""
    bench, path = trained
    places = Places.find(results=bench.folder / "results", runs=bench.folder / "runs")
    [run] = Suite.load(path, ["seeds=[0]"]).expand(places)
    few = run.model_copy(update={"values": tuple(
        w.model_copy(update={"spec": w.spec.model_copy(update={"images": 40})}) for w in run.values)})
    [never] = Suite.load(path, ["seeds=[7]"]).expand(places)
    folder = RunFolder(places.runs, never.train_id).create()
    folder.write_record(Record(train_id=never.train_id, label=never.label, state="skipped", reason="impossible", spec={}, fields={}))
    written = save_samples([run, few, never], places, bench.folder / "sets", device="cpu")
    counts = {file.name: len(np.load(file)["arr_0"]) for file in written if file.name.startswith("originals-")}
    assert sorted(counts.values()) == [40, 512]


def test_a_device_that_is_none_is_told(trained: tuple[Bench, Path]) -> None:
    bench, _ = trained
    out = bench("score", "a.npz", "b.npz", "--device", "gpu", code=2)
    assert out.startswith("--device gpu: not on this machine") and "Traceback" not in out
