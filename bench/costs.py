"""What a tokenizer costs, among the numbers of its runs: from what `bench profile tokenizers` has kept. Torch-free.

A record of a run or a checkpoint names its tokenizer's keywords and the image size, and so does what was profiled; weights do
not matter. MACs and parameters are the same everywhere. Times and memory are of one machine, precision and large batch in
one report: those of another are not shown, and why is said.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bench.errors import BadInput
from bench.registry import signature
from bench.results import Component, Record
from bench.spec import ComponentSpec, Spec, identity
from bench.timings import Architecture, Machine, Timing, newest, read_architectures, read_timings


@dataclass(frozen=True, slots=True)
class Cost:
    """A number of a record's `cost` that profiling gives."""

    heading: str
    factor: float                               # of the number, in tables
    decimals: int
    direction: Literal["higher", "lower"]
    timed: bool = True                          # on one machine


def _costs() -> dict[str, Cost]:
    found = {f"{what}_macs": Cost(f"{what} GMACs", 1e-9, 1, "lower", timed=False) for what in ("encode", "decode")}
    for end, batch in (("_1", "batch 1"), ("", "large batch")):
        found |= {f"{what}_images_per_second{end}": Cost(f"{what} images/s, {batch}", 1, 2, "higher") for what in ("encode", "decode")}
        found |= {f"{what}_peak_bytes{end}": Cost(f"{what} MiB/image, {batch}", 2**-20, 0, "lower") for what in ("encode", "decode")}
    return found


#: names below `cost`: of one image; `_1` at batch 1, without it at the large batch
COSTS = _costs()


def is_cost(key: str) -> bool:
    """Whether a dotted column key is one of COSTS."""
    return key.removeprefix("cost.") in COSTS and key.startswith("cost.")


# -- who is who ------------------------------------------------------------------------------------------------------


class _Key(Spec):
    model: ComponentSpec
    image_size: int


def architecture_id(model: ComponentSpec, image_size: int) -> str:
    """12 hex over a tokenizer's keywords and the image size."""
    return identity(_Key(model=model, image_size=image_size))


def architecture_of(record: Record) -> str | None:
    """The same id for what a record is of; None where it does not say, or by code that is not here."""
    model, size = record.spec.get("model"), record.fields.get("dataset.image_size")
    if not isinstance(model, Mapping) or not isinstance(size, int):
        return None
    try:
        return architecture_id(ComponentSpec(**model), size)
    except (BadInput, ValidationError, TypeError):
        return None


# -- which machine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Condition:
    """What the times in one column have in common."""

    machine: Machine
    dtype: str
    batch: int                                  # the large one; 1 where there is no larger one

    @property
    def text(self) -> str:
        """'AMD EPYC (25/17), 2 threads on 2 cores, AVX2, torch 2.8.0, fp32'."""
        m = self.machine
        threads = f"{m.threads} threads on {m.cores} cores" if m.device == "cpu" else ""
        return ", ".join(part for part in (m.processor, threads, m.backend, f"torch {m.torch}", self.dtype) if part)


def conditions(timings: Iterable[Timing]) -> dict[Condition, dict[tuple[str, str, int], Timing]]:
    """Condition -> (structure, what, batch) -> the newest timing, of all that have seconds."""
    found: dict[tuple[str, str], list[Timing]] = {}
    for t in newest(t for t in timings if t.kind == "tokenizer" and t.seconds and t.structure):
        found.setdefault((t.machine.fingerprint, t.dtype), []).append(t)
    out = {}
    for mine in found.values():
        cases = {(t.structure, t.what, t.size["batch"]): t for t in sorted(mine, key=lambda t: t.session)}
        for batch in sorted({b for *_, b in cases if b > 1} or {1}):
            out[Condition(mine[0].machine, mine[0].dtype, batch)] = {k: t for k, t in cases.items() if k[2] in (1, batch)}
    return out


def choose(
    known: Mapping[Condition, Mapping[tuple[str, str, int], Timing]], structures: Sequence[str], machine: str = ""
) -> Condition | None:
    """That under which most of these were timed, of several the newest; only machines whose text holds `machine`."""

    def rank(c: Condition) -> tuple[int, str, int]:
        mine = [t for (s, _, batch), t in known[c].items() if s in structures and batch == c.batch]
        return len({t.structure for t in mine}), max((t.session for t in mine), default=""), c.batch

    fitting = [c for c in known if machine.lower() in c.text.lower() and rank(c)[0]]
    return max(fitting, key=rank, default=None)


# -- into records ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Profile:
    """All that was profiled."""

    architectures: tuple[Architecture, ...] = ()
    timings: tuple[Timing, ...] = ()

    @classmethod
    def read(cls, results: Path) -> Profile:
        """From results/profile. Raises BadInput for a broken line."""
        home = results / "profile"
        return cls(tuple(read_architectures(home / "architectures.jsonl")), tuple(read_timings(home / "tokenizers.jsonl")))


def with_costs(records: Sequence[Record], profile: Profile, machine: str = "") -> list[Record]:
    """The records with `cost` and `parameters` of what was profiled beside their own, and `provenance.costs` on where.

    A published checkpoint whose weights are not here is known by its name, and gets its layout, too. What a record says
    itself stays. Raises BadInput where `machine` is no part of the name of one that times were measured on.
    """
    if not profile.architectures:
        return list(records)
    by_id = {a.architecture: a for a in profile.architectures}
    by_checkpoint = {name: a for a in profile.architectures for name in a.checkpoints}
    of: list[Architecture | None] = []
    for r in records:
        absent = r.spec.get("model", ...) is None and r.state == "skipped"
        of.append(by_checkpoint.get(str(r.fields.get("checkpoint.name"))) if absent else by_id.get(architecture_of(r) or ""))
    known = conditions(profile.timings)
    structures = [a.structure for a in of if a is not None]
    chosen = choose(known, structures, machine)
    if machine and known and not any(machine.lower() in c.text.lower() for c in known):
        raise BadInput(f"report: machine: {machine!r} is in the name of no machine that times were measured on: "
                       f"{'; '.join(dict.fromkeys(c.text for c in known))}")
    return [r if a is None else _filled(r, a, chosen, known) for r, a in zip(records, of, strict=True)]


def _filled(r: Record, a: Architecture, chosen: Condition | None, known: Mapping[Condition, Mapping[tuple[str, str, int], Timing]]) -> Record:
    cost: dict[str, float | None] = {f"{what}_macs": float(count) for what, count in a.macs.items()}
    facts: dict[str, Any] = {"commit": a.commit}
    shared: list[str] = []
    if chosen is not None:
        cases = known[chosen]
        for what in a.macs:
            for end, batch in (("_1", 1), ("", chosen.batch)):
                if (t := cases.get((a.structure, what, batch))) is None or (batch == 1 and not end):
                    continue
                cost[f"{what}_images_per_second{end}"] = batch / t.median
                if t.shared:
                    shared.append(f"{what}_images_per_second{end}")
                if t.memory is not None:
                    cost[f"{what}_peak_bytes{end}"] = t.memory / batch
        mine = [t for (s, what, _), t in cases.items() if s == a.structure and what in a.macs]
        if mine:
            facts |= {"machine": chosen.text, "batch": chosen.batch, "rounds": [len(t.seconds) for t in mine],
                      "shared": shared,
                      "session": max(t.session for t in mine), "commit": mine[0].commit, "memory_by": mine[0].memory_by}
        elif elsewhere := [c.text for c, found in known.items() if any(s == a.structure for s, *_ in found)]:
            facts["elsewhere"] = elsewhere[0]
    unless = {} if r.layout else {"layout": a.layout}
    return r.model_copy(update={
        "cost": {**cost, **r.cost}, "parameters": {**a.parameters, **r.parameters}, "provenance": {**r.provenance, "costs": facts}, **unless})


def system_records(profile: Profile, condition: Condition | None = None) -> list[Record]:
    """One record for each structure, with its costs: what the table of all systems is made of. condition: which times, instead
    of those under which most were timed."""
    groups: dict[str, list[Architecture]] = {}
    for a in profile.architectures:
        groups.setdefault(a.structure, []).append(a)
    known = conditions(profile.timings)
    chosen = condition or choose(known, list(groups))
    made = []
    for structure, members in groups.items():
        names = sorted(dict.fromkeys(n for a in members for n in a.names), key=len)
        first, model = members[0], ComponentSpec(**members[0].model)
        made.append(_filled(Record(
            train_id=structure, label=names[0], state="done", spec={"model": first.model},
            fields={"system": _few(names), "tokenizer.name": model.name, "dataset.image_size": first.image_size},
            components={"tokenizer": _titled(model)}, layout=first.layout, provenance={"commit": first.commit, "dirty": first.dirty}), first, chosen, known))
    return made


def _titled(model: ComponentSpec) -> Component:
    try:
        return Component(name=model.name, title=signature(model.kind, model.name).title, source=None)
    except BadInput:                            # of somebody's own folder, which is not here
        return Component(name=model.name, title=model.name, source=None)


def _few(names: Sequence[str], most: int = 2) -> str:
    return " = ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- what is said of them --------------------------------------------------------------------------------------------


def missing(record: Record, name: str) -> str:
    """Why a record has no such number, as a sentence without a full stop."""
    facts = record.provenance.get("costs")
    if facts is None:
        return "not profiled: `bench profile tokenizers` measures it"
    if COSTS[name].timed and facts.get("elsewhere"):
        return f"timed on another machine only ({facts['elsewhere']}), so it is not shown"
    return "not timed: `bench profile tokenizers` does" if COSTS[name].timed else "not recorded"


def lower_bound(record: Record, name: str) -> bool:
    """Whether such a rate was measured while something else had the processor."""
    return name in (record.provenance.get("costs") or {}).get("shared", ())


def machine_of(records: Iterable[Record]) -> str:
    """Where the times of these records were measured; '' where there are none."""
    return next((m for r in records if (m := (r.provenance.get("costs") or {}).get("machine"))), "")


def cost_notes(keys: Iterable[str], records: Sequence[Record]) -> list[str]:
    """Sentences on the columns of a table that are costs."""
    names = [k.removeprefix("cost.") for k in keys if is_cost(k)]
    facts = [f for r in records if (f := r.provenance.get("costs"))]
    if not names or not facts:
        return []
    notes = []
    if any(not COSTS[n].timed for n in names):
        notes.append("MACs: multiply-adds of convolutions, matrix products and the search for codes, of one image; they depend on no machine.")
    timed = [f for f in facts if f.get("machine")]
    if timed and any(COSTS[n].timed for n in names):
        rounds = sorted(n for f in timed for n in f["rounds"])
        spread = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
        batch = {f["batch"] for f in timed}
        large = f"; the large batch is {', '.join(map(str, sorted(batch)))} images" if batch != {1} else ""
        days = sorted({f["session"][:10] for f in timed})
        commits = sorted({(f["commit"] or "unknown")[:12] for f in timed})
        notes.append(f"Times and memory: {timed[0]['machine']}; medians of {spread} rounds{large}; {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
                     f"commit {', '.join(commits)}.")
        if any("bytes" in n for n in names):
            notes.append(f"Memory: at the peak of a call beyond weights and input, by image ({timed[0]['memory_by']}).")
    return notes


@functools.cache
def headings() -> dict[str, tuple[str, float, int]]:
    """Dotted key -> heading, factor and decimals of its column."""
    return {f"cost.{name}": (c.heading, c.factor, c.decimals) for name, c in COSTS.items()}
