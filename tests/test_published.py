"""Published numbers: the committed file, what may be held against what, and verdicts that say why not."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from report_records import METRICS, record

from bench.errors import BadInput
from bench.places import Places
from bench.protocol import wanted
from bench.published import (
    COLUMNS,
    FOREIGN,
    Match,
    Published,
    check,
    differences,
    filled,
    match,
    published_file,
    read_published,
)
from bench.report.spec import PublishedSpec, ReportSpec
from bench.results import DataRecord, Record, Value, load_records
from bench.suite import Suite
from bench.verify import (
    TOLERANCES,
    Tolerance,
    Verdict,
    cells,
    differing,
    print_verdicts,
    read_tolerance,
    summary,
    to_json,
    verdict_table,
    verify,
)

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "results" / "published.csv"
SPEC = PublishedSpec(system="vqvae-simplecnn",
                     variant="K={tokenizer.quantizer.codebook_size} D={tokenizer.quantizer.codebook_dim}")
EMA = SPEC.model_copy(update={"variant": SPEC.variant + " ema"})
WHOLE = {"train": DataRecord(fingerprint="official", images=162770, of=162770),
         "test": DataRecord(fingerprint="official", images=19962, of=19962)}
AS_PUBLISHED = {"dataset.name": "celeba", "dataset.image_size": 64, "tokenizer.hidden": 256, "train.steps": 500000}


def entries() -> tuple[Published, ...]:
    return read_published(COMMITTED)


def measured(column: str, number: float, main: str = "ours-1", **changes: Any) -> Value:
    """A value as the harness records it, from what the protocol says."""
    wish = wanted(column, main)
    known: dict[str, Any] = {
        "name": column, "metric": wish.metric.name, "number": number, "unit": "share" if "usage" in column else "",
        "direction": "higher", "images": 19962, "protocol": wish.protocol.name, "keywords": wish.metric.kwargs,
        "settings": {"prepare": wish.prepare, "revision": wish.metric.revision, "split": "test", "weights": "live"}}
    return Value.model_validate(known | changes)


def run(values: dict[str, Any], **changes: Any) -> Record:
    """A CelebA run of the published recipe; `fields` are added to its settings."""
    fields = AS_PUBLISHED | changes.pop("fields", {})
    return record("0123456789ab", values, seed=8888, **{"data": WHOLE, "fields": fields} | changes)


def entry(**changes: Any) -> Published:
    """One number, as the file would hold it."""
    known = next(e for e in entries() if e.id == "xyf25-vqvae-simplecnn-k512-d64-celeba64-rfid")
    if "text" in changes:
        changes.setdefault("value", float(changes["text"]))
    return replace(known, settings=(), **changes)


# -- the committed file ----------------------------------------------------------------------------------------


def test_the_committed_numbers_contradict_neither_themselves_nor_arithmetic() -> None:
    assert check(entries()) == []
    assert len(entries()) >= 1202


def test_the_committed_file_says_what_was_collected(request: pytest.FixtureRequest) -> None:
    collected = ROOT.parent / "shared" / "reference" / "published.csv"
    if not collected.is_file():
        pytest.skip("the collected table (../shared/reference/published.csv) is not here")
    with collected.open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    ours = {e.id: e for e in entries()}
    assert rows.keys() <= ours.keys()
    for name, row in rows.items():
        assert ours[name].value == float(row["value"]), name
        same = ("system", "variant", "dataset", "image_size", "metric", "protocol", "source", "table", "evidence")
        assert [getattr(ours[name], c) for c in same] == [row[c] for c in same]


def test_every_metric_that_is_published_has_a_tolerance() -> None:
    assert {e.metric for e in entries()} <= TOLERANCES.keys()


def test_a_protocol_is_ours_or_foreign_and_not_both() -> None:
    from bench.protocol import protocols

    assert not FOREIGN & set(protocols())


def test_shares_keep_the_digits_that_were_printed() -> None:
    shown = {e.id: e.shown() for e in entries()}
    assert shown["xyf24-vqvae-simplecnn-k512-d64-celeba64-usage-window"] == "56.05%"
    assert shown["xyf25-vqvae-simplecnn-k512-d4-celeba64-usage"] == "100.00%"
    assert shown["xyf25-vqvae-simplecnn-k16384-d64-imagenet64-usage"] == "3.00%"
    assert shown["wass-vq-ema-vqvae-k100000-imagenet256-usage"] == "3.0%"


def test_published_numbers_are_no_suite(tmp_path: Path) -> None:
    """results/ holds a folder per suite, and this one file."""
    with pytest.raises(BadInput, match="no records of a suite 'published'"):
        load_records("published", ROOT / "results")
    assert not (ROOT / "results" / "published").exists()


CONTRADICTIONS = [
    (lambda e: [replace(e, id="b"), replace(e, id="a", variant="other")], "sorted by id"),
    (lambda e: [replace(e, metric="usage", unit="share", value=56.05)], "between 0 and 1"),
    (lambda e: [replace(e, metric="psnr", value=3.0)], "between 5 and 60"),
    (lambda e: [replace(e, metric="perplexity", value=513.0)], "at most the codebook size, 512"),
    (lambda e: [replace(e, bits_per_image=2304.2)], "2304.0 bits"),
    (lambda e: [replace(e, bits_per_image=None)], "2304.0 bits"),
    (lambda e: [replace(e, protocol="xyfjason-2052")], "neither ours nor a foreign one"),
    (lambda e: [e, replace(e, id=e.id + "z", value=1.0)], "contradicts"),
]


@pytest.mark.parametrize("change, said", CONTRADICTIONS, ids=[said for _, said in CONTRADICTIONS])
def test_check_finds(change: Any, said: str) -> None:
    assert check([entry()]) == []
    assert any(said in sentence for sentence in check(change(entry())))


def test_what_is_quoted_from_elsewhere_may_differ_between_sources() -> None:
    one = entry(protocol="unknown")
    assert check([one, replace(one, id=one.id + "z", value=1.0)]) == []


# -- reading ---------------------------------------------------------------------------------------------------

ROW: dict[str, str] = {
    "id": "a", "system": "vqvae-simplecnn", "variant": "K=512 D=64", "dataset": "celeba", "image_size": "64", "split": "test",
    "n_images": "19962", "tokens": "256", "codebook_size": "512", "codebook_dim": "64", "bits_per_image": "2304",
    "metric": "usage", "value": "0.5605", "unit": "share", "protocol": "xyfjason-2024", "source": "arXiv:1234.5678",
    "table": "Table 1", "evidence": "read", "note": "", "doubt": "", "settings": "train.steps=500000; tokenizer.hidden=256"}


def written(path: Path, *rows: dict[str, str]) -> Path:
    file = path / "published.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue(), encoding="utf-8")
    return file


def test_a_row_is_read_as_it_stands(tmp_path: Path) -> None:
    (one,) = read_published(written(tmp_path, ROW | {"note": 'commas, and "quotes"'}))
    assert (one.value, one.text, one.decimals, one.tokens) == (0.5605, "0.5605", 4, 256)
    assert one.settings == (("train.steps", "500000"), ("tokenizer.hidden", "256"))
    assert one.note == 'commas, and "quotes"'
    (bare,) = read_published(written(tmp_path, ROW | dict.fromkeys(
        ("variant", "split", "n_images", "tokens", "codebook_size", "codebook_dim", "bits_per_image", "settings"), "")))
    assert (bare.n_images, bare.tokens, bare.codebook_size, bare.bits_per_image, bare.settings) == (None, None, None, None, ())


@pytest.mark.parametrize("column, cell", [
    ("value", ""), ("value", "1e400"), ("value", "nan"), ("value", "-1"), ("value", "0,5"), ("value", "56.05"), ("value", "٣"),
    ("value", "56%"), ("value", "1" * 400), ("id", ""), ("system", " a"), ("system", "a\x1b[31mb"), ("system", "a\nb"),
    ("n_images", "0"), ("n_images", "-3"), ("n_images", "many"), ("tokens", "2.5"), ("codebook_size", "9" * 40),
    ("bits_per_image", "inf"), ("metric", "usage@ours-1"), ("metric", "Usage"), ("evidence", "heard"), ("evidence", ""),
    ("unit", "%"), ("unit", ""), ("protocol", ""), ("source", ""), ("settings", "train.steps"), ("settings", "steps=3"),
    ("settings", "train.steps="), ("settings", "train.steps=1; train.steps=2"), ("dataset", ""),
])
def test_a_broken_cell_is_named_by_file_line_and_column(column: str, cell: str, tmp_path: Path) -> None:
    file = written(tmp_path, ROW, ROW | {"id": "b"} | {column: cell})
    with pytest.raises(BadInput) as said:
        read_published(file)
    assert str(said.value).startswith(f"{file}:3:{column} = ")
    assert len(str(said.value)) < 600 and "\x1b" not in str(said.value)


def test_other_broken_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "published.csv"
    header = ",".join(COLUMNS)
    for content, said in {
        b"": ":1: the file is empty",
        b"id,value\na,1\n": ":1: the columns have to be",
        f"{header}\na,b\n".encode(): ":2: 2 cells where 21",
        f"{header}\n{'a,' * 30}\n".encode(): ":2: 31 cells",
        f'{header}\n"a,b\n'.encode(): ":2: not a row of a CSV file",
        f"{header}\n\xe9\n".encode("latin-1"): ":2: not UTF-8",
        f"{header}\n<<<<<<< ours\n".encode(): ":2: 1 cells",
    }.items():
        file.write_bytes(content)
        with pytest.raises(BadInput, match=re.escape(f"{file}{said}")):
            read_published(file)
    with pytest.raises(BadInput, match=":3:id = 'a': line 2 has the same id"):
        read_published(written(tmp_path, ROW, ROW))
    with pytest.raises(BadInput, match="cannot be read"):
        read_published(tmp_path / "nothing.csv")


cell = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@given(st.dictionaries(st.sampled_from(COLUMNS), cell, max_size=4))
@example({"value": "0.5", "note": '",\r\n"'})
def test_any_row_is_read_back_exactly_or_refused_with_its_place(tmp_path_factory: pytest.TempPathFactory,
                                                                 cells: dict[str, str]) -> None:
    file = written(tmp_path_factory.mktemp("p"), row := ROW | cells)
    try:
        (one,) = read_published(file)
    except BadInput as error:
        assert str(error).startswith(f"{file}:2")
        return
    read = {c: getattr(one, c) for c in COLUMNS if c not in ("value", "settings")} | {"value": one.text}
    assert {c: "" if v is None else str(v) for c, v in read.items() if c != "bits_per_image"} == {
        c: v for c, v in row.items() if c not in ("bits_per_image", "settings")}


@given(st.from_regex(r"\A(0\.\d{1,6}|1\.0{0,4}|[01])\Z", fullmatch=True).filter(lambda t: not t.endswith(".")))
def test_a_share_is_shown_with_as_many_digits_as_were_printed(text: str) -> None:
    one = replace(entry(), metric="usage", unit="share", text=text, value=float(text))
    number, percent, rest = one.shown().partition("%")
    assert percent and not rest
    printed = max(len(text.partition(".")[2]) - 2, 0)
    assert len(number.partition(".")[2]) == printed
    assert float(number) == pytest.approx(100 * float(text), abs=0.5 * 10.0**-printed + 1e-12)


def test_what_changes_on_disk_is_read_again_and_what_does_not_is_not(tmp_path: Path) -> None:
    file = written(tmp_path, ROW)
    first = read_published(file)
    assert read_published(file) is first
    written(tmp_path, ROW, ROW | {"id": "b"})
    assert [e.id for e in read_published(file)] == ["a", "b"]


def test_the_results_folder_has_the_first_word_then_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path))
    assert Places.find().results == tmp_path
    assert published_file() == COMMITTED and read_published() == entries()
    own = written(tmp_path, ROW)
    assert published_file() == own and len(read_published()) == 1
    monkeypatch.setattr("bench.published.REPOSITORY", tmp_path / "nowhere")
    own.unlink()
    assert published_file() is None and read_published() == ()


# -- which number belongs to which run ------------------------------------------------------------------------


def test_a_template_is_filled_from_settings_or_does_not_apply() -> None:
    known = {"a.b": 512, "a.name": "vq", "a.c": True, "a.d": 0.5, "a.e": [8, 5, 5], "a.f": None, "a.g": 4e-4}
    assert filled("K={a.b} {a} {a.c} {a.d} {a.e} {a.f} {a.g}", known) == "K=512 vq true 0.5 [8,5,5] null 0.0004"
    assert filled("K={a.b} D={a.z}", known) is None and filled("{}", known) is None
    assert filled("f16", {}) == "f16"


@pytest.mark.parametrize("column", ["psnr", "ssim", "lpips"])
def test_a_published_number_under_another_protocol_does_not_match(column: str) -> None:
    """Ours rounds to 8 bits; the published ones did not. The same metric's name is not enough."""
    ours = run({column: measured(column, 0.9)})
    assert match(ours, column, (SPEC,), entries()) is None
    for protocol in ("xyfjason-2024", "xyfjason-2025"):
        assert match(ours, f"{column}@{protocol}", (SPEC,), entries()) is None


def test_a_number_matches_where_metric_keywords_and_preparation_are_those_of_its_protocol() -> None:
    ours = run({"a": measured("ssim@xyfjason-2024", 0.94), "b": measured("ssim@xyfjason-2025", 0.945)})
    for protocol, printed in (("xyfjason-2024", "0.9389"), ("xyfjason-2025", "0.9453")):
        found = match(ours, f"ssim@{protocol}", (SPEC,), entries())
        assert found is not None and found.entry.text == printed and found.value.name == f"ssim@{protocol}"
        assert found.exact and found.why == ()
    assert match(ours, "ssim", (SPEC,), entries()) is None
    assert match(ours, "ssim@llamagen", (SPEC,), entries()) is None


def test_equal_content_under_another_name_is_the_same_measurement() -> None:
    """Ours counts codes as the documents of 2025 do, so that the value is stored once, as `usage`."""
    ours = run({"usage": measured("usage", 0.56), "usage_window": measured("usage_window", 0.55)})
    for column, printed in {"usage": "0.5645", "usage@xyfjason-2025": "0.5645", "usage_window": "0.5605",
                            "usage_window@xyfjason-2024": "0.5605"}.items():
        found = match(ours, column, (SPEC,), entries())
        assert found is not None and found.entry.text == printed
    assert match(ours, "usage@xyfjason-2024", (SPEC,), entries()) is None


def test_every_difference_in_how_it_was_measured_is_named() -> None:
    published = next(e for e in entries() if e.id == "xyf25-vqvae-simplecnn-k512-d64-celeba64-ssim")
    alike = measured("ssim@xyfjason-2025", 0.9)
    assert differences(alike, published) == ()
    for keyword, other in {"size": 11, "sample_covariance": False, "window": "gaussian", "data_range": 510.0}.items():
        ours = alike.model_copy(update={"keywords": {**alike.keywords, keyword: other}})
        (said,) = differences(ours, published) or ()
        assert said.startswith(f"{keyword} ") and " instead of " in said
    for prepare in ({"round": "8bit"}, {"round": "none", "resize": 256}):
        ours = alike.model_copy(update={"settings": {**alike.settings, "prepare": prepare}})
        assert differences(ours, published)
    assert differences(alike.model_copy(update={"metric": "psnr"}), published)
    whole = alike.model_copy(update={"keywords": {**alike.keywords, "data_range": 255}})
    assert differences(whole, published) == ()          # 255 and 255.0 are one number
    older = alike.model_copy(update={"settings": {**alike.settings, "revision": 0}})
    assert differences(older, published) == ("revision 1 instead of 0",)
    assert differences(alike, replace(published, protocol="mgvq")) is None
    assert differences(alike, replace(published, protocol="unknown")) is None


def test_a_keyword_younger_than_the_record_has_its_neutral_value() -> None:
    from bench.registry import signature

    published = next(e for e in entries() if e.id == "xyf25-vqvae-simplecnn-k512-d64-celeba64-usage")
    value = measured("usage", 0.5)
    neutral = signature("metric", "usage").neutral
    stored = value.model_copy(update={"keywords": {k: v for k, v in value.keywords.items() if k not in neutral}})
    assert differences(stored, published) == ()
    without = value.model_copy(update={"keywords": {}})
    assert any("window" in said for said in differences(without, published) or ()), "window has no neutral value"


def test_a_protocol_that_no_file_describes_never_matches() -> None:
    values = {name: measured(name, 0.9) for name in ("psnr", "ssim", "lpips", "rfid", "usage")}
    fields = {"dataset.name": "imagenet", "dataset.image_size": 256}
    for system, variant in {(e.system, e.variant) for e in entries() if e.protocol in FOREIGN}:
        spec = PublishedSpec(system=system, variant=variant)
        for name in values:
            found = match(run(values, fields=fields), name, (spec,), entries())
            assert found is None or found.entry.protocol not in FOREIGN


@pytest.mark.parametrize("changes", [
    {"fields": {"dataset.name": "ffhq"}}, {"fields": {"dataset.image_size": 128}}, {"size": 513}, {"dim": 65},
    {"fields": {"tokenizer.quantizer.normalize": "codes"}}, {"fields": {"tokenizer.quantizer.entropy": True}},
    {"quantizer": "ema_vq"}, {"state": "failed", "reason": "out of memory"},
], ids=str)
def test_another_system_size_or_data_set_has_no_such_number(changes: dict[str, Any]) -> None:
    values = {"rfid": measured("rfid", 16.8)}
    assert match(run(values), "rfid", (SPEC,), entries()) is not None
    assert match(run(values, **changes), "rfid", (SPEC,), entries()) is None


def test_a_moving_average_finds_its_own_row_and_no_other() -> None:
    values = {"rfid": measured("rfid", 15.6)}
    ema, plain = run(values, quantizer="ema_vq"), run(values)
    for specs in ((SPEC, EMA), (EMA, SPEC)):
        assert match(ema, "rfid", specs, entries()).entry.text == "15.5629"
        assert match(plain, "rfid", specs, entries()).entry.text == "16.8227"


def test_a_spec_may_ask_for_one_protocol_and_name_another_data_set() -> None:
    ours = run({"rfid": measured("rfid", 16.8)}, fields={"dataset.name": "my_celeba"})
    assert match(ours, "rfid", (SPEC,), entries()) is None
    named = SPEC.model_copy(update={"dataset": "celeba"})
    assert {match(ours, "rfid", (named.model_copy(update={"protocol": p}),), entries()).entry.protocol
            for p in ("xyfjason-2024", "xyfjason-2025")} == {"xyfjason-2024", "xyfjason-2025"}


def test_numbers_on_the_training_split_are_no_counterpart() -> None:
    assert match(run({"rfid": measured("rfid", 1.0)}), "rfid", (SPEC,), [entry(split="train")]) is None
    assert match(run({"rfid": measured("rfid", 1.0)}), "rfid", (SPEC,), [entry(split="test")]) is not None


def said(changes: dict[str, Any], published: Published | None = None, **value: Any) -> Match:
    found = match(run({"rfid": measured("rfid", 16.8, **value)}, **changes), "rfid", (SPEC,),
                  entries() if published is None else [published])
    assert found is not None
    return found


def test_what_makes_a_pair_only_partly_comparable_is_said() -> None:
    assert said({}).exact
    for pair, sentence in (
        (said({}, images=705), "measured on 705 images instead of 19,962"),
        (said({"data": WHOLE | {"train": DataRecord(fingerprint="f", images=2822, of=162770)}}),
         "trained on 2,822 of 162,770 images"),
        (said({"fields": {"train.steps": 1500}}), "1,500 training steps instead of 500,000"),
        (said({"fields": {"tokenizer.hidden": 64}}), "tokenizer.hidden 64 instead of 256"),
        (said({}, entry(evidence="recalled")),
         "the published number is recalled from memory; look it up in its source before relying on it"),
        (said({}, entry(doubt="author flags as faulty")), "the published number is doubtful: author flags as faulty"),
    ):
        assert pair.obstacles == (sentence,) and not pair.comparable and not pair.exact
    for pair, sentence in (
        (said({"fields": {"train.seed": 1}}), "train.seed 1 instead of 8888"),
        (said({}, entry(evidence="image")), "the published number was read off an image"),
        (said({}, entry(n_images=None)), "on how many images the published number was measured is not stated"),
    ):
        assert pair.remarks == (sentence,) and pair.comparable and not pair.exact and pair.why == (sentence,)
    unstated = said({}, entry(n_images=None), images=705)
    assert unstated.obstacles == ("measured on 705 of 19,962 images",)


def test_better_evidence_and_fewer_obstacles_come_first() -> None:
    several = [entry(id="a", evidence="recalled", text="1.00"), entry(id="b", evidence="image", text="2.00"),
               entry(id="c", evidence="read", text="3.00"), entry(id="d", n_images=5, text="4.00")]
    assert said({}, None).entry.evidence == "read"
    ours = run({"rfid": measured("rfid", 16.8)})
    assert match(ours, "rfid", (SPEC,), several).entry.id == "c"
    assert match(ours, "rfid", (SPEC,), several[:2]).entry.id == "b"


# -- the suites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, columns", [
    ("celeba_codebook_size", {"usage", "usage_window", "rfid"}), ("celeba_codebook_dim", {"usage", "usage_window", "rfid"}),
    ("celeba_readme_table", {"usage", "usage_window", "perplexity_window", "rfid"})])
def test_every_run_of_the_celeba_suites_finds_its_row_of_the_published_table(
    name: str, columns: set[str], tmp_path: Path
) -> None:
    suite = Suite.load(ROOT / "suites" / f"{name}.yaml")
    runs = suite.expand(Places(tmp_path, tmp_path, tmp_path, tmp_path))
    rows = []
    for planned in runs:
        values = {w.name: measured(w.name, 0.9) for w in planned.values}
        trained = record(planned.train_id, values).model_copy(update={"fields": planned.fields, "data": planned.data})
        for column in columns:
            found = match(trained, column, suite.frame.report.published, entries())
            assert found is not None and found.exact, (planned.label, column, found and found.why)
            size, dim = (planned.fields[f"tokenizer.quantizer.codebook_{k}"] for k in ("size", "dim"))
            assert (found.entry.codebook_size, found.entry.codebook_dim) == (size, dim)
            assert ("ema" in found.entry.variant) == (planned.fields["tokenizer.quantizer.name"] == "ema_vq")
        rows.append(match(trained, "rfid", suite.frame.report.published, entries()).entry.text)
    expected = {"celeba_codebook_size": "16.8227 16.4965 16.5808", "celeba_codebook_dim": "16.3249 16.6592 16.4272 16.3970 16.8227",
                "celeba_readme_table": "16.8227 16.4965 16.5808 16.4272 16.3249 15.5629"}
    assert rows == expected[name].split()


# -- verdicts --------------------------------------------------------------------------------------------------

REPORT = ReportSpec(published=(SPEC, EMA))


def verdicts(values: dict[str, Any], *, tolerances: dict[str, Any] | None = None, **changes: Any) -> dict[str, Verdict]:
    return {v.column: v for v in verify([run(values, **changes)], REPORT, entries(), tolerances)}


def test_a_number_agrees_up_to_its_tolerance_and_half_a_digit_and_no_further() -> None:
    limit = 0.05 * 16.8227 + 0.00005
    for number, outcome in ((16.8227, "agrees"), (16.8227 + limit, "agrees"), (16.8227 - limit, "agrees"),
                            (16.8227 + limit + 1e-4, "differs"), (16.8227 - limit - 1e-4, "differs"), (1.0, "differs")):
        found = verdicts({"rfid": measured("rfid", number)})["rfid"]
        assert found.outcome == outcome and found.why == ()
        assert found.difference == pytest.approx(number - 16.8227) and found.tolerance == pytest.approx(limit)
    assert differing(verify([run({"rfid": measured("rfid", 1.0)})], REPORT, entries()))
    assert not differing(verify([run({"rfid": measured("rfid", 16.8)})], REPORT, entries()))


def test_a_tolerance_can_be_given() -> None:
    value = {"rfid": measured("rfid", 17.0)}
    assert verdicts(value)["rfid"].outcome == "agrees"
    assert verdicts(value, tolerances={"rfid": 0.1})["rfid"].outcome == "differs"
    assert verdicts(value, tolerances={"rfid": Tolerance(relative=0.001)})["rfid"].outcome == "differs"
    assert read_tolerance("psnr=0.2") == ("psnr", Tolerance(absolute=0.2))
    assert read_tolerance(" rfid = 5% ") == ("rfid", Tolerance(relative=0.05))
    for wrong in ("psnr", "psnr=", "psnr=a", "=1", "psnr=-1", "psnr=nan", "psnr=inf%", "pnsr=1", "psnr=1,5"):
        with pytest.raises(BadInput, match="--tolerance"):
            read_tolerance(wrong)
    for bad in ({"rfid": -1.0}, {"fid": 1.0}, {"rfid": math.nan}):
        with pytest.raises(BadInput, match="--tolerance"):
            verdicts(value, tolerances=bad)


def test_what_is_not_comparable_neither_agrees_nor_differs_however_near_it_is() -> None:
    near = verdicts({"rfid": measured("rfid", 16.8227, images=705)})["rfid"]
    assert near.words == "not comparable: measured on 705 images instead of 19,962"
    assert near.published is not None and near.difference == 0.0
    far = verify([run({"rfid": measured("rfid", 99.0, images=705)})], REPORT, entries())
    assert [v.outcome for v in far] == ["not comparable"] and not differing(far)
    other = verdicts({"psnr": measured("psnr", 31.5487)})["psnr"]
    assert other.words == "not comparable: published under xyfjason-2025: prepare.round none instead of 8bit"
    assert verdicts({"psnr": measured("psnr@xyfjason-2025", 31.5487)})["psnr@xyfjason-2025"].words == "agrees"


def test_a_recalled_number_is_no_reason_to_fail() -> None:
    found = verify([run({"rfid": measured("rfid", 99.0)})], REPORT, [entry(evidence="recalled")])
    assert [v.outcome for v in found] == ["not comparable"] and not differing(found)


def test_runs_and_values_without_a_counterpart_are_listed_with_the_reason() -> None:
    found = verdicts({"rfid": measured("rfid", 16.8), "perplexity": measured("perplexity", 250.0)})
    assert found["perplexity"].words == "no published number" and found["perplexity"].ours == 250.0
    (one,) = verify([run({"rfid": measured("rfid", 16.8)}, size=513)], REPORT, entries())
    assert one.column == "" and one.words == (
        "no published number: no number of vqvae-simplecnn K=513 D=64 on celeba 64 that the run could be; "
        "no number of vqvae-simplecnn K=513 D=64 ema on celeba 64 that the run could be")
    (silent,) = verify([run({"rfid": measured("rfid", 16.8)})], ReportSpec(), entries())
    assert "report.published" in silent.words
    typo = ReportSpec(published=(PublishedSpec(system="vqvae-simplecnn", variant="K={tokenizer.quantiser.size}"),))
    (missed,) = verify([run({"rfid": measured("rfid", 16.8)})], typo, entries())
    assert "names a setting that the run does not have" in missed.words
    (failed,) = verify([run({}, state="failed", reason="x")], REPORT, entries())
    assert failed.words == "no published number: the run is failed"


def test_counts_are_summed_up() -> None:
    found = verify([run({"rfid": measured("rfid", 16.8), "usage": measured("usage", 0.1), "usage_window": measured("usage_window", 0.2),
                         "psnr": measured("psnr", 31.0), "perplexity": measured("perplexity", 250.0)})], REPORT, entries())
    assert summary(found) == "1 agrees, 2 differ, 1 not comparable, 1 without a published number"
    assert summary([]) == "no runs"
    assert [v.column for v in found] == ["psnr", "rfid", "usage", "usage_window", "perplexity"]


def test_cells_of_a_share_are_per_cent() -> None:
    found = verdicts({"usage_window": measured("usage_window", 0.5505)})["usage_window"]
    assert cells(found) == ("vq 64/512 seed 8888", "usage_window", "55.05%", "56.05%", "-1.00%", "2.01%", "agrees")


@given(st.sampled_from(["recalled", "image"]), st.sampled_from(sorted(METRICS.keys() - {"tokens"})))
def test_the_mark_of_a_number_is_never_lost(evidence: Any, metric: str) -> None:
    """In whatever is printed of it: terminal, JSON, cells."""
    text = "7.25" if metric in ("psnr", "rfid", "perplexity", "perplexity_window") else "0.7531"
    base = next(e for e in entries() if e.metric == metric)
    one = replace(base, text=text, value=float(text), evidence=evidence, system="vqvae-simplecnn", variant="K=512 D=64",
                  dataset="celeba", image_size="64", split="test", settings=())
    shares = metric.startswith("usage")
    number = "75.31%" if shares else text
    marked = f"{number} ({'recalled' if evidence == 'recalled' else 'read off a figure'})"
    assert one.shown() == marked
    found = verify([run({metric: measured(metric, 0.5)})], REPORT, [one])
    assert [v.published for v in found] == [one]
    plain = json.dumps(cells(found[0]))
    assert marked in plain and number not in plain.replace(marked, "")
    shown = json.loads(to_json(found))[0]["published"]
    assert shown["shown"] == marked and shown["evidence"] == evidence


def test_the_terminal_shows_the_mark_and_the_source(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr("bench.verify.console", Console(width=200))
    hostile = entry(evidence="recalled", text="7.94", table="[bold]Table[/bold] 1")
    found = verify([run({"rfid": measured("rfid", 8.0)}, label="[red]label[/red]")], REPORT, [hostile])
    print_verdicts("suite", found)
    out = capsys.readouterr().out
    assert "7.94 (recalled)" in out and out.count("7.94") == 1
    assert "recalled from memory" in " ".join(out.split())
    assert "source: xyfJASON/visual-tokenizer-pytorch" in out and "[bold]Table[/bold] 1" in out and "[red]label[/red]" in out
    assert out.splitlines()[-1] == "1 not comparable"
    assert verdict_table("x", found).row_count == 1


def test_json_holds_numbers_words_and_the_source() -> None:
    found = verify([run({"rfid": measured("rfid", 16.8), "psnr": measured("psnr", 31.0)})], REPORT, entries())
    psnr, rfid = json.loads(to_json(found))
    assert rfid["ours"] == 16.8 and rfid["verdict"] == rfid["words"] == "agrees"
    assert rfid["published"]["number"] == 16.8227 and "xyfJASON" in rfid["published"]["source"]
    assert psnr["why"] and psnr["words"].startswith("not comparable: ")


def test_hundreds_of_runs_are_verified_quickly() -> None:
    import time

    values = {name: measured(name, 0.9) for name in ("psnr", "ssim", "lpips", "rfid", "usage", "usage_window", "perplexity")}
    many = [run(values)] * 200
    begun = time.perf_counter()
    assert len(verify(many, REPORT, entries())) == 1400
    assert time.perf_counter() - begun < 4.0
