"""What a figure across a suite shows, as numbers: lines of points, with the runs behind each. Torch-free.

The numbers come from the table model, so a figure averages exactly what a table may.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.costs import COSTS, is_cost
from bench.errors import BadInput
from bench.registry import did_you_mean
from bench.report.columns import Doubts
from bench.report.drawing import COLOURS, colour_of
from bench.report.grouping import Arranged, Group, arrange, canonical, group
from bench.report.lookup import asked
from bench.report.model import Column, Direction, Table, is_property
from bench.report.spec import FigureSpec, RowKey
from bench.report.tables import build_table, comparable_numbers
from bench.results import Record

#: how an axis calls a cost
AXES = {name: cost.heading.replace("GMACs", "MACs").replace("MiB/image", "memory (bytes an image)") for name, cost in COSTS.items()}

#: what is known of a run besides its settings and its measured values: how an axis calls it, and which end is better
PROPERTIES: dict[str, tuple[str, Direction]] = {
    "layout.bits_per_image": ("bits per image", "lower"),
    "layout.bits_per_pixel": ("bits per pixel", "lower"),
    "layout.num_tokens": ("tokens per image", "lower"),
    "layout.total_codes": ("codes of all levels", "none"),
    "parameters.total": ("parameters", "lower"),
    "parameters.learned": ("learned parameters", "lower"),
    "cost.images_per_second": ("images per second (training)", "higher"),
    "cost.train_seconds": ("training time (s)", "lower"),
    "cost.seconds_per_step": ("seconds per step", "lower"),
    "cost.evaluate_seconds": ("evaluation time (s)", "lower"),
    "cost.peak_memory_bytes": ("peak memory (bytes)", "lower"),
    "parameters.encoder": ("parameters of the encoder", "lower"),
    "parameters.decoder": ("parameters of the decoder", "lower"),
    **{f"cost.{name}": (AXES[name], cost.direction) for name, cost in COSTS.items()},
}
STATIC = ("layout", "parameters")       # known of a run that failed, too


@dataclass(frozen=True, slots=True)
class Point:
    """The runs at one x of one line."""

    x: Any
    mean: float
    runs: tuple[tuple[str, float], ...]         # (train_id, number)
    group: int = 0                              # its row of the figure's table
    doubtful: bool = False                      # a plausibility gate doubts it


@dataclass(frozen=True, slots=True)
class Series:
    """One line of one panel."""

    column: str
    heading: str
    percent: bool
    x_heading: str
    hue_heading: str
    label: str                                  # "" where there is one line only
    points: tuple[Point, ...]


def figure_series(records: Sequence[Record], spec: FigureSpec, doubts: Doubts | None = None) -> list[Series]:
    """Lines by panel, then by label. Runs that differ in more than `over` are on different lines, but for settings
    that `x` tells anyway. `doubts`: what the plausibility gates say. Raises BadInput for an `x` that no run has.
    """
    known = is_property(spec.x_key.resolved)
    table_spec = spec.table(x_heads_rows=not known)
    arranged = arrange(records, table_spec.row_keys(), table_spec.over_keys())
    table: Table = build_table(records, table_spec, doubts=doubts or {})
    xs = _properties(arranged.groups, spec) if known else _settings(arranged, table, spec.x_key)
    lines = _lines(arranged, table, xs, spec, known)
    asked = [k for k in arranged.keys if k.resolved not in {spec.x_key.resolved, *arranged.added}]
    headings = ", ".join(k.heading for k in asked) if spec.hue is not None else ""
    found = []
    for j, column in enumerate(table.columns):
        numbers = comparable_numbers(arranged.groups, column.key)
        for label, members in lines.items():
            points = []
            for x, i in members:
                cell = table.rows[i].cells[j]
                if cell.number is not None and numbers[i] and x is not None:
                    runs = tuple((r.train_id, number) for r, number in numbers[i])
                    points.append(Point(x, cell.number, runs, i, cell.doubtful))
            if points:
                found.append(Series(
                    column.key, y_title(column), column.unit == "share", x_title(spec.x_key), headings,
                    label if len(lines) > 1 else "", tuple(points),
                ))
    return found


def _lines(
    arranged: Arranged, table: Table, xs: Sequence[Any], spec: FigureSpec, known: bool
) -> dict[str, list[tuple[Any, int]]]:
    """Label of a line -> (x, row) of each of its points."""
    heads = [k for k in arranged.keys if known or k.resolved != spec.x_key.resolved]
    if known:
        heads = _untold(arranged.groups, heads, xs, spec.hue_key)
    lines: dict[str, list[tuple[Any, int]]] = {}
    for i, row in enumerate(table.rows):
        named = [(k, h) for k, h in zip(arranged.keys, row.headers, strict=True) if k in heads]
        added = [f"{k.heading} {h.text}" for k, h in named if k.resolved in arranged.added]
        label = ", ".join([*(h.text for k, h in named if k.resolved not in arranged.added), *added])
        lines.setdefault(label, []).append((xs[i], i))
    return lines


def _untold(groups: Sequence[Group], keys: Sequence[RowKey], xs: Sequence[Any], hue: RowKey | None) -> list[RowKey]:
    """The keys without those that x and the others tell anyway, and that need no lines of their own: those with the
    most values are dropped first."""
    said = {k.resolved: [canonical(g.fact(k.resolved)) for g in groups] for k in keys}
    kept = [k.resolved for k in keys]
    for key in sorted(kept, key=lambda k: -len(set(said[k]))):
        others = [said[k] for k in kept if k != key]
        seen: dict[Any, str] = {}
        told = all(seen.setdefault(tuple(known), value) == value
                   for *known, value in zip(xs, *others, said[key], strict=True))
        if told and (hue is None or key != hue.resolved):
            kept.remove(key)
    return [k for k in keys if k.resolved in kept]


def _settings(arranged: Arranged, table: Table, key: RowKey) -> list[Any]:
    at = next(i for i, k in enumerate(arranged.keys) if k.resolved == key.resolved)
    values = [g.fact(key.resolved) for g in arranged.groups]
    return [v if isinstance(v, int | float) and not isinstance(v, bool) else row.headers[at].text
            for v, row in zip(values, table.rows, strict=True)]


def _properties(groups: Sequence[Group], spec: FigureSpec) -> list[float | None]:
    """The mean of each group's runs; None where none of them has it."""
    key = spec.x_key.resolved
    found = [_mean([x for r in g.records if (x := number_of(r, key)) is not None]) for g in groups]
    if groups and all(x is None for x in found) and not may_come(groups, key):
        section = key.partition(".")[0]
        known = sorted({f"{section}.{k}" for g in groups for r in g.records for k in getattr(r, section)})
        raise BadInput(f"report: figures: {spec.name}: x: no run has a number {key!r}{did_you_mean(key, known)}")
    return found


def _mean(numbers: Sequence[float]) -> float | None:
    return None if not numbers else numbers[0] if len(set(numbers)) == 1 else statistics.fmean(numbers)


def may_come(groups: Sequence[Group], key: str) -> bool:
    """Whether an `x` that no run has a number of is none the less meant: no run is done yet, or one has it without a
    number, since a network was not there or the result not finite. Then its figure is left out."""
    runs = [r for g in groups for r in g.records]
    if not any(r.state == "done" for r in runs):
        return True
    if is_property(key):
        section, _, name = key.partition(".")
        return any(name in getattr(r, section) for r in runs)
    return "." not in key and any(asked(key, runs).of(r) for r in runs)


def number_of(record: Record, key: str) -> float | None:
    """A dotted key into a record's layout, parameters, cost or monitors; None where it holds no finite number.

    layout.total_codes is the sum of the codes of all levels; layout.bits_per_pixel follows from the image size.
    """
    section, _, name = key.partition(".")
    if not record.trained and section not in STATIC and not is_cost(key):
        return None
    value = getattr(record, section).get(name)
    if key == "layout.total_codes" and value is None:
        value = sum(record.layout.get("vocab_sizes") or ()) or None
    if key == "layout.bits_per_pixel" and value is None:
        bits, size = record.layout.get("bits_per_image"), record.fields.get("dataset.image_size")
        value = bits / size**2 if bits is not None and isinstance(size, int) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def y_title(column: Column) -> str:
    """Its heading; of a cost, which tables scale and axes do not, the axis' own."""
    return PROPERTIES[column.key][0] if is_cost(column.key) else column.heading


def x_title(key: RowKey) -> str:
    if key.title is not None:
        return key.title
    return PROPERTIES[key.resolved][0] if key.resolved in PROPERTIES else key.heading


# -- colours -------------------------------------------------------------------------------------------------


def run_colours(records: Iterable[Record]) -> dict[str, Any]:
    """train_id -> the colour of a run wherever it is drawn on its own, given all records of a suite."""
    settings = settings_of(shown_runs(records))
    colours = colour_of(settings.values())
    return {train_id: colours[label] for train_id, label in settings.items()}


def shown_runs(records: Iterable[Record]) -> list[Record]:
    """Those that are no debug runs, unless all are; by train_id."""
    ordered = sorted(records, key=lambda r: r.train_id)
    return [r for r in ordered if not r.debug] or ordered


def settings_of(records: Iterable[Record]) -> dict[str, str]:
    """train_id -> the run's label without its seed, where runs differ in their seed alone: one colour for all of them.

    Where labels without seeds would be the same for different settings, every run keeps its own.
    """
    groups = group(list(records), ("train.seed",))
    found: dict[str, str] = {}
    shared: dict[str, set[int]] = {}
    for i, g in enumerate(groups):
        for r in g.records:
            bare = re.sub(r"\s*\b(train\.)?seed[= ]-?\d+$", "", r.label) or r.label
            found[r.train_id] = bare if len(g.records) > 1 else r.label
            shared.setdefault(found[r.train_id], set()).add(i)
    labels = {r.train_id: r.label for g in groups for r in g.records}
    return {t: label if len(shared[label]) == 1 else labels[t] for t, label in found.items()}


def colours_of_figures(
    figures: Mapping[str, tuple[str | None, Mapping[str, Iterable[str]]]], labels: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Figure -> line label -> colour. `figures`: name -> (hue key, label -> train_ids); `labels`: see settings_of.

    Where each line holds the runs of one setting, it has the colour of that setting in the curves; other lines have one
    colour a label among all figures of the same hue.
    """
    by_setting = colour_of(labels.values())
    by_hue: dict[str | None, dict[str, set[str]]] = {}
    for hue, lines in figures.values():
        for label, runs in ((label, runs) for label, runs in lines.items() if label):
            by_hue.setdefault(hue, {}).setdefault(label, set()).update(labels[t] for t in runs if t in labels)
    colours: dict[str | None, dict[str, Any]] = {}
    for hue, settings in by_hue.items():
        single = {next(iter(s)) for s in settings.values() if len(s) == 1}
        if len(single) == len(settings):
            colours[hue] = {label: by_setting[next(iter(s))] for label, s in settings.items()}
        else:
            colours[hue] = colour_of(settings)
    return {name: {label: colours[hue][label] if label else COLOURS[0] for label in lines}
            for name, (hue, lines) in figures.items()}
