"""BibTeX of the systems in a suite: each component's docstring names its paper's arXiv number. Torch-free."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from bench.results import Record

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
ROOT = Path(__file__).resolve().parents[2]


def entries_of(records: Iterable[Record]) -> list[str]:
    """One entry per paper, by its number. Papers that references.yaml does not hold have an entry without authors."""
    sources = {c.source for r in records for c in r.components.values() if c.source}
    return [entry(number) for number in sorted({n for source in sources for n in papers(source)})]


@functools.cache
def papers(source: str) -> tuple[str, ...]:
    """arXiv numbers in the docstring of a module, given by its path from the repository."""
    try:
        said = ast.get_docstring(ast.parse((ROOT / source).read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError):                  # of somebody's own folder, which is not here
        return ()
    return tuple(dict.fromkeys(ARXIV.findall(said)))


@functools.cache
def _known() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("references.yaml").read_text(encoding="utf-8"))


def entry(number: str) -> str:
    """@misc{arxiv:<number>, ...}."""
    known = _known().get(number, {})
    fields = {"author": known.get("authors"), "title": known.get("title") and f"{{{known['title']}}}",
              "year": known.get("year", f"20{number[:2]}"), "eprint": number, "archivePrefix": "arXiv"}
    inside = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items() if value)
    return f"@misc{{arxiv:{number},\n{inside}}}\n"
