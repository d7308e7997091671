"""The one table model that every format renders. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["higher", "lower", "none"]
Mark = Literal["", "best", "second", "failed", "skipped", "missing"]
ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
SECTIONS = ("parameters", "cost", "layout", "monitors")


def is_property(key: str) -> bool:
    """A dotted key into a record: parameters.total, cost.seconds, layout.num_tokens, monitors.usage."""
    section, dot, _ = key.partition(".")
    return bool(dot) and section in SECTIONS


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, of row headers or of numbers."""

    key: str
    title: str
    direction: Direction = "none"
    unit: str = ""

    @property
    def heading(self) -> str:
        return self.title + ARROWS[self.direction]

    @property
    def measured(self) -> bool:
        """A measured value, not a property of the run."""
        return not is_property(self.key)


@dataclass(frozen=True, slots=True)
class Header:
    """A row header. `span` rows share it; 0: an earlier row's header covers this one."""

    value: Any
    text: str
    link: str | None = None                     # path of a source file, relative to the repository
    span: int = 1
    notes: tuple[str, ...] = ()                 # marks of footnotes


@dataclass(frozen=True, slots=True)
class Cell:
    """One number: raw, and as it is shown."""

    text: str                                   # without marks: "56.05%", "31.55 ± 0.12", or a dash
    number: float | None = None                 # unrounded mean
    std: float | None = None                    # sample standard deviation; None for a single run
    n: int = 0
    mark: Mark = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    headers: tuple[Header, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Everything a format needs; no format computes anything."""

    name: str
    title: str
    caption: str | None
    keys: tuple[Column, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[tuple[str, str], ...]      # (mark, sentence), in order of first use
    notes: tuple[str, ...]                      # sentences on the whole table
    stamp: str
