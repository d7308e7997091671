"""Records of runs: what is kept for ever, how it is read, written and merged. Torch-free."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from bench.errors import BadInput
from bench.files import replace_file
from bench.places import Places
from bench.registry import did_you_mean, signature
from bench.versions import join

if TYPE_CHECKING:
    import pandas

FILE = "records.jsonl"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(Frozen):
    """One measured number and what it means. A number that is not finite becomes None with a reason."""

    name: str                               # the column's name in the protocol: psnr, usage_window, ...
    metric: str                             # the registered metric
    number: float | None                    # None: could not be measured; `reason` says why
    unit: str
    direction: Literal["higher", "lower", "none"]
    images: int                             # each counted once
    protocol: str
    keywords: dict[str, Any] = {}           # the metric's keywords, as the protocol gave them
    settings: dict[str, Any] = {}           # what else the value id holds: revision, networks, prepare
    details: dict[str, float | None] = {}   # a window's fill and ceiling
    reason: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, data: Any) -> Any:
        number = data.get("number") if isinstance(data, dict) else None
        if isinstance(number, float) and not math.isfinite(number):
            reason = data.get("reason") or f"the result was not finite ({number})"
            return {**data, "number": None, "reason": reason}
        return data

    @property
    def window(self) -> int | None:
        """The number of last codes that were counted, of a value over a window of codes."""
        window = self.keywords.get("window")
        return window if isinstance(window, int) and not isinstance(window, bool) else None

    def telling_keywords(self) -> dict[str, Any]:
        """Without those at what they were before they existed, which older records do not have."""
        try:
            neutral = signature("metric", self.metric).neutral
        except BadInput:                        # of somebody's own folder, which is not here
            neutral = {}
        return {k: v for k, v in self.keywords.items() if not (k in neutral and neutral[k] == v)}

    def conditions(self) -> dict[str, Any]:
        """How the number was measured, flat. Numbers under different conditions do not belong in one column.

        Where `settings` holds what the protocol says, its name does not matter: two that agree share numbers.
        """
        found: dict[str, Any] = {"metric": self.metric, "images": self.images, "unit": self.unit,
                                 "direction": self.direction, **self.telling_keywords()}
        if not self.settings:
            found["protocol"] = self.protocol
        for key, item in self.settings.items():
            found |= {f"{key}.{k}": v for k, v in item.items()} if isinstance(item, dict) else {key: item}
        return found


class DataRecord(Frozen):
    """Which images were really used."""

    fingerprint: str                        # "official", or the hash of the listing
    images: int
    of: int | None = None                   # images of the complete published split
    left_out: tuple[str, ...] = ()          # unreadable files the user chose to leave out


class Component(Frozen):
    """How a part of the run is called and where its source is, for table cells and links."""

    name: str
    title: str
    source: str | None                      # path relative to the repository, or None from outside


class Record(Frozen):
    """One run: spec, identities, numbers, cost, provenance. One line of records.jsonl."""

    train_id: str
    label: str
    state: Literal["trained", "done", "failed", "skipped"]
    reason: str | None = None               # one line, of a failed or skipped run
    debug: bool = False
    spec: dict[str, Any]                    # the resolved TrainSpec as JSON
    fields: dict[str, Any]                  # the suite's view, dotted key -> scalar: tables group by it
    components: dict[str, Component] = {}   # dotted key ("tokenizer", "tokenizer.quantizer") -> Component
    layout: dict[str, Any] = {}             # num_tokens, vocab_sizes, dims, grids, bits_per_image
    parameters: dict[str, int] = {}         # total, tokenizer parts, codebook
    values: dict[str, Value] = {}           # by value_id
    data: dict[str, DataRecord] = {}        # "train", "test"
    monitors: dict[str, float | None] = {}  # last logged scalars; None: was not finite
    cost: dict[str, float | None] = {}      # seconds, images_per_second, peak_memory_bytes, ...
    provenance: dict[str, Any] = {}         # commit, dirty, versions, device, finished (ISO date), ...
    others: tuple[Record, ...] = ()         # other people's results for this identity, where they are not the same

    @model_serializer(mode="wrap")
    def _without_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`others` is written only where there are some."""
        return {k: v for k, v in write(self).items() if k != "others" or v}

    @property
    def versions(self) -> tuple[Record, ...]:
        """This one first."""
        return (self, *self.others)

    @property
    def trained(self) -> bool:
        """Training ended well: the weights exist, and measured numbers count."""
        return self.state in ("done", "trained")


# -- merging -------------------------------------------------------------------------------------------------


def union(*sources: Iterable[Record]) -> list[Record]:
    """All runs of all sources, once each, sorted by train_id.

    Of two records of one run the later one wins, except that a trained one is never replaced by a failed or
    skipped one. Values that the winner lacks, or could not measure, are kept from the other. Of a record that holds
    results of several people nothing is replaced: bench/versions.py.
    """
    runs: dict[str, Record] = {}
    for source in sources:
        for record in source:
            known = runs.get(record.train_id)
            runs[record.train_id] = record if known is None else _merged(known, record)
    return [runs[train_id] for train_id in sorted(runs)]


def merge(sources: Iterable[tuple[str, Iterable[Record]]]) -> list[Record]:
    """All runs of all sources (name or '', records), sorted by train_id; whatever differs is kept, and whose it is."""
    runs: dict[str, list[tuple[Record, str]]] = {}
    for name, records in sources:
        for record in records:
            runs.setdefault(record.train_id, []).append((record, name))
    return [of_one[0][0] if not of_one[0][0].others and all(r == of_one[0][0] for r, _ in of_one) else join(of_one)
            for _, of_one in sorted(runs.items())]


def _merged(earlier: Record, later: Record) -> Record:
    if earlier.others or later.others:
        return earlier if earlier == later else join([(earlier, ""), (later, "")])
    winner, loser = (earlier, later) if earlier.trained and not later.trained else (later, earlier)
    values = dict(winner.values)
    for value_id, value in loser.values.items():
        kept = values.get(value_id)
        if kept is None or (kept.number is None and value.number is not None):
            values[value_id] = value
    return winner if values == winner.values else winner.model_copy(update={"values": values})


# -- files ---------------------------------------------------------------------------------------------------


def read_records(path: Path) -> list[Record]:
    """The runs of a records.jsonl, in order; [] where there is no such file.

    Takes what git's merge=union leaves behind: duplicate lines, any order. Raises BadInput for a broken line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    return parse_records(content, str(path))


def parse_records(content: bytes, path: str) -> list[Record]:
    """As `read_records`, of the content of a file that errors call `path`."""
    records: list[Record] = []
    seen: set[bytes] = set()
    for number, line in enumerate(content.split(b"\n"), start=1):
        line = line.strip()
        if not line or line in seen:
            continue
        seen.add(line)
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            what = _conflict(line) or _first_problem(error)
            raise BadInput(f"{path}:{number}: not a record: {what}; restore the file with "
                           f"`git checkout -- {path}`, or delete the line and run the suite again") from error
    return union(records)


def _conflict(line: bytes) -> str | None:
    if line[:7] in (b"<<<<<<<", b"=======", b">>>>>>>", b"|||||||"):
        return "a mark of an unfinished git merge (records.jsonl wants merge=union in .gitattributes)"
    return None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a records.jsonl by these runs: one line each, sorted, keys sorted, written aside and renamed.

    Numbers that are not finite become null, and provenance.not_finite says what they were.
    """
    def line(record: Record) -> str:
        return json.dumps(_plain(record), sort_keys=True, allow_nan=False, separators=(",", ":")) + "\n"

    replace_file(path, "".join(map(line, union(records))))


def _plain(record: Record) -> dict[str, Any]:
    lost: dict[str, str] = {}

    def clean(item: Any, path: str) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            lost[path] = str(item)
            return None
        if isinstance(item, dict):
            return {str(k): clean(v, f"{path}.{k}" if path else str(k)) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [clean(v, f"{path}.{i}") for i, v in enumerate(item)]
        return item

    data: dict[str, Any] = clean(record.model_dump(), "")
    for version in (data, *data.get("others", ())):
        for value in version["values"].values():
            if value["number"] is None and value["reason"] is None:
                value["reason"] = "no number and no reason were recorded"
    if lost:
        known = data["provenance"].get("not_finite", {})
        data["provenance"] = {**data["provenance"], "not_finite": {**known, **lost}}
    return data


# -- for notebooks -------------------------------------------------------------------------------------------


def load_records(suite: str | Path, results: Path | None = None) -> pandas.DataFrame:
    """One row per run of a suite: label, state, fields, one column per value name, parameters, cost, layout.

    `suite` is a name, a suite's YAML, a folder that holds records.jsonl, or such a file. Numbers of one name
    that were measured under different conditions are different columns: the most common conditions have the
    plain name, the others say what is different, for example `psnr [protocol=llamagen]`.
    """
    import pandas

    records = read_records(_records_file(suite, results))
    names = _value_columns(records)
    rows = []
    for r in records:
        row: dict[str, Any] = {"train_id": r.train_id, "label": r.label, "state": r.state, "reason": r.reason,
                               "debug": r.debug, **r.fields}
        row |= {names[v.name, _canonical(v.conditions())]: v.number for _, v in sorted(r.values.items())}
        for section in ("parameters", "cost", "layout", "monitors"):
            row |= {f"{section}.{k}": v for k, v in getattr(r, section).items()}
        for split, data in r.data.items():
            row |= {f"data.{split}.images": data.images, f"data.{split}.fingerprint": data.fingerprint}
        row |= {k: r.provenance.get(k) for k in ("commit", "dirty", "device", "finished")}
        rows.append(row)
    return pandas.DataFrame(rows)


def _records_file(suite: str | Path, results: Path | None) -> Path:
    path = Path(suite)
    if path.suffix == ".jsonl":
        found = path
    elif isinstance(suite, Path) and suite.is_dir() and results is None:
        found = suite / FILE
    else:
        home = results if results is not None else Places.find().results
        name = path.stem if path.suffix in (".yaml", ".yml") else str(suite)
        found = home / name / FILE
        if not found.is_file():
            known = [p.parent.name for p in home.glob(f"*/{FILE}")]
            raise BadInput(f"there are no records of a suite {name!r} in {home}{did_you_mean(name, known)}")
    if not found.is_file():
        raise BadInput(f"{found}: there is no such file of records")
    return found


def _canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True, default=str)


def _value_columns(records: list[Record]) -> dict[tuple[str, str], str]:
    """(value name, canonical conditions) -> the name of its column."""
    counts: Counter[tuple[str, str]] = Counter()
    conditions: dict[str, dict[str, Any]] = {}
    for record in records:
        for value in record.values.values():
            text = _canonical(value.conditions())
            counts[value.name, text] += 1
            conditions[text] = value.conditions()
    columns: dict[tuple[str, str], str] = {}
    for name in sorted({name for name, _ in counts}):
        ranked = sorted((key for key in counts if key[0] == name), key=lambda key: (-counts[key], key[1]))
        columns[ranked[0]] = name
        main = conditions[ranked[0][1]]
        for key in ranked[1:]:
            other = conditions[key[1]]
            differ = [k for k in sorted({*main, *other}) if main.get(k) != other.get(k)]
            columns[key] = f"{name} [{', '.join(f'{k}={other.get(k)}' for k in differ)}]"
    return columns
