"""Which runs may share a table row: those that differ in nothing but the `over` keys. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import BadInput
from bench.registry import did_you_mean
from bench.report.spec import RowKey
from bench.results import Record

ABSENT = object()
DASH = "–"
DATA = "train.data"     # the fact that says which images a run was trained on
RUN = "run"             # last resort: the run's own id tells it from another


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in the `over` keys alone."""

    records: tuple[Record, ...]
    facts: dict[str, Any]                       # dotted key -> scalar; components by name; without `over`
    spec: dict[str, Any] = field(default_factory=dict)      # the resolved spec, flat, likewise

    def fact(self, key: str) -> Any:
        if key == RUN:
            return self.records[0].train_id
        if key.startswith("spec."):
            return self.spec.get(key.removeprefix("spec."), ABSENT)
        return self.facts.get(key, ABSENT)


@dataclass(frozen=True, slots=True)
class Arranged:
    """Groups in the order of the rows, and what heads them."""

    groups: tuple[Group, ...]
    keys: tuple[RowKey, ...]                    # as asked for, then those added to tell rows apart
    added: tuple[str, ...]                      # keys that were added
    unseen: dict[str, tuple[str, ...]]          # keys that differ between rows and head none
    absent: tuple[str, ...] = ()                # sentences on keys that were asked for and that no run has


_json = json.JSONEncoder(sort_keys=True, default=str).encode


def canonical(value: Any) -> str:
    """A text that is equal exactly for equal values; 1 and 1.0 differ."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)                      # as JSON writes it, at a tenth of the time; most settings are numbers
    return "absent" if value is ABSENT else _json(value)


def arrange(
    records: Iterable[Record], keys: Sequence[RowKey], over: Sequence[str], *, leave_out: bool = False
) -> Arranged:
    """Group runs, add the row keys that are needed to tell groups apart, and sort.

    Raises BadInput for a row key that no run has. With `leave_out` one is left out where other keys are known: of a
    suite whose runs differ in kind, the first ones may not have it.
    """
    groups = group(sorted(records, key=lambda r: r.train_id), over)
    known = sorted({k for g in groups for k in g.facts})
    missing = {key.resolved: f"no run has the key {key.key!r}{did_you_mean(key.resolved, known)}"
               for key in keys if groups and key.resolved not in known}
    if missing and not (leave_out and len(missing) < len(keys)):
        raise BadInput(f"report: rows: {next(iter(missing.values()))}")
    keys = [key for key in keys if key.resolved not in missing]
    asked = [k.resolved for k in keys]
    added = distinguishing(groups, asked)
    all_keys = (*keys, *(RowKey(key=k, title=_added_title(k, added)) for k in added))
    ordered = tuple(ordered_groups(groups, all_keys))
    return Arranged(ordered, all_keys, tuple(added), _unseen(groups, {*asked, *added}), tuple(missing.values()))


def _added_title(key: str, added: Sequence[str]) -> str | None:
    last = key.rpartition(".")[2]
    if key.startswith("spec.") or sum(k.rpartition(".")[2] == last for k in added) > 1:
        return key.removeprefix("spec.").replace("_", " ")
    return None


# -- grouping ------------------------------------------------------------------------------------------------


def facts(record: Record, over: Sequence[str]) -> dict[str, Any]:
    """All that a suite says of a run, and the images it was trained on, without the keys averaged over."""
    found = {k.removesuffix(".name"): v for k, v in record.fields.items()}
    found |= {k: c.name for k, c in record.components.items()}
    if images := _training_images(record):
        found[DATA] = images
    below = tuple(f"{o}." for o in over)
    return {k: v for k, v in found.items() if k not in over and not k.startswith(below)}


def _training_images(record: Record) -> list[Any] | None:
    images = record.data.get("train")
    return None if images is None else [images.fingerprint, images.images, images.of]


def _spec_facts(record: Record, over: Sequence[str]) -> dict[str, Any]:
    """The resolved spec, flat. It holds what fields may not show: revisions of the arithmetic."""
    tails = tuple("." + o.partition(".")[2] for o in over if "." in o)
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for k, v in value.items():
                walk(v, path if k == "kwargs" else f"{path}.{k}")
        elif not path.endswith(tails):
            found[path[1:]] = value

    walk(record.spec, "")
    return found


def group(records: Iterable[Record], over: Sequence[str]) -> list[Group]:
    """Runs whose facts and spec are equal but for `over`; two with equal `over` values share no group."""
    alike: dict[Hashable, list[Record]] = {}
    said: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}        # by id of the record: its facts and its spec
    for record in records:
        known, spec = said[id(record)] = facts(record, over), _spec_facts(record, over)
        alike.setdefault((canonical({**known, DATA: None}), canonical(spec)), []).append(record)
    groups = []
    for members in alike.values():
        for part in _by_training_images(members):
            settled = [tuple(canonical(over_value(r, o)) for o in over) for r in part]
            runs = [part] if len(set(settled)) == len(part) else [[r] for r in part]
            for run in runs:
                run = sorted(run, key=lambda r: [_rank(over_value(r, o)) for o in over])
                shown = next((r for r in run if "train" in r.data), run[0])
                groups.append(Group(tuple(run), said[id(shown)][0], said[id(run[0])][1]))
    return groups


def _by_training_images(records: list[Record]) -> list[list[Record]]:
    """A run that failed before it saw images joins the others, unless these disagree."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(canonical(_training_images(record) or record.fields.get(DATA)), []).append(record)
    known = {k: v for k, v in parts.items() if "train" in v[0].data}
    if len(known) <= 1:
        return [records]
    return list(parts.values())


def among(record: Record, over: Sequence[str]) -> str:
    """What names a run within its row: 'seed 2'."""
    named = [f"{o.rpartition('.')[2]} {plain(over_value(record, o))}" for o in over]
    return ", ".join(named) or f"run {record.train_id}"


def over_value(record: Record, key: str) -> Any:
    """A run's value of a key that is averaged over."""
    return record.fields.get(key, record.fields.get(f"{key}.name", ABSENT))


# -- telling rows apart --------------------------------------------------------------------------------------


def distinguishing(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """The keys that must be added to `keys` so that no two groups have the same row header."""
    added: list[str] = []
    for find in (_differing_facts, _differing_spec, lambda _: [RUN]):
        for same in _collisions(groups, [*keys, *added]):
            added += [k for k in find(same) if k not in added]
    return added


def _collisions(groups: Sequence[Group], keys: Sequence[str]) -> list[list[Group]]:
    alike: dict[Hashable, list[Group]] = {}
    for g in groups:
        alike.setdefault(tuple(canonical(g.fact(k)) for k in keys), []).append(g)
    return [same for same in alike.values() if len(same) > 1]


def _differing_facts(groups: Sequence[Group]) -> list[str]:
    return _differing(groups, lambda g: g.facts)


def _differing_spec(groups: Sequence[Group]) -> list[str]:
    return [f"spec.{k}" for k in _differing(groups, lambda g: g.spec)]


def _differing(groups: Sequence[Group], of: Callable[[Group], dict[str, Any]]) -> list[str]:
    """Keys that differ; a keyword of a component only counts among groups with that same component."""
    components = sorted({k for g in groups for r in g.records for k in r.components})
    named = {c: [canonical(g.fact(c)) for g in groups] for c in components}
    found = []
    for key in sorted({k for g in groups for k in of(g)}):
        values = [canonical(of(g).get(key, ABSENT)) for g in groups]
        if len(set(values)) == 1:               # so are most, at once
            continue
        owners = [named[c] for c in components if key.startswith(c + ".")]
        seen: dict[Hashable, str] = {}
        if any(seen.setdefault(tuple(owner), value) != value for *owner, value in zip(*owners, values, strict=True)):
            found.append(key)
    return found


def selected(record: Record, keys: Sequence[RowKey]) -> bool:
    """Whether a run has one of the values that each key shows."""
    def named(key: RowKey) -> set[str]:
        component = record.components.get(key.resolved)
        values = [record.fields.get(key.resolved, ABSENT)] if component is None else [component.name, component.title]
        return {canonical(value) for value in values}

    return all(not key.only or named(key) & {canonical(value) for value in key.only} for key in keys)


def _unseen(groups: Sequence[Group], shown: set[str]) -> dict[str, tuple[str, ...]]:
    """Settings that differ between rows though no header shows them: the table must say so."""
    found: dict[str, tuple[str, ...]] = {}
    for key in _differing_facts(groups):
        values = {canonical(v): v for g in groups if (v := g.fact(key)) is not ABSENT}
        if key not in shown and key != DATA and len(values) > 1:
            found[key] = tuple(plain(v) for v in sorted(values.values(), key=_rank))
    return found


# -- order and text ------------------------------------------------------------------------------------------


def _rank(value: Any) -> tuple[int, Any]:
    if value is ABSENT:
        return (4, "")
    if value is None:
        return (3, "")
    if isinstance(value, int | float):
        return (0, value)
    if isinstance(value, str):
        return (1, value)
    return (2, canonical(value))


def ordered_groups(groups: Sequence[Group], keys: Sequence[RowKey]) -> list[Group]:
    """Sorted by the row keys from left to right, each in its own direction."""
    ordered = list(groups)
    for key in reversed(keys):
        known = component_titles(groups, key.resolved)

        def position(g: Group, key: RowKey = key, titles: dict[Any, str] = known) -> int:
            value = g.fact(key.resolved)
            names = [value, titles.get(value)] if isinstance(value, str) else [value]
            meant = (i for i, v in enumerate(key.only or key.order) if any(canonical(v) == canonical(n) for n in names))
            return next(meant, len(key.only or key.order))

        def rank(g: Group, name: str = key.resolved) -> tuple[int, Any]:
            return _rank(g.fact(name))

        ordered.sort(key=rank, reverse=key.descending)
        ordered.sort(key=position)
    return ordered


def component_titles(groups: Sequence[Group], key: str) -> dict[Any, str]:
    """Name -> title of the components under a key; titles that two names share carry the name as well."""
    titles = {c.name: c.title for g in groups for r in g.records if (c := r.components.get(key)) is not None}
    shared = [t for t in titles.values() if list(titles.values()).count(t) > 1]
    return {name: f"{title} ({name})" if title in shared else title for name, title in titles.items()}


def plain(value: Any) -> str:
    """A setting as a reader expects it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case list() | tuple():
            return "[" + ", ".join(plain(v) for v in value) + "]"
        case _ if value is ABSENT:
            return DASH
    return str(value)
