"""Where things are on this machine: option, then environment, then the user's file, then a default. Torch-free.

None of these places is part of an identity or of a record.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bench.errors import BadInput

SECTIONS = ("slurm",)           # of the user's file, besides the places: bench/site.py


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of one invocation; each is an absolute path, `data` and `weights` may be absent."""

    results: Path               # committed records: results/<suite>/records.jsonl
    reports: Path               # rendered tables and figures
    runs: Path                  # heavy run folders; ignored by git
    cache: Path                 # decoded images, fingerprints, hashes of weight files
    data: Path | None = None    # holds celeba/, imagenet/, ...
    weights: Path | None = None  # holds the files of bench/weights.py

    @classmethod
    def find(cls, **given: Path | None) -> Places:
        """Resolve every place; `given` are the command line's options. Raises BadInput for a faulty user file."""
        file = user_settings()
        root = Path.cwd()

        def place(name: str, default: Path | None) -> Path | None:
            value = given.get(name) or os.environ.get(f"BENCH_{name.upper()}") or file.get(name) or default
            return None if value is None else Path(value).expanduser().absolute()

        results = place("results", root / "results")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenizer-bench"
        return cls(
            results=results,
            reports=place("reports", root / "reports"),
            runs=place("runs", results / "runs"),
            cache=place("cache", cache),
            data=place("data", None),
            weights=place("weights", None),
        )


def user_file() -> Path:
    """The user's own settings: BENCH_CONFIG, or ~/.config/tokenizer-bench/config.yaml."""
    if given := os.environ.get("BENCH_CONFIG"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "tokenizer-bench" / "config.yaml"


def user_settings() -> dict[str, Any]:
    """What the user's file says; {} without one. Raises BadInput for what is no mapping of known keys."""
    path = user_file()
    if not path.is_file():
        return {}
    paths = [f.name for f in fields(Places)]
    known = ", ".join([*paths, *SECTIONS])
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not readable as YAML ({error}); mend or remove it") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a mapping with the keys {known}")
    for key, value in content.items():
        if key not in SECTIONS and (key not in paths or not isinstance(value, str)):
            raise BadInput(f"{path}: {key} = {value!r}: expected one of {known}; all but {', '.join(SECTIONS)} are paths")
    return content
