"""What is said under a table: averaging, conditions, images, stamp. Torch-free."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.report.grouping import ABSENT, Arranged, canonical, over_value, plain
from bench.report.model import Column
from bench.results import DataRecord, Record
from bench.weights import FILES


def table_notes(
    arranged: Arranged, runs: Sequence[Record], columns: Sequence[Column], over: Sequence[str], common_n: int
) -> list[str]:
    """Sentences on the whole table."""
    if not runs:
        return ["No run has a record yet."]
    notes = []
    if all(r.debug for r in runs):
        notes.append("Debug runs of a few steps: these numbers say nothing about the tokenizers.")
    if common_n:
        notes.append(_averaging(runs, over, common_n))
    if arranged.added:
        headings = {k.resolved: k.heading for k in arranged.keys}
        shown = ", ".join(headings[k].rstrip(".") for k in arranged.added)
        notes.append(f"Columns added because runs differ in them, which are never averaged: {shown}.")
    for key, values in arranged.unseen.items():
        notes.append(f"Rows also differ in {key}: {_few(values)}.")
    notes += _how_trained(runs)
    notes += _other_code(runs)
    notes += _how_measured(runs, columns)
    if units := [f"{c.title} in {c.unit}" for c in columns if c.unit not in ("", "share") and c.measured]:
        notes.append(f"Units: {', '.join(units)}.")
    for split in ("train", "test"):
        if files := sorted({f for r in runs if split in r.data for f in r.data[split].left_out}):
            notes.append(f"Left out as unreadable ({split}): {_few(files)}.")
    if any(c.direction != "none" for c in columns) and len(arranged.groups) > 1:
        notes.append("Bold: best; underlined: second best (of unrounded means).")
    return notes


def _averaging(runs: Sequence[Record], over: Sequence[str], n: int) -> str:
    which = []
    for key in over:
        values = {canonical(v): v for r in runs if (v := over_value(r, key)) is not ABSENT}
        if values:
            shown = _few([plain(v) for v in sorted(values.values(), key=lambda v: (str(type(v)), v))])
            which.append(f"{key.rpartition('.')[2]} {shown}")
    over_what = f" ({'; '.join(which)})" if which else ""
    if n == 1:
        return f"One run a row{over_what}, n = 1 unless noted."
    return f"Mean ± sample standard deviation over n = {n} runs{over_what}, unless noted."


def _how_trained(runs: Sequence[Record]) -> list[str]:
    """Length of training and the tokenizer's own settings, where all trained runs share them: a short run says so."""
    runs, words = [r for r in runs if r.trained], []
    if not runs:
        return []
    lengths = {(r.fields.get("train.steps"), r.fields.get("train.batch_size")) for r in runs}
    steps, batch = lengths.pop() if len(lengths) == 1 else (None, None)
    if isinstance(steps, int) and isinstance(batch, int):
        words.append(f"trained for {steps:,} steps of {batch:,} images")
    own = [k for k in runs[0].fields if k.count(".") == 1 and k.startswith("tokenizer.") and k != "tokenizer.name"]
    same = [k for k in own if len({canonical(r.fields.get(k)) for r in runs}) == 1]
    words += [f"{k.partition('.')[2]} {plain(runs[0].fields[k])}" for k in same]
    return [f"Each run: {', '.join(words)}."] if words else []


def _other_code(runs: Sequence[Record]) -> list[str]:
    """Runs whose code was not the one that was submitted, or changed between two of their lives."""
    notes = []
    for key, what in (("submitted", "trained with code that changed after submission"),
                      ("earlier", "continued with other code than before")):
        lives = [found if isinstance(found, list) else [found] for r in runs if r.trained
                 and (found := r.provenance.get(key))]
        if lives:
            said = sorted({word for life in lives for facts in life for word in _facts(facts)})
            few = "1 run was" if len(lives) == 1 else f"{len(lives)} runs were"
            notes.append(f"{few} {what}{f' ({_few(said)})' if said else ''}.")
    return notes


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """What differed, in words: commit, uncommitted changes, Python, packages."""
    words = {"commit": "commit", "diff": "uncommitted changes", "python": "Python"}
    return [word for key, word in words.items() if key in facts] + list(facts.get("versions", {}))


def _how_measured(runs: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    """Protocols, and a window's fill and ceiling."""
    notes = []
    shown_names = {c.key for c in columns}
    fewer = {f"{v.images:,} of {r.data['test'].images:,}" for r in runs if r.trained and "test" in r.data
             for v in r.values.values() if v.name in shown_names and v.number is not None
             and v.images < r.data["test"].images}
    if fewer:
        notes.append(f"Measured on the first {_few(sorted(fewer))} test images.")
    notes += _other_networks(runs, columns)
    named: dict[str, list[str]] = {}
    for column in columns:
        every = [v for r in runs if r.trained for v in r.values.values() if v.name == column.key]
        values = [v for v in every if v.number is not None]
        for protocol in sorted({v.protocol for v in values}):
            named.setdefault(protocol, []).append(column.title)
        details = sorted({k for v in values if v.window is not None for k in v.details})
        spans = [(k, [x for v in values if (x := v.details.get(k)) is not None]) for k in details]
        if parts := [f"{k} {_span(numbers)}" for k, numbers in spans if numbers]:
            notes.append(f"{column.title}: {', '.join(parts)}.")
    if len(named) == 1:
        notes.insert(0, f"Measuring protocol: {next(iter(named))}.")
    elif named:
        shown = [f"{protocol} ({', '.join(titles)})" for protocol, titles in named.items()]
        notes.insert(0, f"Measuring protocols: {'; '.join(shown)}.")
    return notes


def _other_networks(runs: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    """Numbers of a network whose file is not the published one, byte for byte, are comparable among themselves only."""
    found: dict[str, list[str]] = {}
    for column in columns:
        networks = {(name, known) for r in runs if r.trained for v in r.values.values() if v.name == column.key
                    for name, known in v.settings.get("networks", {}).items()}
        for name, known in sorted(networks):
            if name not in FILES or known != FILES[name].prefix:
                found.setdefault(f"{name} {known}", []).append(column.title)
    return [f"{', '.join(titles)}: with a weight file that is not the published one ({network})."
            for network, titles in found.items()]


def _span(numbers: Sequence[float]) -> str:
    low, high = (f"{int(x):,}" if x == int(x) else f"{x:.6g}" for x in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def _few(items: Sequence[str], most: int = 6) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def count_of(data: DataRecord) -> str:
    return f"{data.images:,} of {data.of:,}" if data.of is not None else f"{data.images:,}"


def images_text(records: Sequence[Record]) -> str:
    """'train: 2,822 of 162,770 images; test: 705 of 19,962'; '' where no run recorded any."""
    parts = []
    for split in ("train", "test"):
        found = [r.data[split] for r in records if split in r.data]
        used = sorted({(d.images, d.of or 0, d.fingerprint): d for d in found}.items())
        if used:
            shown = [count_of(d) for _, d in used]
            alike = [f"{count_of(d)} ({d.fingerprint[:8]})" for _, d in used]
            parts.append(f"{split}: {' and '.join(shown if len(set(shown)) == len(shown) else alike)}")
    if not parts:
        return ""
    return "; ".join([f"{parts[0]} images", *parts[1:]])


def stamp(runs: Sequence[Record], suite: str) -> str:
    """Where the table comes from: suite, identity, commits, date of the last run, images."""
    commits = sorted({str(c)[:12] + ("+dirty" if r.provenance.get("dirty") else "")
                      for r in runs if (c := r.provenance.get("commit"))})
    images = {images_text([r]) for r in runs} - {""}
    used = "images: see footnotes" if images else "images not recorded"
    used = images.pop() if len(images) == 1 else used
    parts = [f"suite {suite}" if suite else "", f"identity {identity(runs)}",
             f"commit {_few(commits, 4)}" if commits else "commit unknown",
             _latest([str(f) for r in runs if (f := r.provenance.get("finished"))]) or "no date",
             f"{len(runs)} run{'' if len(runs) == 1 else 's'}",
             used]
    return " · ".join(p for p in parts if p)


def identity(runs: Iterable[Record]) -> str:
    """12 hex of the sha256 over the sorted training and value ids: which results these are."""
    ids = sorted({i for r in runs for i in (r.train_id, *r.values)})
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]


def _latest(dates: Sequence[str]) -> str:
    """Day of the last of these ISO times; one without a zone is in UTC, whatever this machine's zone is."""

    def moment(text: str) -> tuple[float, str]:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return -math.inf, text
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp(), text

    return max(dates, key=moment, default="")[:10]
