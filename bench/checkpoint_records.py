"""Checkpoints that were trained elsewhere, measured exactly as runs are: one Record each, among those of the runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.binder import Measurement
from bench.build import pick_device
from bench.catalogue import Absent, CheckpointEntry, Found, load_checkpoint, locate
from bench.errors import BadInput
from bench.evaluate import Measured, depends_on_batch, measure
from bench.image_cache import decoded, open_split
from bench.load import Opened, described, open_checkpoint
from bench.places import Places
from bench.provenance import provenance
from bench.registry import signature
from bench.results import FILE, Component, Record, Value, read_records, write_records
from bench.run import Wanted, data_key, describe
from bench.runs import RunFolder
from bench.spec import ComponentSpec, Grown, flatten, identity
from bench.weights import FILES, missing, needed

BATCH = 64                  # images; changes numbers only where codes depend on the batch
NOT_HERE = "not measured: the pretrained network "     # begins a reason that may be gone tomorrow

Progress = Callable[[str, int, int], None]      # (label, images done, of all)


class CheckpointSpec(Grown):
    """All that can change what a checkpoint reconstructs; its identity stands where that of a training does."""

    neutral: ClassVar[Mapping[str, Any]] = {"batch_size": None}

    checkpoint: str | None                      # its name, only where its bytes are not known
    files: tuple[str, ...]                      # sha256 of each
    format: ComponentSpec | None
    model: ComponentSpec | None
    dataset: ComponentSpec
    test: str                                   # fingerprint of the test images
    batch_size: int | None = None               # only where codes depend on the batch

    @property
    def train_id(self) -> str:
        return identity(self)


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint on one set of images."""

    entry: CheckpointEntry
    found: Found | None                         # None: it is not on this machine
    on: Measurement

    @property
    def label(self) -> str:
        return self.entry.label or (self.found.label if self.found is not None else self.entry.checkpoint)


def measure_checkpoints(
    suite: str, entries: Sequence[CheckpointEntry], on: Sequence[Measurement], places: Places, *,
    batch_size: int = BATCH, device: str | None = None, progress: Progress | None = None,
) -> list[Record]:
    """Measure what is not measured yet and write it among the records of `suite`, each checkpoint as it is known.

    A listed checkpoint that is not on this machine, and a tokenizer that cannot be for this image size, give a record that
    is skipped with the reason; the former goes once the weights are there. Raises BadInput for what the user can mend: a
    file that is none, another format, images that are not here.
    """
    path = places.results / suite / FILE
    done: list[Record] = []
    for measurement in on:
        images: np.ndarray | list[np.ndarray] | None = None
        for entry in entries:
            known = {r.train_id: r for r in read_records(path)}
            try:
                row = Row(entry, locate(entry.checkpoint, places), measurement)
            except Absent as error:
                record = _absent(Row(entry, None, measurement), str(error), list(known.values()))
            else:
                if images is None:
                    images = _images(measurement, places)
                record = _measured(row, known, images, places, batch_size, device, progress)
            if twin := next((r for r in done if r.train_id == record.train_id), None):
                raise BadInput(f"{twin.label} and {record.label} are the same checkpoint with the same keywords; leave one "
                               f"out")
            done.append(record)
            kept = [r for r in known.values() if r.train_id != record.train_id and not _placeholder_of(r, record)]
            write_records(path, [*kept, record])
    return done


def asked_for(records: Sequence[Record], on: Sequence[Measurement]) -> list[Value]:
    """Of all that these records hold, what was asked for on these images."""
    wanted = [w for measurement in on for w in measurement.values]
    specs = (w.spec.model_copy(update={"train_id": r.train_id}) for r in records for w in wanted)
    values = {value_id: value for r in records for value_id, value in r.values.items()}
    return [values[spec.value_id] for spec in specs if spec.value_id in values]


def _images(on: Measurement, places: Places) -> np.ndarray | list[np.ndarray]:
    """uint8 [n, 3, H, W]; a list of [3, H, W] where each is in its own size."""
    try:
        opened = open_split(on.dataset.spec.partial(), "test", places)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from error
    if opened.dataset.native:
        return [opened.dataset.load(i) for i in range(len(opened.dataset))]
    return decoded(opened, data_key(on.dataset.spec), places)


def _parts(images: np.ndarray | list[np.ndarray], limit: int | None) -> list[np.ndarray]:
    """The first so many, those of one size together, in the order in which the sizes come."""
    if not isinstance(images, list):
        return [images[:limit]]
    sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in images[:limit]:
        sizes.setdefault(image.shape, []).append(image)
    return [np.stack(alike) for alike in sizes.values()]


def _placeholder_of(record: Record, other: Record) -> bool:
    """Whether a record only says that the weights of another one were absent."""
    same = all(record.fields.get(k) == other.fields.get(k) for k in ("checkpoint.name", "dataset.image_size"))
    return (record.state == "skipped" and record.spec.get("model", ...) is None and same
            and record.spec.get("dataset") == other.spec.get("dataset"))


def _absent(row: Row, reason: str, known: Sequence[Record]) -> Record:
    """The record of earlier numbers where there are some, measured where the weights were; else one without any."""
    spec = CheckpointSpec(checkpoint=row.entry.checkpoint, files=(), format=None, model=None, dataset=row.on.dataset.spec,
                          test=row.on.test.fingerprint)
    dataset = json.loads(row.on.dataset.spec.model_dump_json())
    for record in known:
        if record.trained and record.fields.get("checkpoint.name") == row.label and record.spec.get("dataset") == dataset:
            return record
    record = _record(row, spec, None, {}, "skipped", reason)
    by_hand = not all(file.url for file in load_checkpoint(row.entry.checkpoint).files)
    return record.model_copy(update={"provenance": record.provenance | {"absent": row.entry.checkpoint, "by_hand": by_hand}})


def _measured(
    row: Row, known: Mapping[str, Record], images: np.ndarray | list[np.ndarray], places: Places, batch_size: int, device: str | None,
    progress: Progress | None,
) -> Record:
    entry, on, found = row.entry, row.on, row.found
    assert found is not None
    shapes = list(dict.fromkeys(part.shape[-2:] for part in _parts(images, None)))
    try:
        opened, *more = (
            open_checkpoint(found, places, format=entry.format, image_size=h if h == w else (h, w), keywords=entry.tokenizer)
            for h, w in shapes)
    except BadInput:
        raise
    except (ValueError, TypeError) as error:    # Incompatible, or a constructor that refuses this image size
        spec = CheckpointSpec(checkpoint=row.label, files=(), format=None, model=None, dataset=on.dataset.spec,
                              test=on.test.fingerprint)
        why = "it takes square images only" if isinstance(error, TypeError) else str(error)
        return _record(row, spec, None, {}, "skipped", why)
    spec = CheckpointSpec(checkpoint=None, files=opened.files, format=opened.format, model=opened.model,
                          dataset=on.dataset.spec, test=on.test.fingerprint,
                          batch_size=batch_size if depends_on_batch(opened.tokenizer) else None)
    before = known.get(spec.train_id)
    values = {} if before is None else dict(before.values)
    wanted = {w.value_id: w for w in (
        w.model_copy(update={"spec": w.spec.model_copy(update={"train_id": spec.train_id})}) for w in on.values)}
    todo: dict[str, Wanted] = {}
    for value_id, w in wanted.items():
        here = values.get(value_id)
        if here is not None and not (here.number is None and (here.reason or "").startswith(NOT_HERE)):
            continue
        metric = w.spec.metric
        if absent := missing(needed(signature("metric", metric.name).attributes, metric.kwargs), places):
            why = f"{NOT_HERE}{' and '.join(FILES[name].file for name in absent)} was not there; `bench prepare` fetches it"
            values[value_id] = w.value(Measured(None, why, images=min(len(images), w.spec.images or len(images))))
        else:
            todo[value_id] = w
    began, where = time.monotonic(), pick_device(device)
    tokenizers = {shape: one.tokenizer.to(where) for shape, one in zip(shapes, (opened, *more), strict=True)}
    for limit in dict.fromkeys(w.spec.images for w in todo.values()):
        now = {i: w for i, w in todo.items() if w.spec.images == limit}
        tell = None if progress is None else lambda done, total: progress(row.label, done, total)
        part, *others = _parts(images, limit)
        numbers = measure(
            tokenizers[part.shape[-2:]], part, {i: w.spec.metric.partial()() for i, w in now.items()}, device=where,
            batch_size=batch_size, cache=places.cache, prepare={i: w.spec.prepare for i, w in now.items()}, progress=tell,
            others=[(tokenizers[other.shape[-2:]], other) for other in others])
        values |= {i: w.value(numbers[i]) for i, w in now.items()}
    if before is not None and not todo:
        return before.model_copy(update={"values": values, "label": row.label})
    return _record(row, spec, opened, values, "done", None, time.monotonic() - began)


def _record(
    row: Row, spec: CheckpointSpec, opened: Opened | None, values: Mapping[str, Value], state: Any, reason: str | None,
    seconds: float = 0.0,
) -> Record:
    listed = row.found.entry if row.found is not None else row.entry.listed
    title = row.entry.label or (listed.title if listed is not None else row.label)
    format = opened.format.name if opened is not None and opened.format is not None else None
    fields: dict[str, Any] = {"checkpoint.name": row.label, "checkpoint.format": format}
    if row.on.dataset.spec.kwargs.get("native"):
        fields["dataset.image_size"] = "native"
    if spec.batch_size is not None:
        fields["checkpoint.batch_size"] = spec.batch_size
    components = {"checkpoint": Component(name=row.label, title=title, source=None)}
    facts: dict[str, Any] = provenance() | {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
    if listed is not None:
        fields |= {"checkpoint.from_scratch": listed.from_scratch,
                   "checkpoint.pretrained": ", ".join(listed.pretrained) or None}
        facts |= {"weights": listed.link, "from_scratch": listed.from_scratch, "pretrained": list(listed.pretrained),
                  "license": listed.license, "paper": listed.paper or None}
    elif row.found is not None and row.found.link:
        facts["weights"] = row.found.link
    elif row.found is not None and (ours := _trained_here(row.found.path)) is not None:
        facts |= {key: ours.provenance[key] for key in ("from_scratch", "pretrained") if key in ours.provenance}
    layout: dict[str, Any] = {}
    parameters: dict[str, int] = {}
    if opened is not None:
        fields |= flatten({"tokenizer": opened.model})
        components |= {"tokenizer": describe(opened.model)}
        components |= {f"tokenizer.{path}": describe(part) for path, part in opened.model.nested()}
        layout, parameters = described(opened.tokenizer, opened.image_size)
    return Record(
        train_id=spec.train_id, label=row.label, state=state, reason=reason, debug=row.on.debug,
        spec=json.loads(spec.model_dump_json()), fields=row.on.dataset.fields | fields,
        components=row.on.dataset.components | components, layout=layout, parameters=parameters, values=dict(values),
        data={"test": row.on.test}, cost={"evaluate_seconds": seconds}, provenance=facts,
    )


def _trained_here(path: Path) -> Record | None:
    """What is recorded of the run of ours whose folder, or a checkpoint of which, this is."""
    folder = next((f for f in (path, path.parent.parent) if (f / "spec.json").is_file()), None)
    return None if folder is None else RunFolder(folder.parent, folder.name).record()
