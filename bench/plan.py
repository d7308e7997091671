"""What is there, what is missing, and what of it can start now. Torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import BadInput
from bench.files import replace_file
from bench.places import Places
from bench.provenance import source_digest
from bench.registry import source_closure
from bench.report.spec import ReportSpec
from bench.results import Record, read_records, union, write_records
from bench.run import Run, open_images
from bench.runs import Owner, RunFolder, State, server_time
from bench.suite import Suite, find_suite
from bench.weights import missing, sentence

Status = Literal["new", "resume", "measure", "running", "done", "stale", "failed", "skipped"]
TO_RUN = ("new", "resume", "measure", "failed")


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of a suite, as it stands."""

    run: Run
    status: Status
    note: str = ""
    record: Record | None = None
    state: State | None = None
    owner: Owner | None = None
    hours: float | None = None                  # estimate, from the speed of measured runs of the same model


def plan(runs: Sequence[Run], places: Places, name: str) -> list[Planned]:
    """How each run stands: run folders first, the committed records second."""
    lines = {r.train_id: r for r in read_records(records_file(places, name))}
    speeds = _speeds(lines.values())
    now = server_time(places.runs) if places.runs.is_dir() else 0.0
    return [_planned(run, places, lines.get(run.train_id), speeds, now) for run in runs]


def others(runs: Sequence[Run], places: Places, name: str) -> int:
    """How many recorded runs of this name have settings that the suite (with its overrides) does not ask for."""
    asked = {run.train_id for run in runs}
    return sum(r.train_id not in asked for r in read_records(records_file(places, name)))


def _planned(run: Run, places: Places, line: Record | None, speeds: dict[str, float], now: float) -> Planned:
    folder = RunFolder(places.runs, run.train_id)
    record = next(iter(union(*([r] for r in (line, folder.record()) if r is not None))), None)
    state, owner = folder.read_state(), folder.owner(now)
    known = {**(record.values if record else {}), **folder.read_values()}
    lacking = [w.name for w in run.values if w.value_id not in known or (known[w.value_id].number is None
               and known[w.value_id].reason is None)]
    speed = speeds.get(_speed_key(run.fields))
    hours = None if speed is None else run.train.steps * run.train.batch_size / speed / 3600
    rest = {"record": record, "state": state, "owner": owner}
    if owner is not None:
        return Planned(run, "running", str(owner), hours=hours, **rest)
    if record is not None and record.trained:
        weights = (folder.checkpoints / "final.pt").is_file()
        if not lacking and record.state == "trained" and weights:
            return Planned(run, "measure", "all is measured, but its record does not say so yet", **rest)
        if not lacking:
            old = record.provenance.get("sources")
            if old and old != run_digest(run):
                return Planned(run, "stale", "trained with other source code of its parts", **rest)
            return Planned(run, "done", **rest)
        if weights:
            return Planned(run, "measure", f"without {', '.join(lacking)}", **rest)
        return Planned(run, "new", f"its weights are not here and it lacks {', '.join(lacking)}", hours=hours, **rest)
    if record is not None and record.state == "skipped":
        return Planned(run, "skipped", record.reason or "", **rest)
    if record is not None:
        return Planned(run, "failed", record.reason or "", hours=hours, **rest)
    if any(folder.checkpoints.glob("step-*.pt")) or (folder.checkpoints / "final.pt").is_file():
        step = f"from step {state.step}" if state is not None else ""
        return Planned(run, "resume", step, hours=hours, **rest)
    return Planned(run, "new", hours=hours, **rest)


def _speed_key(fields: dict[str, object]) -> str:
    kept = {k: v for k, v in fields.items() if k.startswith("tokenizer.") and "quantizer" not in k}
    return json.dumps({**kept, "size": fields.get("dataset.image_size")}, sort_keys=True, default=str)


def _speeds(records: Iterable[Record]) -> dict[str, float]:
    """Images per second of trained runs, by model and image size; the slowest counts."""
    speeds: dict[str, float] = {}
    for record in records:
        speed = record.cost.get("images_per_second")
        if record.trained and speed:
            key = _speed_key(record.fields)
            speeds[key] = min(speed, speeds.get(key, speed))
    return speeds


def run_digest(run: Run) -> str:
    """Digest of the source files of a run's components, with what they import from this project."""
    files = [Path(source) for c in run.components.values() if (source := c.source) is not None]
    return source_digest(source_closure(files))


# -- before anything starts --------------------------------------------------------------------------------------------


def writable(places: Places) -> None:
    """Raises BadInput naming the first folder that cannot be written, and how to choose another."""
    for folder, option in ((places.results, "--results or BENCH_RESULTS"), (places.runs, "--runs or BENCH_RUNS"),
                           (places.reports, "--reports or BENCH_REPORTS"), (places.cache, "BENCH_CACHE")):
        _writable(folder, option)


def preflight(planned: Sequence[Planned], places: Places) -> None:
    """Everything that would stop a run tonight, said now: images and pretrained weights. Raises BadInput."""
    todo = [p.run for p in planned if p.status in TO_RUN]
    for run in {json.dumps(r.train.dataset.content(), default=str, sort_keys=True): r for r in todo}.values():
        for split in ("train", "test"):
            open_images(run, split, places)
    networks = sorted({name for run in todo for w in run.values for name in w.spec.networks})
    if absent := missing(networks, places):
        values = dict.fromkeys(w.name for run in todo for w in run.values if set(absent) & set(w.spec.networks))
        raise BadInput(sentence(absent, places, values))


def _writable(folder: Path, option: str) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another folder with {option}") from error


# -- what remains ------------------------------------------------------------------------------------------------------


def records_file(places: Places, name: str) -> Path:
    return places.results / name / "records.jsonl"


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
        write_records(path, records)
        _collect_curves(path.with_name("curves.parquet"), runs, places, {r.train_id for r in records})
    return records


def _collect_curves(path: Path, runs: Sequence[Run], places: Places, known: set[str]) -> None:
    """results/<suite>/curves.parquet: 200 points a run and name; only where it stays under 1 MiB."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from bench.curves import read_curves, thinned

    columns = ("train_id", "label", "step", "name", "value")
    rows: dict[str, list[tuple]] = {}
    if path.is_file():
        table = pq.read_table(path).to_pydict()
        for row in zip(*(table[c] for c in columns), strict=True):
            rows.setdefault(row[0], []).append(row)
    for run in runs:
        points = thinned(read_curves(RunFolder(places.runs, run.train_id).curves))
        if points:
            rows[run.train_id] = [(run.train_id, run.label, *p) for p in points]
    everything = [row for train_id in sorted(rows) if train_id in known for row in rows[train_id]]
    if not everything:
        return
    arrays = dict(zip(columns, zip(*everything, strict=True), strict=True))
    table = pa.table({
        "train_id": pa.array(arrays["train_id"]).dictionary_encode(), "label": pa.array(arrays["label"]).dictionary_encode(),
        "step": pa.array(arrays["step"], pa.int64()), "name": pa.array(arrays["name"]).dictionary_encode(),
        "value": pa.array(arrays["value"], pa.float32()),
    })
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    if buffer.tell() < 2**20:
        replace_file(path, buffer.getvalue())


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
