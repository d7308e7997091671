"""Groups of runs -> the cells of one column: which number, whether it may be shown, what is said of it. Torch-free."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bench.costs import headings, is_cost, lower_bound, missing
from bench.errors import BadInput
from bench.report.grouping import DASH, Group, among, plain
from bench.report.headings import heading
from bench.report.lookup import Asked, Measured, asked, by_preference, difference, differing, measured
from bench.report.model import SECTIONS, Cell, Column, Mark, is_property
from bench.report.ranking import mark_alike, mark_best
from bench.report.spec import ColumnKey
from bench.results import Record, Value
from bench.timings import BUSY
from bench.versions import told

STATIC = ("layout", "parameters", "provenance")     # known of a run that failed, too
#: conditions that rows headed by the data set differ in by what the rows say
OF_THE_DATA = {"test images", "images"}

#: headings, and for numbers their (factor, decimals), of columns that are no measured values
DOTTED = {
    "parameters.total": ("parameters", 1, 0),
    **{f"parameters.{part}": (f"{part} parameters", 1, 0) for part in ("encoder", "decoder", "quantizer")},
    "layout.bits_per_image": ("bits/image", 1, 0),
    "layout.num_tokens": ("tokens/image", 1, 0),
    "layout.downsampling": ("downsampling", 1, None),
    "layout.code_dim": ("code dim.", 1, None),
    "cost.train_seconds": ("training time (s)", 1, 0),
    "cost.seconds_per_step": ("ms/step", 1e3, 1),
    "cost.images_per_second": ("images/s", 1, 1),
    "cost.peak_memory_bytes": ("peak memory (GiB)", 2**-30, 2),
    **headings(),
}

LOWER_BOUND = f"a lower bound: its threads had the processor for less than {BUSY:.0%} of the time"

#: how a fact that is true or not is shown
SIGNS = {"provenance.from_scratch": ("×", "√")}

#: what the record of a tokenizer without codes says as nothing
OF_CODES = {"layout.codebook_size", "layout.bits_per_image", "layout.bits_per_pixel"}
#: what it means that a record says nothing of it
NOTHING = {"provenance.from_scratch": "not stated by those who published it", "layout.downsampling": "its tokens have no grid"}

#: train id -> column -> sentences: what bench/report/gates.py doubts
Doubts = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Rows:
    """What every column is made of."""

    groups: tuple[Group, ...]
    sanity: tuple[Group, ...] = ()              # yardsticks, one record each
    over: tuple[str, ...] = ()
    by_dataset: bool = False                    # the data set heads the rows
    doubts: Doubts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Built:
    """One column; notes of cells are sentences still."""

    key: ColumnKey
    column: Column
    cells: tuple[Cell, ...]
    sanity: tuple[Cell, ...]
    decimals: int = 0
    asked: Asked | None = None                  # of a measured value
    used: tuple[tuple[tuple[Record, Value], ...], ...] = ()     # row by row: the runs whose numbers are shown
    comparable: tuple[bool, ...] = ()           # row by row: under the usual conditions, and not doubted

    @property
    def values(self) -> list[tuple[Record, Value]]:
        return [pair for row in self.used for pair in row]


def build_column(key: ColumnKey, rows: Rows) -> Built:
    """Heading and cells. Raises BadInput for a key of an unknown kind."""
    if "." in key.key and not is_property(key.key):
        raise BadInput(f"report: columns: {key.key!r} is no value name, and no key of {', '.join(SECTIONS)}")
    return (_property_column if is_property(key.key) else _value_column)(key, rows)


# -- measured values -----------------------------------------------------------------------------------------


def _value_column(key: ColumnKey, rows: Rows) -> Built:
    """Numbers under the conditions that most rows share are compared. Others are refused, or, in a column that is
    `mixed`, shown with a footnote."""
    what = asked(key.key, [r for g in rows.groups for r in g.records])
    found, sane = ([measured(g, what) for g in groups] for groups in (rows.groups, rows.sanity))
    preferred = list(dict.fromkeys([*by_preference(found), *by_preference(sane)]))       # yardsticks have no vote
    usual = next((m[preferred[0]] for m in (*found, *sane) if preferred and preferred[0] in m), None)
    sample = usual.values[0][1] if usual is not None else next((v for g in rows.groups for r in g.records
                                                                 for v in what.of(r)), None)
    column, decimals = heading(key, what, sample)
    show = partial(format_number, unit=column.unit, decimals=decimals)

    def cell(
        group: Group, here: Mapping[str, Measured], yardstick: bool = False
    ) -> tuple[Cell, tuple[tuple[Record, Value], ...], bool]:
        chosen = next((here[text] for text in preferred if text in here), None)
        if chosen is None or usual is None:
            return _missing(group, what, rows, () if yardstick else ("not measured",)), (), False
        differ = difference(chosen.conditions, usual.conditions)
        if yardstick:
            differ.pop("weights", None)                     # it has none
        under = f"measured under {', '.join(differ.values())}"
        if not key.mixed and differ.keys() - (OF_THE_DATA if rows.by_dataset else set()):
            sentence = f"{under}: another measurement, so it is not shown (`mixed: true` at this column shows it)"
            return Cell(DASH, mark="missing", notes=(sentence,)), (), False
        notes = [*chosen.doubtful, *([f"{under}; not compared with the others"] if differ else [])]
        doubts = _doubts(group, chosen.values, what, rows)
        notes += [*_absent_runs(group, what, chosen, rows.over), *doubts]
        made = replace(number_cell(chosen.numbers, show), notes=tuple(notes), doubtful=bool(doubts))
        return made, chosen.values, not differ and not doubts

    made = [cell(g, m) for g, m in zip(rows.groups, found, strict=True)]
    cells, used, comparable = ([m[i] for m in made] for i in range(3))
    cells = mark_best(cells, comparable, column.direction)
    cells = mark_alike(cells, [[v.number for _, v in u if v.number is not None] for u in used], comparable)
    yardsticks = tuple(cell(g, m, yardstick=True)[0] for g, m in zip(rows.sanity, sane, strict=True))
    return Built(key, column, tuple(cells), yardsticks, decimals, what, tuple(used), tuple(comparable))


def comparable_numbers(groups: Sequence[Group], key: str) -> list[list[tuple[Record, float]]]:
    """The numbers behind each cell of a column, run by run; [] where they are not to be compared."""
    if is_property(key):
        section, _, name = key.partition(".")
        read = [[(r, getattr(r, section).get(name)) for r in g.records if r.trained or static(key)] for g in groups]
        return [[(r, x) for r, x in runs if isinstance(x, int | float)] for runs in read]
    what = asked(key, [r for g in groups for r in g.records])
    found = [measured(g, what) for g in groups]
    usual = next(iter(by_preference(found)), "")
    return [[(r, v.number) for r, v in here[usual].values if v.number is not None] if usual in here else []
            for here in found]


def static(key: str) -> bool:
    """Whether a dotted key is of the tokenizer, so that training need not have ended well."""
    return key.partition(".")[0] in STATIC or is_cost(key)


def _missing(group: Group, what: Asked, rows: Rows, otherwise: tuple[str, ...]) -> Cell:
    """A dash and why."""
    if (cell := not_trained(group, rows)) is not None:
        return cell
    reasons = [v.reason for r in group.records if r.trained for v in what.of(r) if v.reason]
    doubts = _doubts(group, [(r, v) for r in group.records for v in what.of(r)], what, rows)
    return Cell(DASH, mark="missing", notes=(*reasons, *(d for d in doubts if d not in reasons)) or otherwise)


def not_trained(group: Group, rows: Rows) -> Cell | None:
    """The dash of a row none of whose runs has ended well."""
    if any(r.trained for r in group.records):
        return None
    if all("absent" in r.provenance for r in group.records) and (sentence := absent(rows)):
        return Cell(DASH, mark="skipped", notes=(sentence,))
    state: Mark = "failed" if any(r.state == "failed" for r in group.records) else "skipped"
    return Cell(DASH, mark=state, notes=tuple(ended(group, rows.over)))


def absent(rows: Rows) -> str:
    """One sentence on all published checkpoints whose weights are not here; '' of fewer than two."""
    names = {r.provenance["absent"]: bool(r.provenance.get("by_hand")) for g in rows.groups for r in g.records
             if "absent" in r.provenance}
    told = [f"{what} {', '.join(some)}" for what, by_hand in (("fetches", False), ("says where to get", True))
            if (some := [name for name, hand in names.items() if hand == by_hand])]
    return (f"skipped: weights that are not on this machine; `bench prepare --checkpoint NAME` {', and '.join(told)}"
            if len(names) > 1 else "")


def ended(group: Group, over: Sequence[str]) -> list[str]:
    """Why runs of a row have no numbers, each reason once: 'seed 1, seed 2 failed: ...'."""
    reasons: dict[str, list[Record]] = {}
    for r in group.records:
        if not r.trained:
            reasons.setdefault(f"{r.state}: {(r.reason or 'no reason was recorded').strip()}", []).append(r)
    return [why if len(runs) == len(group.records) else f"{', '.join(among(r, over) for r in runs)} {why}"
            for why, runs in reasons.items()]


def _absent_runs(group: Group, what: Asked, chosen: Measured, over: Sequence[str]) -> list[str]:
    """Trained runs of the row that are not in the mean; failed ones are noted at the row's header."""
    used, notes = {r.train_id for r, _ in chosen.values}, []
    for r in group.records:
        if r.trained and r.train_id not in used:
            mine = what.of(r)
            taken = any(v.number is not None for v in mine)
            why = "measured under other conditions" if taken else "not measured"
            notes.append(f"without {among(r, over)}: {next((v.reason for v in mine if v.reason), why)}")
    return notes


def _doubts(group: Group, values: Sequence[tuple[Record, Value]], what: Asked, rows: Rows) -> list[str]:
    """What the gates say of these numbers, each sentence once; it names the run where the row has several."""
    found: dict[str, list[Record]] = {}
    for r, v in values:
        of_run = rows.doubts.get(r.train_id, {})
        for sentence in dict.fromkeys((*of_run.get(v.name, ()), *of_run.get(what.key, ()))):
            found.setdefault(sentence, []).append(r)
    whole = len(group.records)
    return [s if len(runs) == whole else f"{', '.join(among(r, rows.over) for r in runs)}: {s}"
            for s, runs in found.items()]


# -- properties of a run -------------------------------------------------------------------------------------


def _property_column(key: ColumnKey, rows: Rows) -> Built:
    """What the record says of the run besides measured values; nothing is best here."""
    section, _, name = key.key.partition(".")
    title, factor, decimals = DOTTED.get(key.key, (name.replace("_", " ").replace(".", " "), 1, None))
    decimals = key.decimals if key.decimals is not None else decimals

    def show(x: float) -> str:
        x *= factor
        return f"{x:,.{decimals}f}" if decimals is not None else f"{int(x):,}" if x == int(x) else f"{x:.4g}"

    def cell(group: Group, otherwise: tuple[str, ...]) -> Cell:
        runs = [r for r in group.records if r.trained or static(key.key)]
        found = [x for r in runs if (x := getattr(r, section).get(name)) is not None]
        numbers = [x for x in found if isinstance(x, int | float) and not isinstance(x, bool)]
        notes = _of_others(runs, section, name, show)
        if is_cost(key.key) and any(lower_bound(r, name) for r in runs):
            notes += (LOWER_BOUND,)
        if found and len(numbers) == len(found):
            made = replace(number_cell(numbers, show), notes=notes)
            return replace(made, text=show(made.number or 0.0)) if made.std == 0 else made
        if found and str(found[0]).startswith("https://") and len(set(found)) == 1:
            return Cell(found[0].rstrip("/").rpartition("/")[2], n=len(found), notes=notes, link=found[0])
        if found:
            return Cell("; ".join(dict.fromkeys(fact(key.key, x) for x in found)), n=len(found), notes=notes)
        if is_cost(key.key):
            return Cell(DASH, mark="missing", notes=tuple(dict.fromkeys(missing(r, name) for r in runs)))
        if key.key in OF_CODES and runs and all(r.layout.get("vocab_sizes") == [] for r in runs):
            return Cell("continuous", n=len(runs))
        if key.key in NOTHING and runs and all(name in getattr(r, section) for r in runs):
            return Cell(DASH, mark="missing", notes=(NOTHING[key.key],))
        return not_trained(group, rows) or Cell(DASH, mark="missing", notes=otherwise)

    return Built(key, Column(key.key, key.title if key.title is not None else title),
                 tuple(cell(g, ("not recorded",)) for g in rows.groups), tuple(cell(g, ()) for g in rows.sanity))


def fact(key: str, value: Any) -> str:
    """A fact of a record that is no number, as a reader expects it."""
    if isinstance(value, bool) and key in SIGNS:
        return SIGNS[key][value]
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return ", ".join(map(plain, value)) or "none"
    return plain(value)


def _of_others(runs: Sequence[Record], section: str, name: str, show: Any) -> tuple[str, ...]:
    """What other people's results for the same settings say, where it is something else."""
    notes = []
    for r in runs:
        said: dict[str, list[str]] = {}
        for version in r.versions:
            x = getattr(version, section).get(name)
            if x is not None and version.trained >= r.trained:
                number = isinstance(x, int | float) and not isinstance(x, bool)
                said.setdefault(show(x) if number else plain(x), []).append(told(version))
        if len(said) > 1:
            notes.append(differing([(text, "; ".join(dict.fromkeys(whose))) for text, whose in said.items()]))
    return tuple(notes)


# -- numbers -------------------------------------------------------------------------------------------------


def format_number(x: float, unit: str, decimals: int) -> str:
    """A share is shown as per cent."""
    return f"{100 * x:.{decimals}f}%" if unit == "share" else f"{x:.{decimals}f}"


def number_cell(numbers: Sequence[float], show: Any) -> Cell:
    """Mean and sample standard deviation (ddof = 1) of the runs of a row."""
    mean = float(statistics.fmean(numbers)) if len(set(numbers)) > 1 else float(numbers[0])
    if len(numbers) == 1:
        return Cell(show(mean), mean, None, 1)
    std = float(statistics.stdev(numbers))
    return Cell(f"{show(mean)} ± {show(std)}", mean, std, len(numbers))


def common_n(columns: Sequence[Built]) -> int:
    """How many runs most cells of measured values are the mean of."""
    counts = Counter(c.n for built in columns if built.column.measured for c in built.cells if c.number is not None)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def show_n(built: Built, common: int) -> Built:
    """With the number of runs at cells of fewer or more than is common."""
    if not built.column.measured:
        return built
    return replace(built, cells=tuple(c if c.number is None or c.n == common else replace(c, text=f"{c.text} (n={c.n})")
                                      for c in built.cells))
