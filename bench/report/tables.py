"""Records -> Table: one model of cells, marks, spans and footnotes, that every format renders. Torch-free.

Pure: the same records and spec give the same table, byte for byte, on any machine and day.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench.errors import BadInput
from bench.registry import signature
from bench.report.formats import terminal_table, to_csv, to_html, to_latex, to_markdown
from bench.report.grouping import (
    ABSENT,
    DASH,
    DATA,
    RUN,
    Arranged,
    Group,
    among,
    arrange,
    canonical,
    component_titles,
    plain,
)
from bench.report.model import (
    ARROWS,
    SECTIONS,
    Cell,
    Column,
    Direction,
    Header,
    Mark,
    Row,
    Table,
    is_property,
)
from bench.report.notes import count_of, images_text, stamp, table_notes
from bench.report.spec import ColumnKey, RowKey, TableSpec
from bench.results import Record, Value

__all__ = ["build_table", "terminal_table", "to_csv", "to_html", "to_latex", "to_markdown"]

BuiltColumn = tuple[Column, tuple[Cell, ...]]
STATIC = ("layout", "parameters")       # known of a run that failed, too

#: headings, and for numbers their (factor, decimals), of columns that are no measured values
DOTTED = {
    "parameters.total": ("parameters", 1, 0),
    "layout.bits_per_image": ("bits/image", 1, 0),
    "layout.num_tokens": ("tokens/image", 1, 0),
    "cost.train_seconds": ("training time (s)", 1, 0),
    "cost.seconds_per_step": ("ms/step", 1e3, 1),
    "cost.images_per_second": ("images/s", 1, 1),
    "cost.peak_memory_bytes": ("peak memory (GiB)", 2**-30, 2),
}


def build_table(records: Iterable[Record], spec: TableSpec, suite: str = "") -> Table:
    """The table of these runs. Debug runs are left out unless all are debug runs.

    Raises BadInput for a row key that no run has, and for a column key of an unknown kind.
    """
    all_runs = sorted(records, key=lambda r: r.train_id)
    runs = [r for r in all_runs if not r.debug] or all_runs
    over = spec.over_keys()
    arranged = arrange(runs, spec.row_keys(), over)
    built = [_column(key, arranged.groups, over) for key in spec.column_keys()]
    common_n = _common_n([cell for column, cells in built for cell in cells if column.measured])
    numbers = [_show_n(cells, common_n) if column.measured else cells for column, cells in built]
    headers = _headers(arranged, over)
    rows = [Row(h, tuple(cells[i] for cells in numbers)) for i, h in enumerate(headers)]
    lettered, footnotes = _lettered(rows)
    return Table(
        name=spec.name,
        title=spec.heading,
        caption=spec.caption,
        keys=tuple(Column(k.resolved, k.heading) for k in arranged.keys),
        columns=tuple(column for column, _ in built),
        rows=lettered,
        footnotes=footnotes,
        notes=tuple(table_notes(arranged, runs, [c for c, _ in built], over, common_n)),
        stamp=stamp(runs, suite),
    )


def _lettered(rows: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[tuple[str, str], ...]]:
    """Sentences at cells become marks a, b, ..., z, aa, ... in reading order; equal sentences share one."""
    marks: dict[str, str] = {}

    def mark(sentences: tuple[str, ...]) -> tuple[str, ...]:
        clean = [" ".join(s.split()) for s in sentences]
        letters = {marks.setdefault(s, _letters(len(marks))) for s in clean}
        return tuple(sorted(letters, key=lambda x: (len(x), x)))

    lettered = tuple(
        Row(tuple(replace(h, notes=mark(h.notes)) if h.notes else h for h in row.headers),
            tuple(replace(c, notes=mark(c.notes)) if c.notes else c for c in row.cells))
        for row in rows
    )
    return lettered, tuple((letter, sentence) for sentence, letter in marks.items())


def _letters(index: int) -> str:
    head, last = divmod(index, 26)
    return (_letters(head - 1) if head else "") + chr(ord("a") + last)


# -- row headers ---------------------------------------------------------------------------------------------


def _headers(arranged: Arranged, over: Sequence[str]) -> list[tuple[Header, ...]]:
    """Row headers with spans; sentences on the row are at its last header, which no other row shares."""
    groups, keys = arranged.groups, arranged.keys
    titles = {k.resolved: component_titles(groups, k.resolved) for k in keys}
    images_of = _training_images(groups) if DATA in titles else []
    table = [[_header(k, g, titles[k.resolved]) for k in keys] for g in groups]
    for j in (j for j, k in enumerate(keys) if k.resolved == DATA):
        for row, text in zip(table, images_of, strict=True):
            row[j] = replace(row[j], text=text)
    texts = [[canonical(g.fact(k.resolved)) for k in keys] for g in groups]
    for j in range(len(keys)):
        first = 0                                       # the row that carries the header of the rows below it
        for i in range(1, len(groups) + 1):
            if i == len(groups) or texts[i][: j + 1] != texts[first][: j + 1]:
                if i - first > 1:
                    table[first][j] = replace(table[first][j], span=i - first)
                first = i
            else:
                table[i][j] = replace(table[i][j], span=0)
    images = [images_text(g.records) for g in groups]
    several = len(set(images) - {""}) > 1
    for row, g, used in zip(table, groups, images, strict=True):
        notes = _ended(g, over) if any(r.trained for r in g.records) else []
        if several:
            notes.append(used or "which images were used is not recorded")
        if notes:
            row[-1] = replace(row[-1], notes=tuple(notes))
    return [tuple(row) for row in table]


def _header(key: RowKey, group: Group, titles: dict[Any, str]) -> Header:
    value = group.fact(key.resolved)
    if key.resolved == RUN:
        return Header(value, str(value)[:12])
    component = next((c for r in group.records if (c := r.components.get(key.resolved)) is not None), None)
    if component is not None:
        return Header(value, titles[component.name], component.source if key.link else None)
    return Header(None if value is ABSENT else value, plain(value))


def _training_images(groups: Sequence[Group]) -> list[str]:
    """'2,822 of 162,770' for each group, with a fingerprint where equally many images are different ones."""
    texts = []
    for g in groups:
        data = next((r.data["train"] for r in g.records if "train" in r.data), None)
        texts.append(count_of(data) if data is not None else plain(g.fact(DATA)))
    different: dict[str, set[str]] = {}
    for text, g in zip(texts, groups, strict=True):
        different.setdefault(text, set()).add(canonical(g.fact(DATA)))
    return [f"{text} ({str(fact[0])[:8]})" if len(different[text]) > 1 and isinstance(fact, list) else text
            for text, fact in zip(texts, (g.fact(DATA) for g in groups), strict=True)]


def _ended(group: Group, over: Sequence[str]) -> list[str]:
    """Why runs of a row have no numbers, each reason once: 'seed 1, seed 2 failed: ...'."""
    reasons: dict[str, list[Record]] = {}
    for r in group.records:
        if not r.trained:
            reasons.setdefault(f"{r.state}: {(r.reason or 'no reason was recorded').strip()}", []).append(r)
    return [why if len(runs) == len(group.records) else f"{', '.join(among(r, over) for r in runs)} {why}"
            for why, runs in reasons.items()]


# -- columns -------------------------------------------------------------------------------------------------


def _column(key: ColumnKey, groups: Sequence[Group], over: Sequence[str]) -> BuiltColumn:
    """Heading and cells; the notes of a cell are sentences still."""
    if "." in key.key and not is_property(key.key):
        raise BadInput(f"report: columns: {key.key!r} is no value name, and no key of {', '.join(SECTIONS)}")
    return (_property_column if is_property(key.key) else _value_column)(key, groups, over)


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of one group under one set of conditions."""

    conditions: dict[str, Any]
    values: tuple[tuple[Record, Value], ...]
    doubtful: tuple[str, ...] = ()              # sentences on runs that were measured twice, differently


def _conditions(record: Record, value: Value) -> dict[str, Any]:
    test = record.data.get("test")
    return value.conditions() | ({"test images": test.fingerprint} if test is not None else {})


def _measured(group: Group, name: str) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for record in group.records:
        here: dict[str, list[Value]] = {}
        named = [(i, v) for i, v in record.values.items() if v.name == name] if record.trained else []
        for _, value in sorted(named, key=lambda item: item[0]):
            if value.number is not None and math.isfinite(value.number):
                here.setdefault(canonical(_conditions(record, value)), []).append(value)
        for text, values in here.items():
            numbers = list(dict.fromkeys(v.number for v in values))
            before = found.get(text, Measured(_conditions(record, values[0]), ()))
            doubt = () if len(numbers) == 1 else (
                f"measured more than once under the same conditions, with different results "
                f"({', '.join(repr(x) for x in numbers)}); the first is shown",)
            runs = (*before.values, (record, values[0]))
            found[text] = Measured(before.conditions, runs, before.doubtful + doubt)
    return found


def _value_column(key: ColumnKey, groups: Sequence[Group], over: Sequence[str]) -> BuiltColumn:
    """Numbers under the conditions that most rows share are compared; others are shown with a footnote."""
    measured = [_measured(g, key.key) for g in groups]
    preferred = _by_preference(measured)
    main = preferred[0] if preferred else None
    sample = next((m[main].values[0][1] for m in measured if main in m), None) if main is not None else None
    column, decimals = _heading(key, groups, sample)
    cells, comparable = [], []
    for group, here in zip(groups, measured, strict=True):
        chosen = next((text for text in preferred if text in here), None)
        if chosen is None:
            cells.append(_missing(group, key.key, over))
            comparable.append(False)
            continue
        one = here[chosen]
        cell = _number_cell([v.number for _, v in one.values if v.number is not None],
                            partial(format_number, unit=column.unit, decimals=decimals))
        notes = list(one.doubtful)
        if chosen != main and main is not None:
            usual = next(m[main].conditions for m in measured if main in m)
            notes.append(f"measured under {_difference(one.conditions, usual)}; not compared with the others")
        notes += _absent_runs(group, key.key, {r.train_id for r, _ in one.values}, over)
        cells.append(replace(cell, notes=tuple(notes)))
        comparable.append(chosen == main)
    return column, tuple(_mark_best(cells, comparable, column.direction))


def _by_preference(measured: Sequence[dict[str, Measured]]) -> list[str]:
    """Conditions that most rows share come first; of equally frequent ones, the metric's newest revision."""
    counts = Counter(text for m in measured for text in m)
    conditions = {text: one.conditions for m in measured for text, one in m.items()}

    def preference(text: str) -> tuple[int, float, str]:
        revision = conditions[text].get("revision")
        return -counts[text], -revision if isinstance(revision, int | float) else 0.0, text

    return sorted(counts, key=preference)


def comparable_numbers(groups: Sequence[Group], key: str) -> list[list[tuple[Record, float]]]:
    """The numbers behind each cell of a column, run by run; [] where they are not to be compared."""
    if is_property(key):
        section, _, name = key.partition(".")
        found = [[(r, getattr(r, section).get(name)) for r in g.records if r.trained or section in STATIC]
                 for g in groups]
        return [[(r, x) for r, x in runs if isinstance(x, int | float)] for runs in found]
    measured = [_measured(g, key) for g in groups]
    usual = next(iter(_by_preference(measured)), "")
    return [[(r, v.number) for r, v in here[usual].values if v.number is not None] if usual in here else []
            for here in measured]


def _missing(group: Group, name: str, over: Sequence[str], otherwise: str = "not measured") -> Cell:
    """A dash and why."""
    trained = [r for r in group.records if r.trained]
    if not trained:
        state: Mark = "failed" if any(r.state == "failed" for r in group.records) else "skipped"
        return Cell(DASH, mark=state, notes=tuple(_ended(group, over)))
    reasons = [v.reason for r in trained for _, v in sorted(r.values.items()) if v.name == name and v.reason]
    return Cell(DASH, mark="missing", notes=tuple(reasons) or (otherwise,))


def _absent_runs(group: Group, name: str, used: set[str], over: Sequence[str]) -> list[str]:
    """Trained runs of the row that are not in the mean; failed ones are noted at the row's header."""
    notes = []
    for r in group.records:
        if r.trained and r.train_id not in used:
            mine = [v for _, v in sorted(r.values.items()) if v.name == name]
            measured = any(v.number is not None for v in mine)
            why = "measured under other conditions" if measured else "not measured"
            notes.append(f"without {among(r, over)}: {next((v.reason for v in mine if v.reason), why)}")
    return notes


def _difference(conditions: dict[str, Any], main: dict[str, Any]) -> str:
    pairs = [(k, conditions.get(k, ABSENT), main.get(k, ABSENT)) for k in sorted({*conditions, *main})]
    differ = [f"{k} {plain(mine)} instead of {plain(usual)}" for k, mine, usual in pairs if mine != usual]
    return ", ".join(differ)


def _heading(key: ColumnKey, groups: Sequence[Group], sample: Value | None) -> tuple[Column, int]:
    """Heading and decimals: the suite's, else the metric's own, read from its source."""
    if sample is None:
        sample = next((v for g in groups for r in g.records for _, v in sorted(r.values.items())
                       if v.name == key.key), None)
    base = key.key.removesuffix("_window")
    attributes: dict[str, Any] = {}
    for metric in dict.fromkeys(m for m in (sample and sample.metric, key.key, base) if m):
        try:
            attributes = signature("metric", metric).attributes
            break
        except (BadInput, SyntaxError, OSError):
            continue
    own = sample.metric if sample is not None else base
    title = str(attributes.get("title", own)) if base == own else base.replace("_", " ")
    if base != own and base.startswith(own + "_"):
        title = f"{attributes.get('title', own)} ({base.removeprefix(own + '_').replace('_', ' ')})"
    if sample is not None and sample.window is not None:
        title += f" (last {sample.window:,})"
    elif base != key.key:
        title += " (window)"
    unit = str(sample.unit if sample is not None else attributes.get("unit", ""))
    direction = sample.direction if sample is not None else attributes.get("direction", "none")
    decimals = key.decimals
    if decimals is None:
        decimals = 2 if unit == "share" else int(attributes.get("decimals", 4))
    title = key.title if key.title is not None else title
    return Column(key.key, title, direction if direction in ARROWS else "none", unit), decimals


def _property_column(key: ColumnKey, groups: Sequence[Group], over: Sequence[str]) -> BuiltColumn:
    """What the record says of the run besides measured values; nothing is best here."""
    section, _, name = key.key.partition(".")
    title, factor, decimals = DOTTED.get(key.key, (name.replace("_", " ").replace(".", " "), 1, None))
    decimals = key.decimals if key.decimals is not None else decimals

    def show(x: float) -> str:
        x *= factor
        return f"{x:,.{decimals}f}" if decimals is not None else f"{x:,}" if x == int(x) else f"{x:.4g}"

    cells = []
    for group in groups:
        runs = [r for r in group.records if r.trained or section in STATIC]
        found = [x for r in runs if (x := getattr(r, section).get(name)) is not None]
        numbers = [x for x in found if isinstance(x, int | float) and not isinstance(x, bool)]
        if found and len(numbers) == len(found):
            cell = _number_cell(numbers, show)
            cells.append(replace(cell, text=show(cell.number or 0.0)) if cell.std == 0 else cell)
        elif found:
            cells.append(Cell("; ".join(dict.fromkeys(plain(x) for x in found)), n=len(found)))
        else:
            cells.append(_missing(group, key.key, over, otherwise="not recorded"))
    return Column(key.key, key.title if key.title is not None else title), tuple(cells)


# -- numbers -------------------------------------------------------------------------------------------------


def format_number(x: float, unit: str, decimals: int) -> str:
    """A share is shown as per cent."""
    return f"{100 * x:.{decimals}f}%" if unit == "share" else f"{x:.{decimals}f}"


def _number_cell(numbers: Sequence[float], show: Any) -> Cell:
    """Mean and sample standard deviation (ddof = 1) of the runs of a row."""
    mean = float(statistics.fmean(numbers)) if len(set(numbers)) > 1 else float(numbers[0])
    if len(numbers) == 1:
        return Cell(show(mean), mean, None, 1)
    std = float(statistics.stdev(numbers))
    return Cell(f"{show(mean)} ± {show(std)}", mean, std, len(numbers))


def _mark_best(cells: Sequence[Cell], comparable: Sequence[bool], direction: Direction) -> list[Cell]:
    """Best and second of the unrounded means; equal numbers share a mark. A single number beats nothing."""
    numbers = [c.number for c, ok in zip(cells, comparable, strict=True) if ok and c.number is not None]
    if direction == "none" or len(numbers) < 2:
        return list(cells)
    ranked = sorted(set(numbers), reverse=direction == "higher")
    places: tuple[Mark, ...] = ("best", "second")
    marks = dict(zip(ranked, places, strict=False))
    return [replace(c, mark=marks.get(c.number, "")) if ok and c.number is not None else c
            for c, ok in zip(cells, comparable, strict=True)]


def _common_n(cells: Sequence[Cell]) -> int:
    counts = Counter(c.n for c in cells if c.number is not None)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _show_n(cells: Sequence[Cell], common: int) -> tuple[Cell, ...]:
    def shown(c: Cell) -> Cell:
        return c if c.number is None or c.n == common else replace(c, text=f"{c.text} (n={c.n})")

    return tuple(map(shown, cells))
