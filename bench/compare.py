"""Two runs beside each other: which settings differ, and by how much each number, with its interval. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import BadInput
from bench.places import Places
from bench.registry import did_you_mean, signature
from bench.report.statistics import bootstrap_interval, win_rate
from bench.results import FILE, Record, Value, read_records, union
from bench.runs import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

log = logging.getLogger(__name__)

SANITY = "sanity.jsonl"
# keywords of data sets that leave the test images alone
TRAINING_ONLY = ("train_images", "crop", "short_side", "filter", "area", "distort")
NOT_CODE = ("finished", "not_finite")           # of the provenance: says when, not how
FEW = 20                                        # images below which a bootstrap is too sure of itself


# -- finding a run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A run as it was named, with the folder that holds its numbers per image."""

    suite: str | None
    record: Record                              # with all values that its folder holds
    folder: RunFolder                           # may not exist

    @property
    def name(self) -> str:
        return f"{self.suite}:{self.record.label}" if self.suite else self.record.label


def find_run(text: str, places: Places, suites: Sequence[str] = ()) -> Found:
    """The run that `text` names: SUITE:LABEL, a label or train id of `suites` (of all recorded ones without any), the
    beginning of an id, a unique part of a label, or a run folder.

    Raises BadInput where there is none, or several.
    """
    path = Path(text).expanduser()
    if (path / "record.json").is_file():
        return _with_values(None, None, RunFolder(path.absolute().parent, path.absolute().name))
    if (path / "spec.json").is_file():
        raise BadInput(f"{path}: this run has not ended: it has no record.json yet")
    known = [(suite, record) for suite in suites or _recorded(places) for record in _records(places, suite)]
    for matches in (
        lambda suite, r: text in (r.train_id, r.label, f"{suite}:{r.label}", f"{suite}:{r.train_id}"),
        lambda suite, r: len(text) >= 4 and r.train_id.startswith(text),
        lambda suite, r: text.partition(":")[0] == suite and text.partition(":")[2] in r.label,
        lambda suite, r: text in r.label,
    ):
        found = [(suite, record) for suite, record in known if matches(suite, record)]
        if len({record.train_id for _, record in found}) > 1:
            several = ", ".join(f"{suite}:{r.label} ({r.train_id})" for suite, r in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise BadInput(f"{text!r} names several runs: {several}{more}; write SUITE:LABEL or the id")
        if found:
            suite, record = found[0]
            return _with_values(suite, record, RunFolder(places.runs, record.train_id))
    folder = RunFolder(places.runs, text)
    if "/" not in text and folder.record() is not None:
        return _with_values(None, None, folder)
    where = f"suite {', '.join(suites)}" if suites else f"the suites in {places.results}"
    names = {name for suite, r in known for name in (r.label, f"{suite}:{r.label}", r.train_id)}
    raise BadInput(f"no run of {where} is called {text!r}{did_you_mean(text, names)}; give a label, an id, SUITE:LABEL, "
                   "or the folder of a run that has ended")


def _recorded(places: Places) -> list[str]:
    return sorted(p.parent.name for p in places.results.glob(f"*/{FILE}"))


def _records(places: Places, suite: str) -> list[Record]:
    """Runs of a suite, then the rows that need no training."""
    home = places.results / suite
    if not (home / FILE).is_file():
        raise BadInput(f"there are no records of a suite {suite!r} in {places.results}"
                       f"{did_you_mean(suite, _recorded(places))}")
    return [*read_records(home / FILE), *read_records(home / SANITY)]


def _with_values(suite: str | None, record: Record | None, folder: RunFolder) -> Found:
    record = record or folder.record()
    if record is None:
        raise BadInput(f"{folder.path / 'record.json'}: cannot be understood; compare through a suite's records")
    newer = record.model_copy(update={"values": {**record.values, **folder.read_values()}})
    return Found(suite, union([record], [newer])[0], folder)


# -- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that differs; None: that run has no such setting."""

    key: str                                    # "tokenizer.quantizer.codebook_size", "code.commit", ...
    a: Any
    b: Any


def settings(record: Record) -> dict[str, Any]:
    """All that was set for a run, flat: the resolved spec and the suite's view, images, protocols, size, code."""
    found = {_readable(key): value for key, value in _flat(record.spec)}
    found |= record.fields
    for split, data in record.data.items():
        found |= {f"data.{split}.fingerprint": data.fingerprint, f"data.{split}.images": data.images,
                  f"data.{split}.left_out": list(data.left_out)}
    found["measure.protocol"] = sorted({v.protocol for v in record.values.values()})
    found |= {f"parameters.{k}": v for k, v in record.parameters.items()}
    found |= {f"layout.{k}": v for k, v in record.layout.items()}
    found |= {f"code.{k}": v for k, v in _flat(record.provenance) if k.partition(".")[0] not in NOT_CODE}
    return found


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _readable(key: str) -> str:
    """A key of the resolved spec as the suite spells it: model.kwargs.hidden -> tokenizer.hidden, steps -> train.steps."""
    parts = [part for part in key.split(".") if part != "kwargs"]
    if len(parts) == 1:
        return f"train.{key}"
    return ".".join(["tokenizer" if parts[0] == "model" else parts[0], *parts[1:]])


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Keys whose values differ, in order; a key that is absent on one side is None there, and as good as an empty list."""
    return tuple(Setting(key, a.get(key), b.get(key)) for key in sorted({*a, *b})
                 if not key.endswith(".kind") and _text(a.get(key)) != _text(b.get(key)))


def _text(value: Any) -> str:
    return json.dumps(None if value in ([], {}) else value, sort_keys=True, default=str)


# -- numbers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of both runs, measured under equal conditions."""

    name: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    decimals: int
    a: float | None
    b: float | None
    images: int
    difference: float | None = None             # b - a
    interval: tuple[float, float] | None = None     # of the difference, 95 %, over images
    win_rate: float | None = None               # share of images on which b is better; ties half
    distinguishable: bool | None = None         # the interval excludes 0; None: there is no interval
    note: str | None = None                     # why there is no number or no interval

    @property
    def better(self) -> Literal["a", "b"] | None:
        """Which run the number speaks for, where the difference is distinguishable."""
        if not self.distinguishable or self.direction == "none" or self.difference is None:
            return None
        return "b" if (self.difference > 0) == (self.direction == "higher") else "a"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two runs."""

    a: str
    b: str
    train_ids: tuple[str, str]
    settings: tuple[Setting, ...]
    values: tuple[Difference, ...]
    refused: tuple[tuple[str, str], ...]        # (name, why the two numbers do not compare)


def compare(a: Found, b: Found, *, resamples: int = 10_000) -> Comparison:
    """Settings that differ, and each number of `b` less that of `a`.

    Numbers that are means over images get a paired bootstrap interval of the difference from the stored per-image
    values. It is over test images: what another training seed would give is not in it. Raises BadInput for one run
    given twice.
    """
    if a.record.train_id == b.record.train_id:
        raise BadInput(f"{a.name} and {b.name} are the same run ({a.record.train_id}); name two")
    theirs = {_text(conditions(b.record, value)): (value_id, value) for value_id, value in b.record.values.items()}
    values, refused = [], []
    for value_id, value in sorted(a.record.values.items(), key=lambda item: (item[1].name, item[0])):
        mine = conditions(a.record, value)
        if (match := theirs.pop(_text(mine), None)) is not None:
            values.append(_difference((a, value_id, value), (b, *match), resamples))
        else:
            same = [v for v in b.record.values.values() if v.name == value.name]
            refused.append((value.name, _why(mine, conditions(b.record, same[0])) if same else f"measured of {a.name} only"))
    told = {name for name, _ in refused}
    refused += [(v.name, f"measured of {b.name} only") for _, v in theirs.values() if v.name not in told]
    return Comparison(a.name, b.name, (a.record.train_id, b.record.train_id),
                      differences(settings(a.record), settings(b.record)), tuple(values), tuple(sorted(set(refused))))


def conditions(record: Record, value: Value) -> dict[str, Any]:
    """How a number was measured and on which images, flat. A keyword that a metric has got since then counts with the
    value that changes nothing."""
    try:
        found = dict(signature("metric", value.metric).neutral)
    except BadInput:
        found = {}                              # a metric that is not here
    found |= {k: v for k, v in value.conditions().items() if k != "limit"}      # `images` says how many there were
    split = value.settings.get("split", "test")
    dataset = record.spec.get("dataset", {})
    if isinstance(dataset, dict):
        images = {"name": dataset.get("name"), "revision": dataset.get("revision"), **dataset.get("kwargs", {})}
        found |= {f"dataset.{k}": v for k, v in images.items() if k not in TRAINING_ONLY}
    if split in record.data:
        data = record.data[split]
        found |= {f"data.{split}": data.fingerprint, f"data.{split}.left_out": list(data.left_out) or None}
    return {k: v for k, v in found.items() if v is not None}


def _why(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    differing = [f"{s.key} = {_shown(s.a)} against {_shown(s.b)}" for s in differences(a, b)]
    return f"measured under different conditions: {'; '.join(differing)}"


def _difference(a: tuple[Found, str, Value], b: tuple[Found, str, Value], resamples: int) -> Difference:
    one, other = a[2], b[2]
    try:
        decimals = int(signature("metric", one.metric).attributes.get("decimals", 4))
    except BadInput:
        decimals = 4
    row = Difference(one.name, one.unit, one.direction, decimals, one.number, other.number, one.images)
    if one.number is None or other.number is None:
        reasons = [f"{found.name}: {value.reason or 'no number'}" for found, _, value in (a, b) if value.number is None]
        return dataclasses.replace(row, note="; ".join(reasons))
    row = dataclasses.replace(row, difference=other.number - one.number)
    pairs, note = _paired(a, b)
    if pairs is None:
        return dataclasses.replace(row, note=note)
    low, high = bootstrap_interval(pairs[1] - pairs[0], resamples=resamples)
    few = None if len(pairs[0]) >= FEW else f"{len(pairs[0])} images are few: the interval is too narrow"
    return dataclasses.replace(row, interval=(low, high), win_rate=win_rate(*pairs, one.direction),
                               distinguishable=not low <= 0 <= high, note=few)


def _paired(a: tuple[Found, str, Value], b: tuple[Found, str, Value]) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Both runs' numbers per image, in the same order; or why they cannot be had."""
    import numpy as np

    tables = []
    for found, value_id, _ in (a, b):
        if not found.folder.values.is_dir():
            return None, f"no interval: the run folder of {found.name} ({found.folder.path}) is not here"
        table = _per_image(found.folder.values / f"{value_id}.parquet")
        if table is None:
            return None, "no interval: one number of the whole split, or no numbers per image were kept"
        tables.append(table)
    (images, first), (others, second) = tables
    if not np.array_equal(images, others):
        return None, "no interval: the numbers per image are of different images"
    if len(first) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None, "no interval: it needs two images and finite numbers"
    for values, (found, _, value) in zip((first, second), (a, b), strict=True):
        if value.number is not None and not np.isclose(values.mean(), value.number, rtol=1e-6, atol=1e-9):
            return None, f"no interval: the number of {found.name} is not the mean of its numbers per image"
    return (first, second), ""


def _per_image(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions in the split and float64 numbers, sorted; None where the file is not there or cannot be read."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["image", "value"])
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        log.warning("%s cannot be read (%s); taken as absent", path, error)
        return None
    images, values = (table[name].to_numpy() for name in ("image", "value"))
    order = np.argsort(images, kind="stable")
    return images[order], values[order].astype(np.float64)


# -- saying it -------------------------------------------------------------------------------------------------------


def to_json(comparison: Comparison) -> dict[str, Any]:
    """As plain data; `better` says which run a distinguishable difference speaks for."""
    data = dataclasses.asdict(comparison)
    data["values"] = [{**row, "better": value.better} for row, value in zip(data["values"], comparison.values, strict=True)]
    data["refused"] = [{"name": name, "reason": reason} for name, reason in comparison.refused]
    return data


def shown(comparison: Comparison) -> RenderableType:
    """For the terminal: settings that differ, a row per number, what does not compare, and what the intervals are."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    a, b = comparison.a, comparison.b
    heads = [Text(f"{letter}  {name}  ({train_id})", style="bold")
             for letter, name, train_id in zip("AB", (a, b), comparison.train_ids, strict=True)]
    changed = Table(title="settings that differ", title_justify="left")
    for column in ("setting", "A", "B"):
        changed.add_column(column, overflow="fold")
    for s in comparison.settings:
        changed.add_row(Text(s.key), Text(_shown(s.a)), Text(_shown(s.b)))
    numbers = Table(title="numbers", title_justify="left")
    for column in ("value", "A", "B", "B - A", "95 % interval", "B better in", "verdict", "images"):
        numbers.add_column(column, no_wrap=column != "verdict", justify="left" if column in ("value", "verdict") else "right")
    for v in comparison.values:
        numbers.add_row(*(Text(cell) for cell in _cells(v)))
    notes = [Text(f"{', '.join(names)}: {note}.") for note, names in _said(comparison).items()]
    if {s.key for s in comparison.settings} == {"train.seed"}:
        notes.append(Text("Only the seed differs: this is how far two trainings of one setting lie apart."))
    if any(v.interval for v in comparison.values):
        notes.append(Text("Intervals: paired bootstrap over test images (10,000 resamples, percentiles). They say nothing of "
                          "what another training seed would give."))
    return Group(*heads, changed if comparison.settings else Text("No setting differs."),
                 *([numbers] if comparison.values else []), *notes)


def _said(comparison: Comparison) -> dict[str, list[str]]:
    """What is to be said of numbers -> their names."""
    found: dict[str, list[str]] = {}
    for v in comparison.values:
        if v.note:
            found.setdefault(v.note, []).append(v.name)
    for name, reason in comparison.refused:
        found.setdefault(f"not compared, {reason}", []).append(name)
    return found


def _cells(v: Difference) -> list[str]:
    scale, unit = (100.0, " %") if v.unit == "share" else (1.0, f" {v.unit}" if v.unit else "")

    def number(x: float | None, sign: str = "") -> str:
        return "–" if x is None else f"{x * scale:{sign},.{v.decimals}f}"

    arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[v.direction]
    span = "–" if v.interval is None else f"[{number(v.interval[0], '+')}, {number(v.interval[1], '+')}]"
    wins = "–" if v.win_rate is None else f"{100 * v.win_rate:.1f} %"
    if v.distinguishable is None:
        verdict = ""
    elif not v.distinguishable:
        verdict = "not distinguishable"
    else:
        verdict = "distinguishable" if v.better is None else f"{v.better.upper()} is better"
    return [v.name + arrow, number(v.a) + unit * (v.a is not None), number(v.b) + unit * (v.b is not None),
            number(v.difference, "+"), span, wins, verdict, f"{v.images:,}"]


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
