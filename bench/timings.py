"""Records of `bench profile`: one timed case each, with the machine it ran on; how two of them compare. Torch-free.

A file of timings is JSON lines, and only ever grows: each profile is a session of its own, and of one case the
newest session counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import BadInput
from bench.files import replace_file

Kind = Literal["quantizer", "peer", "reference", "tokenizer"]
Line = TypeVar("Line", bound=BaseModel)
Verdict = Literal["same", "slower", "faster", "other machine", "new", "gone", "unmeasured"]
LEAST_CHANGE = 0.03         # a smaller change of a median is never called one
SIGMAS = 3.0                # of the difference of two medians
FEWEST_ROUNDS = 3           # whose spread says anything
BUSY = 0.8                  # a share of the processor smaller than so much of another is worth a note


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """N latents of width D against K codes."""

    n: int
    d: int
    k: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """'65536x64x512' or '65536×64×512'. Raises BadInput."""
        parts = re.split(r"[x×X*]", text.replace("_", "").strip())
        if len(parts) != 3 or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
            raise BadInput(f"--sizes {text}: expected N×D×K (latents, width, codes), three positive numbers such as 65536x64x512")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.n}×{self.d}×{self.k}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Machine(_Frozen):
    """What decides how fast the same code is. Times of two machines are never compared."""

    device: str                                 # cpu, cuda
    processor: str                              # model of the CPU or GPU
    cores: int                                  # this process may use
    threads: int                                # torch uses
    system: str                                 # Linux-x86_64
    torch: str
    backend: str = ""                           # CUDA's version, or the CPU capability that torch dispatches to

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def differs(self, other: Machine) -> str:
        """'threads 2 there, 4 here'."""
        return ", ".join(f"{name} {getattr(self, name)} there, {getattr(other, name)} here" for name in type(self).model_fields
                         if getattr(self, name) != getattr(other, name))


class Timing(_Frozen):
    """One case of one session: what was called on what, and what each round took."""

    session: str                                # when it began, UTC
    commit: str | None
    dirty: bool | None
    machine: Machine
    kind: Kind
    name: str                                   # of the quantizer, peer, reference or tokenizer
    form: str = ""                              # of a peer, or of a quantizer with keywords given by hand
    what: str                                   # search, train, lookup; product, copy; encode, decode, train
    size: dict[str, int]                        # N, D, K; or image_size, batch
    dtype: str = "float32"
    keywords: dict[str, Any] = Field(default_factory=dict)
    version: str | None = None                  # of a peer's package
    repeats: int = 1                            # calls in one round, of which `seconds` has the mean
    seconds: list[float] = Field(default_factory=list)      # of one call, a round each; in the order they ran
    processor_seconds: list[float] = Field(default_factory=list)    # the same in time of this process on all cores
    memory: int | None = None                   # bytes that one call needs above what it finds, its results included
    memory_by: str = ""                         # how that was measured
    flops: int | None = None                    # of products that the method needs: 2 N D K for a table
    bytes: int | None = None                    # compulsory traffic: latents and codes in, results out
    checked: int = 0                            # latents whose codes were compared with the float64 search
    differing: int = 0                          # of those: another code
    wrong: int = 0                              # of those: farther than rounding explains
    unchecked: str = ""                         # why no code was
    beside: dict[str, str] = Field(default_factory=dict)    # peer -> its form that does the same
    structure: str = ""                         # of a tokenizer: see Architecture
    parameters: int | None = None               # of a tokenizer
    macs: int | None = None                     # of one image, of what is timed; of a training step its forward
    reason: str = ""                            # why there is no number

    @property
    def case(self) -> str:
        """What a time is the time of. Equal in two sessions: comparable, on one machine."""
        return json.dumps([self.kind, self.name, self.form, self.what, self.size, self.dtype], sort_keys=True)

    @property
    def label(self) -> str:
        return f"{self.name} {self.form}".strip()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the rounds; with fewer than two, the one twice."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def shared(self) -> bool:
        """Whether others had much of the processor meanwhile, so that its seconds are an upper bound."""
        return self.busy is not None and self.busy < BUSY * self.machine.threads

    @property
    def error(self) -> float:
        """Standard error of the logarithm of the median, from the median absolute deviation (normal rounds assumed)."""
        logs = [math.log(s) for s in self.seconds]
        middle = statistics.median(logs)
        deviation = 1.4826 * statistics.median(abs(x - middle) for x in logs)
        return 1.2533 * deviation / math.sqrt(len(logs))

    @property
    def processor(self) -> float | None:
        """Median of the rounds in processor time. None on a GPU, and of a call too short for the clock."""
        if self.machine.device != "cpu" or not self.processor_seconds:
            return None
        return statistics.median(self.processor_seconds) or None

    @property
    def busy(self) -> float | None:
        """Share of its threads' time that this process had the processor, of the middle round. None on a GPU."""
        if self.machine.device != "cpu" or not self.processor_seconds:
            return None
        return statistics.median(p / s for p, s in zip(self.processor_seconds, self.seconds, strict=True))


class Architecture(_Frozen):
    """A tokenizer for images of one size, and what is known of its costs without running it: on every machine the same."""

    architecture: str                           # id of keywords and image size; records of runs and checkpoints lead to it
    structure: str                              # digest of its operations and shapes; equal ones are timed once
    names: list[str]                            # 'imagenet256_var', 'imagenet256_ibq: codebook_size 1024'
    checkpoints: list[str] = Field(default_factory=list)    # of the list of published ones
    model: dict[str, Any]                       # the tokenizer's ComponentSpec
    image_size: int
    layout: dict[str, Any]                      # as in records
    parameters: dict[str, int]                  # total, learned, codebook; encoder, decoder, quantizer
    macs: dict[str, int]                        # encode, decode: of one image
    commit: str | None = None
    dirty: bool | None = None


# -- files -------------------------------------------------------------------------------------------------------


def read_timings(path: Path) -> list[Timing]:
    """All of a file, in order; [] where there is none. Raises BadInput with the line that is no timing."""
    return _read(path, Timing)


def append_timings(path: Path, timings: Iterable[Timing]) -> None:
    """Add lines at the end: written aside and renamed, so that a reader never sees half a line."""
    _append(path, timings)


def read_architectures(path: Path) -> list[Architecture]:
    """Each once, as its last line has it, with the names of all its lines; [] where there is no file. Raises BadInput."""
    found: dict[str, Architecture] = {}
    for a in _read(path, Architecture):
        if (before := found.get(a.architecture)) is not None:
            a = a.model_copy(update={key: list(dict.fromkeys((*getattr(before, key), *getattr(a, key)))) for key in ("names", "checkpoints")})
        found[a.architecture] = a
    return list(found.values())


def append_architectures(path: Path, architectures: Iterable[Architecture]) -> None:
    """Those of which the file says something else, or nothing; which commit said so does not matter."""
    unsaid = {"commit", "dirty"}
    known = {a.architecture: a for a in read_architectures(path)}

    def new(a: Architecture) -> bool:
        before = known.get(a.architecture)
        return before is None or not set(a.names) <= set(before.names) or not set(a.checkpoints) <= set(before.checkpoints) or (
            a.model_dump(exclude=unsaid | {"names", "checkpoints"}) != before.model_dump(exclude=unsaid | {"names", "checkpoints"}))

    _append(path, [a for a in architectures if new(a)])


def _read(path: Path, kind: type[Line]) -> list[Line]:
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "line"
                raise BadInput(f"{path}:{number}: {where}: {first['msg']}; no {kind.__name__.lower()} of `bench profile`") from error
    return found


def _append(path: Path, new: Iterable[BaseModel]) -> None:
    before = path.read_text() if path.is_file() else ""
    before += "" if not before or before.endswith("\n") else "\n"
    lines = [json.dumps(t.model_dump(exclude_defaults=True), sort_keys=True, ensure_ascii=False) + "\n" for t in new]
    if lines:
        replace_file(path, before + "".join(lines))


def sessions(timings: Iterable[Timing]) -> list[str]:
    """In order of time."""
    return sorted({t.session for t in timings})


def settled(timings: Iterable[Timing], machine: Machine) -> set[tuple[str, str, int, str]]:
    """(structure, what, batch, dtype) of whole tokenizers whose last timing on this machine, by whatever name, nobody disturbed."""
    last = {(t.structure, t.what, t.size["batch"], t.dtype): t for t in sorted(timings, key=lambda t: t.session)
            if t.kind == "tokenizer" and t.seconds and t.machine == machine}
    return {case for case, t in last.items() if not t.shared}


def newest(timings: Iterable[Timing]) -> list[Timing]:
    """Of each case on each machine the last session's, in the order of first appearance."""
    found: dict[tuple[str, str], Timing] = {}
    for t in timings:
        key = (t.machine.fingerprint, t.case)
        if key not in found or t.session >= found[key].session:
            found[key] = t
    return list(found.values())


# -- two sessions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One case, then and now."""

    old: Timing | None
    new: Timing | None
    verdict: Verdict
    ratio: float | None = None                  # of the medians, new / old
    noise: float | None = None                  # smallest ratio - 1 that would count as a change
    drift: float | None = None                  # the same ratio of the reference product at that size
    note: str = ""

    @property
    def case(self) -> Timing:
        return self.new or self.old             # type: ignore[return-value]


def compare(old: Sequence[Timing], new: Sequence[Timing]) -> list[Change]:
    """Each case of the newest of `new` against the newest of `old` on the same machine.

    A change is `slower` or `faster` where the medians differ by more than SIGMAS standard errors of their difference
    and by LEAST_CHANGE, and still do so once divided by how much the reference product (a plain matrix product timed
    among the cases) has changed: otherwise the machine was busier, not the code slower. For the same reason a case of
    one thread has to change in processor time too; with more threads that would hide a lost thread, and a note says
    what share of the time each had the processor. Cases that the old file has for other machines only are `other
    machine`, and no number is given.
    """
    before = {(t.machine.fingerprint, t.case): t for t in newest(old)}
    elsewhere = {t.case: t for t in newest(old)}
    after = newest(new)
    drifts: dict[tuple[str, str, str], float] = {}
    for t in after:
        was = before.get((t.machine.fingerprint, t.case))
        if t.kind == "reference" and t.what == "product" and was is not None and t.seconds and was.seconds:
            key = (t.machine.fingerprint, t.session, json.dumps(t.size, sort_keys=True))
            drifts[key] = max(t.median / was.median, drifts.get(key, 0.0))
    changes = []
    for t in after:
        was = before.get((t.machine.fingerprint, t.case))
        if t.kind == "reference":
            continue
        if was is None:
            if (other := elsewhere.get(t.case)) is not None:
                changes.append(Change(other, t, "other machine", note=other.machine.differs(t.machine)))
            else:
                changes.append(Change(None, t, "new"))
            continue
        drift = drifts.get((t.machine.fingerprint, t.session, json.dumps(t.size, sort_keys=True)))
        changes.append(_change(was, t, drift))
    here = {t.machine.fingerprint for t in after}
    now = {(t.machine.fingerprint, t.case) for t in after}
    changes += [Change(t, None, "gone") for key, t in before.items()
                if key not in now and key[0] in here and t.kind != "reference"]
    return changes


def _change(old: Timing, new: Timing, drift: float | None) -> Change:
    if not old.seconds or not new.seconds:
        return Change(old, new, "unmeasured", note=new.reason or old.reason)
    ratio = new.median / old.median
    if (rounds := min(len(old.seconds), len(new.seconds))) < FEWEST_ROUNDS:
        return Change(old, new, "unmeasured", note=f"{rounds} rounds are too few to tell a change from chance")
    noise = max(math.expm1(SIGMAS * math.hypot(old.error, new.error)), LEAST_CHANGE)
    seen, notes = [ratio, ratio / (drift or 1.0)], []
    if old.processor and new.processor:
        if new.machine.threads == 1:
            seen.append(new.processor / old.processor)
        shares = old.busy or 0.0, new.busy or 0.0
        if min(shares) < BUSY * max(shares):
            notes.append(f"had the processor {shares[0]:.0%} of the time, now {shares[1]:.0%}")
    least = min(seen, key=lambda r: abs(math.log(r)))
    moved = abs(math.log(least)) > math.log1p(noise) and len({r > 1 for r in seen}) == 1
    if old.version != new.version:
        notes.append(f"version {old.version}, now {new.version}")
    if old.keywords != new.keywords:
        notes.append("other keywords")
    if new.wrong > old.wrong:
        notes.append(f"{new.wrong} wrong codes, before {old.wrong}")
    verdict: Verdict = "same" if not moved else "slower" if ratio > 1 else "faster"
    return Change(old, new, verdict, ratio, noise, drift, "; ".join(notes))
