"""Yardsticks below a table: which, in which order, and what is said of each. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.grouping import plain
from bench.report.model import Header
from bench.report.spec import RowKey
from bench.results import Record


def yardsticks(records: Sequence[Record], runs: Sequence[Record]) -> list[Record]:
    """Those on test images of these runs, by kind and rising bits."""
    seen = {r.data["test"].fingerprint for r in runs if "test" in r.data}
    here = [r for r in records if not seen or "test" not in r.data or r.data["test"].fingerprint in seen]
    return sorted(here, key=lambda r: (
        str(r.fields.get("sanity", r.label)), r.layout.get("bits_per_image") or 0.0, r.label, r.train_id))


def yardstick_headers(records: Sequence[Record], keys: Sequence[RowKey]) -> list[tuple[Header, ...]]:
    """Label and explanation first; besides that only the data set is said, of all that heads the rows."""
    labels = [r.label for r in records]

    def headers(record: Record) -> tuple[Header, ...]:
        label = record.label
        if labels.count(label) > 1 and (dataset := record.components.get("dataset")) is not None:
            label += f" ({dataset.title})"
        note = record.provenance.get("note")
        return (Header(record.label, label, notes=(str(note),) if note else ()), *(_other(record, k) for k in keys[1:]))

    return [headers(r) for r in records]


def _other(record: Record, key: RowKey) -> Header:
    if key.resolved == "dataset" and (dataset := record.components.get("dataset")) is not None:
        return Header(dataset.name, dataset.title)
    if key.resolved.startswith("dataset.") and key.resolved in record.fields:
        return Header(record.fields[key.resolved], plain(record.fields[key.resolved]))
    return Header(None, "")
