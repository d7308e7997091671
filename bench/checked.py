"""What building each distinct tokenizer has shown, kept on disk: the second check of a suite loads no torch. Torch-free.

    <cache>/checked/<suite>.json    hash of all that can change an outcome -> the outcome; may be deleted at any time
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from bench.files import write_atomic
from bench.places import Places
from bench.provenance import versions
from bench.registry import included, source_file
from bench.run import Checked, Run
from bench.spec import ComponentSpec

__all__ = ["Checked", "check", "known"]

FORMAT = 1                                      # of the file; part of every key
MOST = 20_000                                   # outcomes that one file keeps, 50 bytes each; the newest stay
ROOT = Path(__file__).resolve().parents[1]      # holds the packages `bench` and `implementations`
_IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]*))", re.M)

log = logging.getLogger(__name__)


def known(runs: Sequence[Run], places: Places) -> dict[str, Checked]:
    """What an earlier `check` found out with this code, by train id; nothing is built."""
    keys, there = _keys(runs), _read(_file(runs, places))
    return {run.train_id: there[key] for run in runs if (key := keys[run.train_id]) in there}


def check(runs: Sequence[Run], places: Places) -> dict[str, Checked]:
    """What `bench.build.check_runs` says, by train id; only what was never built with this code is built."""
    keys = _keys(runs)
    file = _file(runs, places)
    outcomes = _read(file)
    absent = {keys[run.train_id]: run for run in runs if keys[run.train_id] not in outcomes}
    if absent:
        from bench.build import check_runs

        built = check_runs(list(absent.values()))
        outcomes |= {key: built[run.train_id] for key, run in absent.items()}
        _write(file, {key: outcome for key, outcome in outcomes.items() if outcome.lasting})
    return {run.train_id: outcomes[keys[run.train_id]] for run in runs}


def _file(runs: Sequence[Run], places: Places) -> Path:
    return places.cache / "checked" / f"{runs[0].suite if runs else 'none'}.json"


# -- what an outcome depends on ----------------------------------------------------------------------------------------


def _keys(runs: Iterable[Run]) -> dict[str, str]:
    """By train id. Runs share components, so what is said of one is made once."""
    system = f"{FORMAT} {sys.version_info[:2]} {versions(('torch', 'einops'))}"
    parts: dict[int, tuple[str, frozenset[Path]]] = {}

    def part(component: ComponentSpec) -> tuple[str, frozenset[Path]]:
        if id(component) not in parts:
            every = [component, *(c for _, c in component.nested())]
            parts[id(component)] = component.model_dump_json(), frozenset(source_file(c.kind, c.name) for c in every)
        return parts[id(component)]

    keys = {}
    for run in runs:
        (model, model_files), (objective, objective_files) = part(run.train.model), part(run.train.objective)
        players = sorted((player, sorted(o.lr_scale)) for player, o in run.train.optimizers.items())
        text = json.dumps([system, _sources(model_files | objective_files), model, objective, players,
                           run.train.dataset.kwargs["image_size"]])
        keys[run.train_id] = hashlib.sha256(text.encode()).hexdigest()[:24]
    return keys


@functools.cache
def _sources(files: frozenset[Path]) -> str:
    """Digest of what building these components runs: their files, bench/build.py, and what these import of ours.

    Code from outside may import what lies beside it; so all of that counts.
    """
    ours = (ROOT / "bench", ROOT / "implementations")
    outside = {f for file in files if not any(map(file.is_relative_to, ours)) for f in file.parent.glob("*.py")}
    outside |= {f for folder in included() for f in folder.rglob("*.py")}
    todo = [ROOT / "bench" / "build.py", *files, *outside]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += _source(file)[1]
    return hashlib.sha256("\n".join(sorted(f"{f} {_source(f)[0]}" for f in seen)).encode()).hexdigest()


@functools.cache
def _source(file: Path) -> tuple[str, tuple[Path, ...]]:
    """(digest of its bytes, the files of this project that it imports). Not parsed: that takes 20 times as long."""
    content = file.read_bytes()
    names: set[str] = set()
    for found in _IMPORT.findall(content):
        module, parts, plain = (text.decode(errors="replace") for text in found)
        names |= {module, *(f"{module}.{part}" for part in re.findall(r"\w+", parts)), *re.findall(r"[\w.]+", plain)}
    files = []
    for name in sorted(names):
        if name.partition(".")[0] in ("bench", "implementations"):
            path = ROOT.joinpath(*name.split("."))
            files += [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
    return hashlib.sha256(content).hexdigest(), tuple(files)


# -- the file ----------------------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, Checked]:
    """What is kept; a damaged file, or a damaged part of it, is as good as none."""
    try:
        content = json.loads(file.read_bytes())
        return {key: found for key, item in content.items() if (found := _outcome(item)) is not None}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        log.debug("%s is not used: %s", file, error)
        return {}


def _outcome(item: Any) -> Checked | None:
    match item:
        case [str() | None, str() | None, str() | None, int(parameters)] if not isinstance(parameters, bool):
            return Checked(*item)
    return None


def _write(file: Path, outcomes: dict[str, Checked]) -> None:
    newest = list(outcomes.items())[-MOST:]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({key: astuple(outcome)[:4] for key, outcome in newest}), sync=False)
    except OSError as error:                    # a convenience only: the next process builds again
        log.debug("%s is not kept: %s", file, error)
