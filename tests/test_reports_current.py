"""Committed reports are what the committed records render to, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.collect import report_spec
from bench.places import Places
from bench.report.render import render_suite
from bench.results import read_records

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted(p for p in (ROOT / "results").glob("*/records.jsonl")
                 if p.parent.name != "quickstart" and not p.parent.name.endswith("-debug"))     # what git ignores


@pytest.mark.parametrize("records", RECORDS, ids=lambda p: p.parent.name)
def test_committed_tables_are_rendered_again_byte_for_byte(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    places = Places.find(results=ROOT / "results", reports=tmp_path)
    name, question, report = report_spec(records.parent.name, places)
    written = render_suite(name, read_records(records), report, question, tmp_path,
                           sanity=read_records(records.with_name("sanity.jsonl")))
    assert written
    for path in written:
        assert path.read_bytes() == (ROOT / "reports" / name / path.name).read_bytes(), path.name


def test_there_are_committed_records() -> None:
    assert RECORDS
