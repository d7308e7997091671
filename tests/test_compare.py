"""Two runs beside each other, and the statistics that tables and comparisons use: against scipy and by simulation."""

from __future__ import annotations

import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import CELEBA, record, value
from rich.console import Console

from bench.compare import compare, find_run, shown, to_json
from bench.errors import BadInput
from bench.places import Places
from bench.report.statistics import GROUPS, SINGLE, bootstrap_interval, indistinguishable, welch, win_rate
from bench.results import Record, Value, write_records
from bench.runs import RunFolder

# -- over runs -------------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=8)


@settings(max_examples=200, deadline=None)
@given(numbers, numbers)
def test_welch_equals_scipy(one: list[float], other: list[float]) -> None:
    if len(set(one)) == 1 and len(set(other)) == 1:
        assert welch(one, other) == (1.0 if one[0] == other[0] else 0.0)        # where scipy gives nan or warns
        return
    with warnings.catch_warnings(action="ignore"):
        wanted = scipy.stats.ttest_ind(one, other, equal_var=False).pvalue
    assert welch(one, other) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert indistinguishable(one, other) is bool(welch(one, other) >= 0.05)


def test_a_single_run_says_nothing_of_its_scatter() -> None:
    assert indistinguishable([1.0], [1.0, 2.0]) is None and indistinguishable([1.0, 2.0], []) is None
    assert indistinguishable([1.0, float("nan")], [1.0, 2.0]) is None
    assert indistinguishable([1.0, 1.1, 1.2], [1.1, 1.2, 1.3]) is True
    assert indistinguishable([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]) is False
    assert indistinguishable([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], alpha=1e-9) is True


def test_equal_runs_are_called_different_at_the_rate_alpha() -> None:
    rng = np.random.default_rng(0)
    told = [indistinguishable(rng.normal(0, 1, 4), rng.normal(0, 3, 5)) for _ in range(1000)]
    assert 0.02 < 1 - np.mean(told) < 0.09          # 0.05 at four standard errors and Welch's small-sample error


# -- over images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [40, 400, 4000])
@pytest.mark.parametrize("kind", ["normal", "skewed", "one outlier"])
def test_the_interval_equals_scipys_paired_bootstrap(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    a = rng.normal(20, 3, count)
    noise = {"normal": rng.normal(0.1, 1, count), "skewed": rng.lognormal(0, 1.5, count),
             "one outlier": np.r_[rng.normal(0, 0.1, count - 1), 30.0]}[kind]
    b = a + noise
    wanted = scipy.stats.bootstrap((a, b), lambda x, y, axis: (y - x).mean(axis), paired=True, vectorized=True,
                                   method="percentile", n_resamples=9999, batch=500, rng=1).confidence_interval
    error = noise.std() / np.sqrt(count)
    np.testing.assert_allclose(bootstrap_interval(b - a), wanted, atol=0.15 * error)


def test_grouping_neighbours_is_no_bias() -> None:
    """Means over seeds against drawing value by value: the two differ by less than their Monte Carlo error."""
    values = np.random.default_rng(0).lognormal(0, 1, 2 * SINGLE + GROUPS + 60)
    error = values.std() / np.sqrt(len(values))
    ours = np.mean([bootstrap_interval(values, seed=s, resamples=4000) for s in range(12)], axis=0)
    drawn = [values[np.random.default_rng(s).integers(0, len(values), (4000, len(values)))].mean(1) for s in range(12)]
    plain = np.mean([np.quantile(d, [0.025, 0.975]) for d in drawn], axis=0)
    np.testing.assert_allclose(ours, plain, atol=0.06 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    repeats, hits = 300, {"normal": 0, "skewed": 0}
    for _ in range(repeats):
        for kind, values, truth in (("normal", rng.normal(0.3, 1, 50), 0.3), ("skewed", rng.exponential(1, 50), 1.0)):
            low, high = bootstrap_interval(values, resamples=600, seed=int(rng.integers(2**31)))
            hits[kind] += low <= truth <= high
    assert 0.89 < hits["normal"] / repeats < 0.985          # 0.94 expected of 50 values, four standard errors
    assert 0.87 < hits["skewed"] / repeats < 0.98           # 0.92: percentiles are narrow where values are skewed


def test_the_interval_is_deterministic_and_as_fast_for_many_images() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50_000)
    started = time.perf_counter()
    found = bootstrap_interval(values)
    assert time.perf_counter() - started < 5, "under a second, but on a busy machine"
    assert found == bootstrap_interval(values[::-1]) == bootstrap_interval(list(values))
    assert found != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([0.5] * 300) == (0.5, 0.5)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide[0] < found[0] < narrow[0] < narrow[1] < found[1] < wide[1]
    for bad in ([1.0], [1.0, float("inf")], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="two finite"):
            bootstrap_interval(bad)


def test_the_win_rate_counts_ties_half() -> None:
    a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 5])
    assert (win_rate(a, b, "higher"), win_rate(a, b, "lower"), win_rate(a, b, "none")) == (0.625, 0.375, None)


# -- finding runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(results=tmp_path / "results", reports=tmp_path / "reports", runs=tmp_path / "runs", cache=tmp_path / "cache")


def keep(places: Places, suite: str, *records: Record) -> None:
    (places.results / suite).mkdir(parents=True, exist_ok=True)
    write_records(places.results / suite / "records.jsonl", records)


def measured(places: Places, run: Record, **per_image: Any) -> Record:
    """The run with a folder that holds numbers per image, and values that are their means."""
    folder = RunFolder(places.runs, run.train_id).create()
    values = dict(run.values)
    for name, given_numbers in per_image.items():
        array = np.asarray(given_numbers, float)
        value_id = f"{run.train_id}-{name}"
        values[value_id] = value(name, float(array.mean()), images=len(array))
        shuffled = np.random.default_rng(0).permutation(len(array))
        table = pa.table({"image": shuffled, "value": array[shuffled]})
        pq.write_table(table, folder.values / f"{value_id}.parquet")
    return run.model_copy(update={"values": values})


def test_runs_are_found_by_label_id_part_and_folder(places: Places) -> None:
    one, two = record("aaaa11112222", {"psnr": 1.0}, size=512), record("bbbb11112222", {"psnr": 2.0}, size=1024)
    keep(places, "sizes", one, two)
    keep(places, "other", record("cccc11112222", size=512))
    folder = RunFolder(places.runs, "dddd11112222").create()
    folder.write_record(record("dddd11112222", {"psnr": 4.0}, size=64))
    (folder.path / "spec.json").write_text("{}")
    for text, suites, wanted in (
        ("vq 64/1024 seed 1", (), "bbbb11112222"), ("sizes:vq 64/512 seed 1", (), "aaaa11112222"),
        ("vq 64/512 seed 1", ("sizes",), "aaaa11112222"), ("bbbb", (), "bbbb11112222"), ("64/1024", (), "bbbb11112222"),
        ("other:64/512", (), "cccc11112222"), ("dddd11112222", (), "dddd11112222"), (str(folder.path), (), "dddd11112222"),
    ):
        assert find_run(text, places, suites).record.train_id == wanted, text
    assert find_run("bbbb", places).name == "sizes:vq 64/1024 seed 1"
    with pytest.raises(BadInput, match="several runs: other:vq 64/512 seed 1 .cccc11112222., sizes:vq 64/512.*SUITE:LABEL"):
        find_run("vq 64/512 seed 1", places)
    with pytest.raises(BadInput, match="no run of the suites in .*'vq 64/1025 seed 1'; did you mean vq 64/1024 seed 1"):
        find_run("vq 64/1025 seed 1", places)
    with pytest.raises(BadInput, match="no records of a suite 'size'.*did you mean sizes"):
        find_run("aaaa", places, ["size"])
    (folder.path / "record.json").unlink()
    with pytest.raises(BadInput, match="has not ended"):
        find_run(str(folder.path), places)


def test_a_sanity_row_is_a_run_too(places: Places) -> None:
    keep(places, "sizes", record("a"))
    write_records(places.results / "sizes" / "sanity.jsonl", [record("identity", label="identity")])
    assert find_run("sizes:identity", places).record.train_id == "identity"


def test_a_value_that_only_the_folder_holds_is_seen(places: Places) -> None:
    keep(places, "sizes", record("a", {"psnr": 1.0}))
    RunFolder(places.runs, "a").create().write_value("later", value("ssim", 0.5))
    assert {v.name for v in find_run("sizes:vq", places).record.values.values()} == {"psnr", "ssim"}


# -- comparing -------------------------------------------------------------------------------------------------------


def both(places: Places, a: Record, b: Record) -> Any:
    keep(places, "s", a, b)
    return compare(find_run(a.train_id, places), find_run(b.train_id, places))


def row(comparison: Any, name: str) -> Any:
    return next(v for v in comparison.values if v.name == name)


def test_differences_come_with_paired_intervals_and_win_rates(places: Places) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(25, 4, 300)                                       # images differ far more than the runs do
    a = measured(places, record("aaaa", {"rfid": 9.0}), psnr=image, lpips=np.full(300, 0.5), ssim=image / 50)
    b = measured(places, record("bbbb", {"rfid": 7.5}, seed=2), psnr=image + rng.normal(0.2, 0.5, 300),
                 lpips=np.full(300, 0.5), ssim=image / 50 + rng.normal(0, 0.01, 300))
    found = both(places, a, b)
    psnr = row(found, "psnr")
    gain = _column(places, "bbbb", "psnr") - _column(places, "aaaa", "psnr")
    assert psnr.difference == pytest.approx(gain.mean()) and psnr.interval == pytest.approx(bootstrap_interval(gain))
    assert psnr.interval[0] < psnr.difference < psnr.interval[1]
    assert psnr.win_rate == pytest.approx((gain > 0).mean())
    assert psnr.distinguishable and psnr.better == "b" and psnr.images == 300 and psnr.note is None
    unpaired = scipy.stats.ttest_ind(_column(places, "aaaa", "psnr"), _column(places, "bbbb", "psnr")).pvalue
    assert unpaired > 0.3, "which only pairing can tell"
    ssim, lpips, rfid = (row(found, name) for name in ("ssim", "lpips", "rfid"))
    assert ssim.distinguishable is False and ssim.better is None
    assert (lpips.difference, lpips.interval, lpips.win_rate, lpips.distinguishable) == (0, (0, 0), 0.5, False)
    assert rfid.difference == -1.5 and rfid.interval is None and rfid.better is None and "whole split" in rfid.note

    text = _printed(found)
    for words in ("B is better", "not distinguishable", "rfid: no interval", "train.seed", "Only the seed differs",
                  "another training seed"):
        assert words in text
    data = json.loads(json.dumps(to_json(found)))
    assert [v["name"] for v in data["values"]] == ["lpips", "psnr", "rfid", "ssim"]
    assert data["values"][1]["better"] == "b" and data["settings"] == [{"key": "train.seed", "a": 1, "b": 2}]


def _column(places: Places, train_id: str, name: str) -> np.ndarray:
    table = pq.read_table(places.runs / train_id / "values" / f"{train_id}-{name}.parquet").to_pydict()
    return np.array(table["value"])[np.argsort(table["image"])]


def _printed(comparison: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(shown(comparison))
    return console.export_text()


def test_lower_is_better_where_the_metric_says_so(places: Places) -> None:
    numbers = np.linspace(0.1, 0.2, 50)
    found = both(places, measured(places, record("aaaa"), lpips=numbers),
                 measured(places, record("bbbb", dim=8), lpips=numbers + 0.01))
    assert row(found, "lpips").better == "a" and row(found, "lpips").win_rate == 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"images": 64}, "images = 300 against 64"),
    ({"settings": {"prepare": {"round": "none"}}}, "prepare.round = 8bit against none"),
    ({"keywords": {"channel": "y"}}, "channel = – against y"),
    ({"settings": {"weights": "average", "prepare": {"round": "8bit"}}}, "weights = live against average"),
])
def test_numbers_under_different_conditions_are_refused(places: Places, changes: dict[str, Any], words: str) -> None:
    base = {"images": 300, "settings": {"weights": "live", "prepare": {"round": "8bit"}}, "metric": "of mine"}
    found = both(places, record("aaaa", {"psnr": value("psnr", 20.0, **base)}),
                 record("bbbb", {"psnr": value("psnr", 21.0, **base | changes)}, size=1024))
    assert not found.values
    (name, reason), = found.refused
    assert name == "psnr" and reason.startswith("measured under different conditions: ") and words in reason
    assert "psnr: not compared, measured under" in " ".join(_printed(found).split())


def test_other_test_images_are_refused_and_other_training_images_are_not(places: Places) -> None:
    data = {"kind": "dataset", "name": "photos", "kwargs": {"image_size": 32, "train_images": 100}}
    a = record("aaaa", {"psnr": 20.0}, spec={"dataset": data})
    fewer = {**data, "kwargs": {"image_size": 32, "train_images": 50}}
    larger = {**data, "kwargs": {"image_size": 64, "train_images": 100}}
    assert row(both(places, a, record("bbbb", {"psnr": 21.0}, spec={"dataset": fewer})), "psnr").difference == 1
    found = both(places, a, record("cccc", {"psnr": 21.0}, spec={"dataset": larger}))
    assert "dataset.image_size = 32 against 64" in dict(found.refused)["psnr"]
    other = {**CELEBA, "test": CELEBA["test"].model_copy(update={"fingerprint": "f00000000000"})}
    b = record("dddd", {"psnr": 21.0}, spec={"dataset": data}, data=other)
    found = both(places, a.model_copy(update={"data": CELEBA}), b)
    assert "data.test = ba9876543210 against f00000000000" in dict(found.refused)["psnr"]


def test_a_keyword_that_came_later_counts_as_neutral(places: Places) -> None:
    """A record from before usage had at_least and zero_filled compares with one from after; another value does not."""
    before = value("usage", 0.5, keywords={"window": None})
    after = {"window": None, "at_least": 0.0, "zero_filled": False}
    a = record("aaaa", {"usage": before})
    assert row(both(places, a, record("bbbb", {"usage": value("usage", 0.7, keywords=after)})), "usage").b == 0.7
    var = value("usage", 0.6, keywords=after | {"at_least": 0.08})
    assert "at_least = 0.0 against 0.08" in dict(both(places, a, record("cccc", {"usage": var})).refused)["usage"]


def test_what_is_missing_is_said(places: Places) -> None:
    numbers = np.linspace(20, 25, 40)
    a = measured(places, record("aaaa", {"ssim": value("ssim", None, reason="NaN"), "usage": 0.5}), psnr=numbers)
    b = record("bbbb", {"psnr": value("psnr", 22.0, images=40), "ssim": 0.5, "perplexity": 3.0})
    found = both(places, a, b)
    assert "run folder of s:vq 64/512 seed 1" in row(found, "psnr").note and row(found, "psnr").difference is not None
    assert row(found, "ssim").difference is None and row(found, "ssim").note.endswith(": NaN")
    assert {name for name, _ in found.refused} == {"usage", "perplexity"}
    assert all("only" in reason for _, reason in found.refused)
    with pytest.raises(BadInput, match="the same run"):
        compare(find_run("aaaa", places), find_run("aaaa", places))


def test_no_interval_for_a_number_that_is_no_mean_or_of_other_images(places: Places) -> None:
    numbers = np.linspace(20, 25, 40)
    a, b = measured(places, record("aaaa"), psnr=numbers), measured(places, record("bbbb", dim=2), psnr=numbers + 1)
    odd = {k: Value.model_validate({**v.model_dump(), "number": 30.0}) for k, v in b.values.items()}
    note = row(both(places, a, b.model_copy(update={"values": odd})), "psnr").note
    assert "not the mean" in note and "64/512" not in note
    pq.write_table(pa.table({"image": np.arange(40) + 1, "value": numbers + 1}), places.runs / "bbbb/values/bbbb-psnr.parquet")
    assert "different images" in row(both(places, a, b), "psnr").note
    (places.runs / "bbbb/values/bbbb-psnr.parquet").write_bytes(b"PAR1 torn")
    assert "no numbers per image" in row(both(places, a, b), "psnr").note


def test_few_images_are_warned_of(places: Places) -> None:
    a, b = (measured(places, record(i, dim=d), psnr=np.arange(5.0) + d) for i, d in (("aaaa", 2), ("bbbb", 3)))
    assert "5 images are few" in row(both(places, a, b), "psnr").note


def test_settings_are_those_of_the_suite_the_spec_the_data_and_the_code(places: Places) -> None:
    spec = {"model": {"kind": "tokenizer", "name": "vqvae", "revision": 1, "kwargs": {"hidden": 32}}, "seed": 1, "freeze": []}
    later = {**spec, "model": {**spec["model"], "revision": 2}}
    del later["freeze"]
    a = record("aaaa", spec=spec, data=CELEBA, provenance={"commit": "c1", "dirty": False, "finished": "2026-01-01",
                                                           "versions": {"torch": "2.1"}})
    b = record("bbbb", spec=later, quantizer="ema_vq", fields={"tokenizer.quantizer.decay": 0.9},
               provenance={"commit": "c2", "dirty": False, "finished": "2026-01-02", "versions": {"torch": "2.2"}},
               data={**CELEBA, "train": CELEBA["train"].model_copy(update={"images": 2821, "left_out": ("1.jpg",)})})
    found = {s.key: (s.a, s.b) for s in both(places, a, b).settings}
    assert found == {
        "code.commit": ("c1", "c2"), "code.versions.torch": ("2.1", "2.2"), "data.train.images": (2822, 2821),
        "data.train.left_out": ([], ["1.jpg"]), "tokenizer.quantizer.decay": (None, 0.9),
        "tokenizer.quantizer.name": ("vq", "ema_vq"), "tokenizer.revision": (1, 2),
    }
