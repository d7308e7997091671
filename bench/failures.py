"""Failed runs, grouped by what went wrong, with the shortest command that shows it again. Torch-free."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.places import Places
from bench.plan import Planned
from bench.runs import RunFolder
from bench.submissions import logs, tail

DEBUG_STEPS = 10            # what `--debug` trains: a failure up to there shows in it, on one batch of data each
TAIL = 12                   # lines of a log or traceback that are shown
SCHEDULER = ("srun:", "slurmstepd", "submitit ")
FRAMES = 3                  # innermost functions that make two tracebacks the same


@dataclass(slots=True)
class Group:
    """Runs that failed alike."""

    reason: str                                 # of the first of them
    planned: list[Planned] = field(default_factory=list)
    where: str = ""                             # innermost function, where there is a traceback
    tail: tuple[str, ...] = ()                  # the last lines of the first one's log
    log: Path | None = None
    command: str = ""                           # shows the first one's failure again


def group(planned: Iterable[Planned], places: Places, command: Sequence[str]) -> list[Group]:
    """Failed runs by their normalised traceback, the largest group first.

    `command` is `bench run SUITE OVERRIDES`, to which what selects a run is added.
    """
    groups: dict[tuple[str, ...], Group] = {}
    for p in planned:
        if p.status != "failed":
            continue
        folder = RunFolder(places.runs, p.run.train_id)
        found = logs(folder)
        trace = _traceback(folder, p, found)
        key = normalised(trace) if trace else (_blurred(p.note),)
        if key not in groups:
            reason = p.note if not trace or _sentence(trace) in p.note else f"{p.note}: {_sentence(trace)}"
            groups[key] = Group(reason, where=key[-2] if len(key) > 1 else "", log=found[0] if found else None,
                                tail=tuple(trace.splitlines()[-TAIL:]) if trace else _own(found),
                                command=reproduce(p, command))
        groups[key].planned.append(p)
    return sorted(groups.values(), key=lambda g: -len(g.planned))


def reproduce(p: Planned, command: Sequence[str]) -> str:
    """In this process, without a scheduler; ten batches where the failure came that early."""
    early = p.state is not None and p.state.steps > 0 and p.state.step <= DEBUG_STEPS and not (p.record and p.record.trained)
    words = [*command, "--only", p.run.label if early else p.run.train_id, "--launcher", "debug"]
    return shlex.join([*words, "--debug"] if early else words)


def normalised(trace: str) -> tuple[str, ...]:
    """The innermost functions of a traceback and its last sentence, without line numbers, addresses, sizes and paths."""
    frames = re.findall(r'^\s*File "([^"]+)", line \d+, in (\S+)', trace, re.MULTILINE)
    return (*[f"{Path(file).name}:{name}" for file, name in frames[-FRAMES:]], _blurred(_sentence(trace)))


def _sentence(trace: str) -> str:
    """The line that says what was raised: the first one after the innermost frames that is not indented."""
    lines = trace.splitlines()
    last = max((i for i, line in enumerate(lines) if line.lstrip().startswith("File ")), default=0)
    return next((line for line in lines[last + 1 :] if line.strip() and not line.startswith(" ")), lines[-1])


def _traceback(folder: RunFolder, p: Planned, found: Sequence[Path]) -> str:
    """Of the newest attempt; that of an earlier one says nothing about this failure."""
    since = p.submission.claimed if p.submission is not None else 0.0
    written = [path for path in folder.logs.glob("failure*.txt") if path.stat().st_mtime >= since]
    if written:
        return max(written, key=lambda path: path.stat().st_mtime).read_text(errors="replace").strip()
    return _last_traceback(tail(found[0], 200)) if found and found[0].stat().st_mtime >= since else ""


def _last_traceback(lines: Sequence[str]) -> str:
    """The last one in a log, without what SLURM says after it."""
    heads = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not heads:
        return ""
    return "\n".join(line for line in lines[heads[-1] :] if not line.startswith(SCHEDULER))


def _own(found: Sequence[Path]) -> tuple[str, ...]:
    """The end of a log, without what SLURM and submitit say of themselves."""
    if not found:
        return ()
    lines = [line for line in tail(found[0], 50) if not line.startswith(SCHEDULER) and "submitit INFO" not in line]
    return tuple(lines[-TAIL:]) or tail(found[0], TAIL)


def _blurred(sentence: str) -> str:
    sentence = re.sub(r"0x[0-9a-fA-F]+", "0x", sentence)
    sentence = re.sub(r"(?:/[\w.+-]+){2,}", "PATH", sentence)
    return re.sub(r"\d+(?:[._,]\d+)*", "N", sentence)
