"""Which stored numbers belong in a column, and under which conditions each was measured. Torch-free.

A column `ssim` finds values of that name. `ssim@llamagen` asks for a measurement by its content: whatever the value
is called, it belongs there if metric, keywords and preparation of the images are those of that protocol.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BadInput
from bench.protocol import SEPARATOR, Wish, wanted
from bench.registry import signature
from bench.report.grouping import ABSENT, Group, canonical, plain
from bench.results import Record, Value
from bench.versions import told


def attributes(metric: str) -> Mapping[str, Any]:
    """A metric's literal class attributes; {} where its source is not here any more."""
    try:
        return signature("metric", metric).attributes
    except (BadInput, SyntaxError, OSError):
        return {}


def conditions(record: Record, value: Value) -> dict[str, Any]:
    """How a number was measured, flat, and on which test images. Only equal conditions may be compared."""
    found = value.conditions()
    test = record.data.get("test")
    return found | ({"test images": test.fingerprint} if test is not None else {})


def difference(mine: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, str]:
    """Condition -> 'psnr 1 instead of 2', of those that differ."""
    pairs = {k: (mine.get(k, ABSENT), usual.get(k, ABSENT)) for k in sorted({*mine, *usual})}
    return {k: f"{k} {plain(a)} instead of {plain(b)}" for k, (a, b) in pairs.items() if a != b}


# -- values of a column --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What a column of measured values asks for."""

    key: str                                    # as the suite writes it: ssim, or ssim@llamagen
    wish: Wish | None = None                    # of a key with a protocol: what is looked up by content

    @property
    def name(self) -> str:
        """The value's name in its protocol."""
        return self.key.partition(SEPARATOR)[0]

    @property
    def protocol(self) -> str:
        """The protocol that the key names; '' where it names none."""
        return self.key.partition(SEPARATOR)[2]

    def of(self, record: Record) -> list[Value]:
        """The record's values for this column, by value id."""
        values = [v for _, v in sorted(record.values.items())]
        if self.wish is not None:
            return [v for v in values if v.name == self.key or same_content(v, self.wish)]
        return [v for v in values if v.name == self.key] or _under_another_name(self.key, values)


def asked(key: str, records: Sequence[Record]) -> Asked:
    """Raises BadInput for an unknown protocol, or a value it does not have, unless a record knows the key."""
    if SEPARATOR not in key:
        return Asked(key)
    try:
        return Asked(key, wanted(key, ""))
    except BadInput as error:
        if any(v.name == key for r in records for v in r.values.values()):
            return Asked(key)
        raise BadInput(f"report: columns: {key}: {error}") from None


def same_content(value: Value, wish: Wish) -> bool:
    """Whether a stored value was measured as a protocol wishes: metric, keywords, preparation of the images."""
    return (value.metric == wish.metric.name and value.settings.get("prepare") == wish.prepare
            and value.telling_keywords() == json.loads(canonical(wish.keywords)))


def _under_another_name(key: str, values: Sequence[Value]) -> list[Value]:
    """`psnr`, where the same measurement was asked for as `psnr@llamagen` first and is stored under that name."""
    others = [v for v in values if v.name.startswith(key + SEPARATOR)]
    found = []
    for protocol in sorted({v.protocol for v in values if SEPARATOR not in v.name}) if others else ():
        try:
            wish = wanted(key, protocol)
        except BadInput:
            continue
        found += [v for v in others if same_content(v, wish)]
    return found


# -- numbers of a row ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of one group under one set of conditions."""

    conditions: dict[str, Any]
    values: tuple[tuple[Record, Value], ...]
    doubtful: tuple[str, ...] = ()              # sentences on runs that were measured twice, differently, or by others

    @property
    def numbers(self) -> list[float]:
        return [v.number for _, v in self.values if v.number is not None]


def measured(group: Group, column: Asked) -> dict[str, Measured]:
    """The numbers of a group's trained runs by their conditions, in canonical form."""
    found: dict[str, Measured] = {}
    for record in group.records:
        here: dict[str, list[tuple[Record, Value]]] = {}
        for version in record.versions:
            for value in column.of(version) if version.trained else ():
                if value.number is not None and math.isfinite(value.number):
                    here.setdefault(canonical(conditions(version, value)), []).append((version, value))
        for text, values in here.items():
            before = found.get(text, Measured(conditions(*values[0]), ()))
            runs = (*before.values, values[0])
            found[text] = Measured(before.conditions, runs, (*before.doubtful, *_doubt(record, values)))
    return found


def _doubt(record: Record, values: Sequence[tuple[Record, Value]]) -> tuple[str, ...]:
    """What is to be said of a run's numbers under one set of conditions, the first of which is shown."""
    numbers = list(dict.fromkeys(v.number for _, v in values))
    shown = values[0][0]
    if len(numbers) > 1:
        if all(version is shown for version, _ in values):
            return (f"measured more than once under the same conditions, with different results "
                    f"({', '.join(repr(x) for x in numbers)}); the first is shown",)
        return (differing([(repr(x), "; ".join(dict.fromkeys(told(r) for r, v in values if v.number == x))) for x in numbers]),)
    return () if shown is record else (f"not of the run whose numbers stand beside it, but of one with the same settings "
                                       f"({told(shown)})",)


def differing(said: Sequence[tuple[str, str]]) -> str:
    """Footnote of results that `bench merge` kept side by side: (what, whose), the one that is shown first."""
    each = ", ".join(f"{what} ({whose})" for what, whose in said)
    return f"results of several people for the same settings differ: {each}; the first is shown"


def by_preference(rows: Sequence[Mapping[str, Measured]]) -> list[str]:
    """Conditions that most rows share come first; of equally frequent ones, the metric's newest revision."""
    counts = Counter(text for m in rows for text in m)
    known = {text: one.conditions for m in rows for text, one in m.items()}

    def preference(text: str) -> tuple[int, float, str]:
        revision = known[text].get("revision")
        return -counts[text], -revision if isinstance(revision, int | float) else 0.0, text

    return sorted(counts, key=preference)
