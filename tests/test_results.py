"""Records: merging, reading, writing, and as a data frame."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import record, value

from bench.errors import BadInput
from bench.files import replace_file
from bench.results import Record, Value, load_records, read_records, union, write_records

STATES = st.sampled_from(["trained", "done", "failed", "skipped"])
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def records(draw: st.DrawFn, ids: str = "abcd") -> list[Record]:
    made = []
    for train_id in draw(st.lists(st.sampled_from(ids), max_size=5)):
        names = draw(st.lists(st.sampled_from(["psnr", "ssim", "usage"]), unique=True))
        made.append(record(train_id, {n: draw(NUMBERS) for n in names}, state=draw(STATES)))
    return made


@given(records())
@settings(max_examples=60, deadline=None)
def test_union_is_idempotent(some: list[Record]) -> None:
    once = union(some)
    assert union(once) == once and union(once, once) == once and union(some, once) == once


@given(records("abcd"), records("efgh"))
@settings(max_examples=40, deadline=None)
def test_union_of_disjoint_ids_is_commutative(some: list[Record], others: list[Record]) -> None:
    assert union(some, others) == union(others, some)


@given(records(), records())
@settings(max_examples=60, deadline=None)
def test_union_drops_no_run_no_value_and_no_measured_number(some: list[Record], others: list[Record]) -> None:
    merged = {r.train_id: r for r in union(some, others)}
    assert list(merged) == sorted({r.train_id for r in some + others})
    for r in some + others:
        for value_id, v in r.values.items():
            kept = merged[r.train_id].values[value_id]
            assert v.number is None or kept.number is not None


@given(records(), records())
@settings(max_examples=60, deadline=None)
def test_a_trained_run_is_never_replaced_by_a_failed_or_skipped_one(
    some: list[Record], others: list[Record]
) -> None:
    trained = {r.train_id for r in some + others if r.trained}
    assert {r.train_id for r in union(some, others) if r.trained} == trained


def test_a_later_source_wins_and_keeps_the_values_it_lacks() -> None:
    committed = record("a", {"psnr": 30.0, "ssim": 0.9}, label="committed")
    folder = record("a", {"psnr": 31.0}, label="folder")
    (merged,) = union([committed], [folder])
    assert merged.label == "folder"
    assert {v.name: v.number for v in merged.values.values()} == {"psnr": 31.0, "ssim": 0.9}


def test_a_number_is_not_lost_to_a_later_attempt_that_could_not_measure_it() -> None:
    without = value("rfid", None, reason="no Inception weights")
    (merged,) = union([record("a", {"rfid": 12.5})], [record("a", {"rfid": without})])
    assert [v.number for v in merged.values.values()] == [12.5]


def test_what_is_written_is_read_back_equal_sorted_and_one_line_a_run(tmp_path: Path) -> None:
    path = tmp_path / "suite" / "records.jsonl"
    some = [
        record("b", {"psnr": 1 / 3}),
        record("a", {"usage": 0.5}, state="failed", reason="line\nbreak \u2028 ü"),
    ]
    write_records(path, some)
    assert read_records(path) == sorted(some, key=lambda r: r.train_id)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert list(json.loads(line)) == sorted(json.loads(line))
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]


def test_rewriting_equal_records_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [record("b"), record("a")])
    before = path.stat()
    write_records(path, [record("a"), record("b")])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_lines_left_by_a_git_union_merge_are_read_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    some = [record(i, {"psnr": float(n)}) for n, i in enumerate("abcdef")]
    write_records(path, some)
    lines = path.read_text().splitlines() * 2
    random.Random(0).shuffle(lines)
    path.write_text("\n\n".join(lines))
    assert read_records(path) == some


def test_a_missing_file_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "records.jsonl") == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"train_id": "a", "label"', "not a record"),
        ("{}", "train_id: Field required"),
        ("<<<<<<< HEAD", "unfinished git merge"),
    ],
)
def test_a_broken_line_names_file_line_and_remedy(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [record("a")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput) as caught:
        read_records(path)
    assert (
        f"{path}:2:" in str(caught.value)
        and says in str(caught.value)
        and "git checkout" in str(caught.value)
    )


def test_a_number_that_is_not_finite_becomes_none_with_a_reason(tmp_path: Path) -> None:
    lost = value("rfid", math.nan)
    assert lost.number is None and "nan" in str(lost.reason)
    path = tmp_path / "records.jsonl"
    strange = record(
        "a", {"rfid": lost}, monitors={"usage": math.inf}, cost={"seconds": math.nan}, spec={"lr": [math.nan]}
    )
    unchecked = strange.model_copy(
        update={"values": {"x": Value.model_construct(**{**dict(lost), "number": -math.inf, "reason": None})}}
    )
    write_records(path, [strange, unchecked.model_copy(update={"train_id": "b"})])
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    first, second = read_records(path)
    assert (
        first.monitors == {"usage": None} and first.cost == {"seconds": None} and first.spec == {"lr": [None]}
    )
    assert first.provenance["not_finite"] == {
        "monitors.usage": "inf",
        "cost.seconds": "nan",
        "spec.lr.0": "nan",
    }
    assert second.values["x"].number is None and second.values["x"].reason


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(BadInput, match=r"cannot write records\.jsonl in the folder .*results/suite"):
        write_records(tmp_path / "results" / "suite" / "records.jsonl", [record("a")])


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.jsonl"
    assert replace_file(path, "old")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.files.os.replace", full)
    with pytest.raises(BadInput, match="No space left on device"):
        replace_file(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# -- the data frame ------------------------------------------------------------------------------------------


def test_a_frame_has_a_row_a_run_and_a_column_a_value(tmp_path: Path) -> None:
    write_records(
        tmp_path / "sizes" / "records.jsonl",
        [
            record("a", {"psnr": 30.0, "usage": 0.5}, size=512),
            record("b", state="failed", reason="not finite", size=1024),
        ],
    )
    frame = load_records("sizes", tmp_path)
    assert list(frame["train_id"]) == ["a", "b"] and list(frame["state"]) == ["done", "failed"]
    assert list(frame["tokenizer.quantizer.codebook_size"]) == [512, 1024]
    assert frame["psnr"][0] == 30.0 and math.isnan(frame["psnr"][1])
    assert frame["cost.seconds"][0] == 61.5 and frame["parameters.total"][0] == 1234567
    for place in ("sizes", "suites/sizes.yaml"):
        assert load_records(place, tmp_path).equals(frame)
    for path in (tmp_path / "sizes", tmp_path / "sizes" / "records.jsonl"):
        assert load_records(path).equals(frame)


def test_a_frame_keeps_numbers_of_different_conditions_in_different_columns(tmp_path: Path) -> None:
    write_records(
        tmp_path / "s" / "records.jsonl",
        [
            record("a", {"psnr": 30.0}),
            record("b", {"psnr": 31.0}),
            record("c", {"psnr": value("psnr", 25.0, protocol="llamagen")}),
        ],
    )
    frame = load_records("s", tmp_path)
    assert list(frame["psnr"][:2]) == [30.0, 31.0] and math.isnan(frame["psnr"][2])
    assert frame["psnr [protocol=llamagen]"][2] == 25.0


def test_an_unknown_suite_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    write_records(tmp_path / "celeba_codebook_size" / "records.jsonl", [record("a")])
    with pytest.raises(BadInput, match="did you mean celeba_codebook_size"):
        load_records("celeba_codebok_size", tmp_path)
