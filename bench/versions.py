"""Results of several people for one identity: all that differ are kept, in an order that does not depend on who came first.

A record's versions are the record itself and its `others`. They are taken apart into facts, each (a training and its
measurement, a value of it), and the facts that no other supersedes are put together again: joining is a union of sets,
so it is commutative, associative and idempotent. A fact is superseded only by the same value in a later measurement of the
same training, and a value that could not be measured by one that could. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.results import Record

SOURCES = "merged_from"         # in the provenance of a version among others: whose files hold it
VIEW = ("label", "fields", "components")                    # how a suite calls a run: no result
STATES = ("skipped", "failed", "trained", "done")           # rising


@dataclass(frozen=True, slots=True, order=True)
class _Body:
    """What a version is without its values; the order is that of measurements of one training."""

    state: int
    finished: str
    text: str                   # canonical JSON
    training: str               # canonical JSON of what measuring again leaves as it is


@dataclass(frozen=True, slots=True)
class _Fact:
    body: _Body
    value_id: str = ""          # '' of the fact that there is such a body
    text: str = ""
    number: bool = False        # it could be measured


def join(records: Iterable[tuple[Record, str]]) -> Record:
    """One record of all versions of these, which have one train_id; each comes with the name of its source, or ''. A version
    that says whose it is has not become that of who passed it on.

    The first version is the one with most numbers among those that ended well, of equals the one that was finished first.
    Only where there are several does their provenance say whose they are.
    """
    facts: dict[_Fact, set[str]] = {}
    views, kind = [], None
    for record, source in records:
        kind = type(record)
        for version in record.versions:
            data = version.model_dump(mode="json", exclude={"others"})
            views.append({k: data.pop(k) for k in VIEW})
            named = set(data["provenance"].pop(SOURCES, ())) or ({source} if source else set())
            values = data.pop("values")
            body = _body(data)
            for fact in (_Fact(body), *(_Fact(body, i, _canonical(v), v["number"] is not None) for i, v in values.items())):
                facts.setdefault(fact, set()).update(named)
    assert kind is not None
    entries = _entries(_latest(facts))
    view = min(views, key=_canonical)
    made = []
    for body, values, sources in entries:
        data = json.loads(body.text) | view | {"values": {i: json.loads(text) for i, text in sorted(values.items())}}
        if sources and len(entries) > 1:
            data["provenance"][SOURCES] = sorted(sources)
        made.append(kind.model_validate(data))
    made.sort(key=_preference)
    return made[0].model_copy(update={"others": tuple(made[1:])})


def training_digest(record: Record) -> str:
    """8 hex digits of a version's training: which curves and arrays are its own, however often it was measured."""
    data = record.model_dump(mode="json", exclude={*VIEW, "values", "others"})
    return hashlib.sha256(_body(data).training.encode()).hexdigest()[:8]


def told(record: Record) -> str:
    """Where a version comes from, in words: 'alice: commit 0123456789ab, CPU, 2026-11-20'."""
    facts = record.provenance
    words = [f"commit {facts['commit'][:12]}"] if isinstance(facts.get("commit"), str) else []
    words += [str(facts["device"])] if facts.get("device") else []
    words += [str(facts["finished"])[:10]] if facts.get("finished") else []
    whose = ", ".join(map(str, facts.get(SOURCES, ())))
    return ": ".join(filter(None, (whose, ", ".join(words)))) or "of unknown origin"


def _body(data: dict[str, Any]) -> _Body:
    """`data`: a version as JSON, without its values and its view."""
    facts = {k: v for k, v in data["provenance"].items() if k not in ("finished", "measured_by", SOURCES)}
    kept = {k: v for k, v in data.items() if k not in ("state", "reason", "cost", "provenance")}
    cost = {k: v for k, v in data["cost"].items() if k != "evaluate_seconds"}
    ended = data["state"] in STATES[2:]
    training = _canonical([kept, cost, facts, ended, None if ended else data["reason"]])
    return _Body(STATES.index(data["state"]), str(data["provenance"].get("finished") or ""), _canonical(data), training)


def _latest(facts: dict[_Fact, set[str]]) -> dict[_Fact, set[str]]:
    """Without those that are superseded."""
    latest: dict[tuple[str, str, str], _Fact] = {}
    numbers = {(f.body.training, f.value_id) for f in facts if f.number}
    for fact in facts:
        if fact.value_id and not fact.number:
            if (fact.body.training, fact.value_id) in numbers:
                continue
            key = fact.body.training, fact.value_id, ""             # one reason is enough
        else:
            key = fact.body.training, fact.value_id, fact.text
        if key not in latest or (latest[key].body, latest[key].text) < (fact.body, fact.text):
            latest[key] = fact
    return {f: facts[f] for f in latest.values()}


def _entries(facts: dict[_Fact, set[str]]) -> list[tuple[_Body, dict[str, str], set[str]]]:
    """(body, value id -> value, sources): of each body one, and further ones for values that contradict its first."""
    found = []
    for body in {f.body for f in facts}:
        mine: dict[str, list[_Fact]] = {}
        for fact in sorted((f for f in facts if f.body == body and f.value_id), key=lambda f: f.text):
            mine.setdefault(fact.value_id, []).append(fact)
        layers = [{i: found[k] for i, found in mine.items() if k < len(found)}
                  for k in range(max(map(len, mine.values()), default=1))]
        whose = [set().union(*(facts[f] for f in layer.values())) for layer in layers]
        first = facts.get(_Fact(body), set()) | whose[0]
        whose[0] = first - set().union(*whose[1:]) or first
        found += [(body, {i: f.text for i, f in layer.items()}, named)
                  for layer, named in zip(layers, whose, strict=True)]
    return found


def _preference(record: Record) -> tuple[Any, ...]:
    numbers = sum(v.number is not None for v in record.values.values())
    text = _canonical(record.model_dump(mode="json", exclude={"provenance": {SOURCES}}))
    return not record.trained, -numbers, str(record.provenance.get("finished") or "~"), text


def _canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True)
