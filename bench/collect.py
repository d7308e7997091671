"""What remains of runs: a suite's records and curves, joined from the run folders. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BadInput
from bench.files import replace_file
from bench.places import Places
from bench.report.spec import ReportSpec
from bench.results import Record, read_records, union, write_records
from bench.run import Run
from bench.runs import RunFolder
from bench.suite import Suite, find_suite

CURVE_COLUMNS = ("train_id", "label", "step", "name", "value")


def records_file(places: Places, name: str) -> Path:
    return places.results / name / "records.jsonl"


def others(runs: Sequence[Run], places: Places, name: str) -> int:
    """How many recorded runs of this name have settings that the suite (with its overrides) does not ask for."""
    asked = {run.train_id for run in runs}
    return sum(r.train_id not in asked and "checkpoint.name" not in r.fields for r in read_records(records_file(places, name)))


def collect(name: str, runs: Sequence[Run], places: Places) -> list[Record]:
    """records.jsonl = union(what it holds, what the run folders hold); curves likewise. Returns all records."""
    path = records_file(places, name)
    found: list[Record] = []
    for run in runs:
        folder = RunFolder(places.runs, run.train_id)
        record = folder.record()
        if record is not None:
            found.append(record.model_copy(update={
                "label": run.label, "fields": run.fields, "components": run.components,
                "values": {**record.values, **folder.read_values()},
            }))
    records = union(read_records(path), found)
    if records:
        from bench.diagnostics import collect_diagnostics

        write_records(path, records)
        known = {r.train_id for r in records}
        _collect_curves(path.with_name("curves.parquet"), runs, places, known)
        collect_diagnostics(name, [run for run in runs if run.train_id in known], places)
    return read_records(path)                   # in the file's order of keys: what is rendered now is rendered tomorrow


def _collect_curves(path: Path, runs: Sequence[Run], places: Places, known: set[str]) -> None:
    """results/<suite>/curves.parquet: 200 points a run and name; only where it stays under 1 MiB."""
    import pyarrow.parquet as pq

    from bench.curves import read_curves, thinned

    rows: dict[str, list[tuple]] = {}
    if path.is_file():
        table = pq.read_table(path).to_pydict()
        for row in zip(*(table[c] for c in CURVE_COLUMNS), strict=True):
            rows.setdefault(row[0], []).append(row)
    for run in runs:
        points = thinned(read_curves(RunFolder(places.runs, run.train_id).curves))
        if points:
            rows[run.train_id] = [(run.train_id, run.label, *p) for p in points]
    everything = [row for train_id in sorted(rows) if train_id.partition("~")[0] in known for row in rows[train_id]]
    if everything and len(content := packed_curves(everything)) < 2**20:
        replace_file(path, content)


def packed_curves(rows: Sequence[tuple]) -> bytes:
    """A parquet of (train_id, label, step, name, value); of a run that others have trained too, also under
    <train_id>~<digest of the training>."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = dict(zip(CURVE_COLUMNS, zip(*rows, strict=True), strict=True))
    table = pa.table({
        "train_id": pa.array(arrays["train_id"]).dictionary_encode(), "label": pa.array(arrays["label"]).dictionary_encode(),
        "step": pa.array(arrays["step"], pa.int64()), "name": pa.array(arrays["name"]).dictionary_encode(),
        "value": pa.array(arrays["value"], pa.float32()),
    })
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def remember_suite(suite: Suite, places: Places) -> None:
    """results/<name>/suite.json: what `bench report` needs where the suite's file is not at hand."""
    frame = suite.frame
    content = {"name": suite.name, "question": frame.question, "report": frame.report.model_dump(mode="json"),
               "file": Path(suite.file).name, "overrides": suite.overrides}
    replace_file(places.results / suite.name / "suite.json", json.dumps(content, indent=1, sort_keys=True) + "\n")


def report_spec(given: str, places: Places) -> tuple[str, str, ReportSpec]:
    """(name, question, report) of a suite: from its file, else from what `run` remembered."""
    remembered = places.results / given / "suite.json"
    try:
        suite = Suite.load(find_suite(given))
        return suite.name, suite.frame.question, suite.frame.report
    except BadInput:
        if not remembered.is_file():
            raise
    content = json.loads(remembered.read_text())
    return content["name"], content["question"], ReportSpec.model_validate_json(json.dumps(content["report"]))
