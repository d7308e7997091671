"""Our numbers against published ones, with a tolerance and a verdict in words. Torch-free."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from bench.errors import BadInput
from bench.published import Match, Published, candidates, filled, published_file, read_published
from bench.registry import did_you_mean
from bench.report.formats import Quick
from bench.report.spec import ReportSpec
from bench.results import Record, Value
from bench.terminal import console

if TYPE_CHECKING:
    from rich.table import Table

Outcome = Literal["agrees", "differs", "not comparable", "no published number"]
STYLES: dict[Outcome, str] = {
    "agrees": "green", "differs": "red", "not comparable": "yellow", "no published number": "dim"}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart two runs of one recipe may be: `absolute` in the metric's unit, and `relative` to the published."""

    absolute: float = 0.0
    relative: float = 0.0

    def of(self, published: float) -> float:
        return self.absolute + self.relative * abs(published)


#: What `verify` allows beside half a unit of the last printed digit; its docstring has the reasons.
TOLERANCES: dict[str, Tolerance] = {
    "psnr": Tolerance(absolute=0.1),
    "ssim": Tolerance(absolute=0.005),
    "lpips": Tolerance(absolute=0.005),
    "rfid": Tolerance(relative=0.05),
    "usage": Tolerance(absolute=0.02),
    "usage_window": Tolerance(absolute=0.02),
    "perplexity": Tolerance(relative=0.05),
    "perplexity_window": Tolerance(relative=0.05),
    "gfid": Tolerance(relative=0.05),
    "is": Tolerance(relative=0.05),
    "precision": Tolerance(absolute=0.02),
    "recall": Tolerance(absolute=0.02),
}
ORDER = {name: place for place, name in enumerate(TOLERANCES)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measured number of a run beside the published one; or that a run has none to be held against."""

    label: str                                  # of the run
    train_id: str
    column: str                                 # the value's name: ssim, ssim@xyfjason-2024; empty: the whole run
    outcome: Outcome
    why: tuple[str, ...] = ()                   # of "not comparable" and "no published number": the reasons
    remarks: tuple[str, ...] = ()               # what holds in any case: another seed, read off an image
    ours: float | None = None
    unit: str = ""
    published: Published | None = None
    difference: float | None = None             # ours minus the published
    tolerance: float | None = None

    @property
    def words(self) -> str:
        """The verdict in words: "agrees", "differs", "not comparable: measured on 705 images instead of 19,962"."""
        said = f"{self.outcome}: {'; '.join(self.why)}" if self.why else self.outcome
        return f"{said} ({'; '.join(self.remarks)})" if self.remarks else said


def verify(
    records: Iterable[Record],
    report: ReportSpec,
    entries: Sequence[Published] | None = None,
    tolerances: Mapping[str, Tolerance | float] | None = None,
) -> list[Verdict]:
    """Every measured value of every run that has a published counterpart, and the runs and values that have none.

    Two numbers *agree* when they are at most half a unit of the last printed digit plus the metric's tolerance apart.
    No published table states its spread over seeds, so the tolerances are ours. They are strict: "differs" means that
    one of the two wants looking at, not that it is wrong.

    - psnr 0.1 dB, ssim and lpips 0.005. The library alone moves the fourth decimal (31.5486 and 31.5487 dB for one
      checkpoint); a row of the CelebA table that was trained again between two versions of it moved by 0.24 dB and
      0.0044; neighbouring rows that a reader wants to tell apart are 0.1 to 0.5 dB apart.
    - rfid, gfid, is 5 %. That same row moved by 1.3 %; one checkpoint (LlamaGen f16) reads 2.11 or 2.19, 4 % apart,
      with another library on the same reference images.
    - usage 2 points, perplexity 5 %: which codes die early depends on the seed. precision and recall 0.02: they are
      printed with two digits and counted over 10,000 images.

    `tolerances` replaces those of the metrics it names; a number is absolute. Numbers that were measured otherwise, on
    other images, after a shorter training or by another network, and numbers that are only recalled, are not
    comparable, however near they are. Raises BadInput for a tolerance of no known metric, or below 0.
    """
    allowed = TOLERANCES | {name: _checked(name, t) for name, t in (tolerances or {}).items()}
    known = read_published() if entries is None else entries
    found: list[Verdict] = []
    for record in records:
        if not record.trained:
            found.append(_without(record, "", (f"the run is {record.state}",)))
            continue
        found += _of_run(record, report, known, allowed)
    return found


def _of_run(record: Record, report: ReportSpec, entries: Sequence[Published],
            allowed: Mapping[str, Tolerance]) -> list[Verdict]:
    values: dict[str, Value] = {}
    for _, value in sorted(record.values.items()):
        if value.number is not None:
            values.setdefault(value.name, value)
    verdicts: list[Verdict] = []
    for column in sorted(values, key=_place):
        metric, _, protocol = column.partition("@")
        pairs = [p for p in candidates(record, metric, report.published, entries) if p.value.name == column]
        pairs.sort(key=lambda p: (not isinstance(p, Match), bool(protocol) and p.entry.protocol != protocol))
        if not pairs:
            verdicts.append(_without(record, column, (), values[column]))
            continue
        pair = pairs[0]
        entry, value = pair.entry, pair.value
        tolerance = allowed.get(metric, Tolerance()).of(entry.value) + 0.5 * 10.0 ** -entry.decimals
        difference = (value.number or 0.0) - entry.value
        why, remarks = (pair.obstacles, pair.remarks) if isinstance(pair, Match) else ((pair.why,), ())
        near = abs(difference) <= tolerance * (1 + 1e-9)        # 0.15 - 0.1 is a little above 0.05
        outcome: Outcome = "not comparable" if why else "agrees" if near else "differs"
        verdicts.append(Verdict(record.label, record.train_id, column, outcome, why, remarks, value.number, value.unit,
                                entry, difference, tolerance))
    if any(v.published is not None for v in verdicts):
        return verdicts
    return [_without(record, "", _missed(record, report))]


def _place(column: str) -> tuple[int, str]:
    return ORDER.get(column.partition("@")[0], len(ORDER)), column


def _without(record: Record, column: str, why: tuple[str, ...], value: Value | None = None) -> Verdict:
    ours, unit = (None, "") if value is None else (value.number, value.unit)
    return Verdict(record.label, record.train_id, column, "no published number", why, ours=ours, unit=unit)


def _missed(record: Record, report: ReportSpec) -> tuple[str, ...]:
    """Why a run has no published counterpart at all: what was looked for."""
    if not report.published:
        return ("the suite's report section does not say which published systems its runs are (report.published)",)
    where = f"{record.fields.get('dataset.name')} {record.fields.get('dataset.image_size')}"
    said = []
    for spec in report.published:
        system, variant = filled(spec.system, record.fields), filled(spec.variant, record.fields)
        if system is None or variant is None:
            template = spec.system if system is None else spec.variant
            said.append(f"{template!r} names a setting that the run does not have")
        else:
            said.append(f"no number of {system} {variant}".rstrip() + f" on {where} that the run could be")
    return tuple(dict.fromkeys(said))


def _checked(name: str, tolerance: Tolerance | float) -> Tolerance:
    made = tolerance if isinstance(tolerance, Tolerance) else Tolerance(absolute=tolerance)
    if name not in TOLERANCES:
        raise BadInput(f"--tolerance {name}: nothing is published of it{did_you_mean(name, TOLERANCES)}")
    for x in (made.absolute, made.relative):
        if not (math.isfinite(x) and x >= 0):
            raise BadInput(f"--tolerance {name} = {x}: a tolerance is a number of at least 0")
    return made


def read_tolerance(text: str) -> tuple[str, Tolerance]:
    """`psnr=0.2` (in the metric's unit; of a usage, 0.02 is two points) or `rfid=5%` (of the published number).

    Raises BadInput for anything else.
    """
    name, equals, number = (part.strip() for part in text.partition("="))
    try:
        amount = float(number.removesuffix("%"))
    except ValueError:
        equals = ""
    if not equals:
        raise BadInput(f"--tolerance {text}: write METRIC=NUMBER in the metric's unit, "
                       f"or METRIC=NUMBER% of the published value")
    made = Tolerance(relative=amount / 100) if number.endswith("%") else Tolerance(absolute=amount)
    return name, _checked(name, made)


def differing(verdicts: Iterable[Verdict]) -> bool:
    """Whether a number that is comparable differs: what `bench verify` ends with 1 for."""
    return any(v.outcome == "differs" for v in verdicts)


# -- showing ---------------------------------------------------------------------------------------------------


def _number(x: float, unit: str, decimals: int, *, sign: str = "") -> str:
    return f"{100 * x:{sign}.{max(decimals - 2, 0)}f}%" if unit == "share" else f"{x:{sign}.{decimals}f}"


def cells(verdict: Verdict) -> tuple[str, str, str, str, str, str, str]:
    """run, value, ours, published, difference, tolerance, verdict: as they are printed."""
    v = verdict
    decimals = max(v.published.decimals, 4) if v.published is not None else 4
    ours = "" if v.ours is None else _number(v.ours, v.unit, decimals)
    if v.published is None or v.difference is None or v.tolerance is None:
        return v.label, v.column, ours, "", "", "", v.words
    return (v.label, v.column, ours, v.published.shown(), _number(v.difference, v.unit, decimals, sign="+"),
            _number(v.tolerance, v.unit, decimals), v.words)


def verdict_table(title: str, verdicts: Sequence[Verdict]) -> Table:
    """For the terminal; a run's name is printed once."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("run", "value", "ours", "published", "difference", "tolerance", "verdict"):
        number = heading in ("ours", "published", "difference", "tolerance")
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    before = None
    for verdict in verdicts:
        label, *others = cells(verdict)
        shown = [label if verdict.train_id != before else "", *others]
        table.add_row(*map(Text, shown[:-1]), Text(shown[-1], style=STYLES[verdict.outcome]))
        before = verdict.train_id
    return table


def summary(verdicts: Iterable[Verdict]) -> str:
    """`3 agree, 1 differs, 14 not comparable, 2 without a published number`."""
    counts = Counter(v.outcome for v in verdicts)
    words: dict[Outcome, tuple[str, str]] = {
        "agrees": ("agrees", "agree"), "differs": ("differs", "differ"), "not comparable": ("not comparable",) * 2,
        "no published number": ("without a published number",) * 2}
    return ", ".join(f"{counts[o]} {w[counts[o] != 1]}" for o, w in words.items() if counts[o]) or "no runs"


def print_verdicts(title: str, verdicts: Sequence[Verdict]) -> None:
    """The table, what the published numbers' sources are, and the counts."""
    console.print(Quick(verdict_table(title, verdicts)))
    sources = sorted({f"{v.published.source}, {v.published.table}" for v in verdicts if v.published is not None})
    for source in sources:
        console.print(Text(f"source: {source}"))
    if not sources and published_file() is None:
        console.print(Text("there is no results/published.csv here"))
    console.print(Text(summary(verdicts)))


def to_json(verdicts: Iterable[Verdict]) -> str:
    """A list of objects; `published.shown` is the number with its mark, which belongs wherever it is printed."""

    def one(v: Verdict) -> dict[str, Any]:
        p = v.published
        entry = None if p is None else {
            "id": p.id, "system": p.system, "variant": p.variant, "shown": p.shown(), "number": p.value, "unit": p.unit,
            "protocol": p.protocol, "evidence": p.evidence, "source": p.source, "table": p.table, "note": p.note,
            "doubt": p.doubt}
        return {"run": v.label, "train_id": v.train_id, "value": v.column, "ours": v.ours, "unit": v.unit,
                "published": entry, "difference": v.difference, "tolerance": v.tolerance, "verdict": v.outcome,
                "why": list(v.why), "remarks": list(v.remarks), "words": v.words}

    return json.dumps([one(v) for v in verdicts], indent=2)
