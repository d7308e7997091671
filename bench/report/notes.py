"""What is said under a table: averaging, conditions, images, stamp. Torch-free."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.report.columns import Built
from bench.report.grouping import ABSENT, Arranged, canonical, over_value, plain
from bench.report.lookup import same_content
from bench.report.model import ALIKE, DOUBTFUL
from bench.results import DataRecord, Record, Value
from bench.weights import FILES

FEW = 4         # with fewer runs a test finds large differences only


#: what is said of a window of codes; the other details are for figures
WINDOW = {"ceiling", "codes", "fill", "used"}


def table_notes(
    arranged: Arranged, runs: Sequence[Record], columns: Sequence[Built], over: Sequence[str], n: int
) -> list[str]:
    """Sentences on the whole table; `n` runs are behind most numbers."""
    if not runs:
        return ["No run has a record yet."]
    notes = []
    if all(r.debug for r in runs):
        notes.append("Debug runs of a few steps: these numbers say nothing about the tokenizers.")
    if n:
        notes.append(_averaging(runs, over, n))
    if arranged.added:
        headings = {k.resolved: k.heading for k in arranged.keys}
        shown = ", ".join(headings[k].rstrip(".") for k in arranged.added)
        notes.append(f"Columns added because runs differ in them, which are never averaged: {shown}.")
    notes += [f"Left out of the headers: {sentence}." for sentence in arranged.absent]
    for key, values in arranged.unseen.items():
        notes.append(f"Rows also differ in {key}: {_few(values)}.")
    notes += _how_trained(runs)
    notes += _other_code(runs)
    notes += _how_measured(columns)
    if units := [f"{b.column.title} in {b.column.unit}" for b in columns
                 if b.column.unit not in ("", "share") and b.column.measured]:
        notes.append(f"Units: {', '.join(units)}.")
    for split in ("train", "test"):
        if files := sorted({f for r in runs if split in r.data for f in r.data[split].left_out}):
            notes.append(f"Left out as unreadable ({split}): {_few(files)}.")
    notes += _signs(columns)
    return notes


def _signs(columns: Sequence[Built]) -> list[str]:
    """What bold, lines and signs mean, of those that are in the table."""
    notes, cells = [], [c for b in columns for c in (*b.cells, *b.sanity)]
    ranked = [b for b in columns if any(c.mark == "best" for c in b.cells)]
    if ranked or (any(b.column.direction != "none" for b in columns) and len(columns[0].cells) > 1):
        notes.append("Bold: best; underlined: second best (of unrounded means).")
    if any(c.alike for c in cells):
        few = min((c.n for b in ranked for c in b.cells if c.alike), default=0)
        weak = f"; of {few} runs that says little" if few < FEW else ""
        notes.append(f"{ALIKE}: not distinguishable from the best over its runs (Welch's t-test, p ≥ 0.05{weak}).")
    elif ranked and all(c.n == 1 for b in ranked for c, ok in zip(b.cells, b.comparable, strict=True) if ok):
        notes.append("Single runs: whether a difference is more than chance is not known.")
    if any(c.doubtful for c in cells):
        notes.append(f"{DOUBTFUL}: implausible, as its footnote says; not compared with the others.")
    if beside := [b for b in columns if b.column.kind == "difference"]:
        points = "; of shares in percentage points" if any(b.column.unit == "share" for b in beside) else ""
        notes.append(f"Difference: ours minus published, only where both were measured alike{points}.")
    if any(b.sanity for b in columns):
        notes.append("Last rows, in italics: no tokenizers but yardsticks, measured on the same images.")
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


def _how_measured(columns: Sequence[Built]) -> list[str]:
    """Protocols, and a window's fill and ceiling, of the numbers that are shown."""
    notes = []
    fewer = {f"{v.images:,} of {r.data['test'].images:,}" for b in columns for r, v in b.values
             if "test" in r.data and v.images < r.data["test"].images}
    if fewer:
        notes.append(f"Measured on the first {_few(sorted(fewer))} test images.")
    notes += _assigned_together(columns)
    notes += _other_networks(columns)
    for weights in sorted({str(v.settings.get("weights", "live")) for b in columns for _, v in b.values} - {"live"}):
        titles = [b.column.title for b in columns if any(v.settings.get("weights") == weights for _, v in b.values)]
        notes.append(f"Measured with {weights} weights, not those that training ended with: {', '.join(titles)}.")
    named: dict[str, list[str]] = {}
    for built in columns:
        title = built.column.title
        for protocol in sorted({_protocol(built, v) for _, v in built.values}):
            named.setdefault(protocol, []).append(title)
        windows = [v for _, v in built.values if v.window is not None]
        details = sorted({k for v in windows for k in v.details} & WINDOW)
        spans = [(k, [x for v in windows if (x := v.details.get(k)) is not None]) for k in details]
        if parts := [f"{k} {_span(numbers)}" for k, numbers in spans if numbers]:
            notes.append(f"{title}: {', '.join(parts)}.")
    if len(named) == 1:
        notes.insert(0, f"Measuring protocol: {next(iter(named))}.")
    elif named:
        shown = [f"{protocol} ({', '.join(titles)})" for protocol, titles in named.items()]
        notes.insert(0, f"Measuring protocols: {'; '.join(shown)}.")
    return notes


def _assigned_together(columns: Sequence[Built]) -> list[str]:
    """Which runs' codes depend on the batch that was measured, and of how many images it was."""
    found: dict[float, dict[str, None]] = {}
    for built in columns:
        for record, value in built.values:
            if (batch := value.details.get("batch")) is not None:
                found.setdefault(batch, {})[record.label] = None
    return [f"Codes assigned over batches of {int(batch):,} images together, so that those of an image depend on the "
            f"others: {_few(list(labels))}." for batch, labels in sorted(found.items())]


def _protocol(built: Built, value: Value) -> str:
    """The protocol that the column names, where the number is one of it, whatever it was stored under."""
    asked = built.asked
    if asked is not None and asked.wish is not None and same_content(value, asked.wish):
        return asked.protocol
    return value.protocol


def _other_networks(columns: Sequence[Built]) -> list[str]:
    """Numbers of a network whose file is not the published one, byte for byte, are comparable among themselves only."""
    found: dict[str, list[str]] = {}
    for built in columns:
        networks = {pair for _, v in built.values for pair in v.settings.get("networks", {}).items()}
        for name, known in sorted(networks):
            if name not in FILES or known != FILES[name].prefix:
                found.setdefault(f"{name} {known}", []).append(built.column.title)
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


def stamp(runs: Sequence[Record], suite: str, beneath: Sequence[Record] = ()) -> str:
    """Where the table comes from: suite, identity (of the yardsticks' numbers, too), commits, date of the last run,
    images."""
    commits = sorted({str(c)[:12] + ("+dirty" if r.provenance.get("dirty") else "")
                      for r in runs if (c := r.provenance.get("commit"))})
    images = {images_text([r]) for r in runs} - {""}
    used = "images: see footnotes" if images else "images not recorded"
    used = images.pop() if len(images) == 1 else used
    parts = [f"suite {suite}" if suite else "", f"identity {identity([*runs, *beneath])}",
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
