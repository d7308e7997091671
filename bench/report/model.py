"""The one table model that every format renders. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["higher", "lower", "none"]
Mark = Literal["", "best", "second", "failed", "skipped", "missing"]
Kind = Literal["value", "published", "difference"]
ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
SECTIONS = ("parameters", "cost", "layout", "monitors", "provenance")
ALIKE = "≈"             # at a number whose runs cannot be told from the best row's
DOUBTFUL = "(?)"        # after a number that a plausibility gate doubts


def is_property(key: str) -> bool:
    """A dotted key into a record: parameters.total, cost.seconds, layout.num_tokens, monitors.usage, provenance.weights."""
    section, dot, _ = key.partition(".")
    return bool(dot) and section in SECTIONS


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, of row headers or of numbers."""

    key: str                                    # of a published number and its difference: that of ours
    title: str
    direction: Direction = "none"
    unit: str = ""
    kind: Kind = "value"                        # ours, or what stands beside it
    notes: tuple[str, ...] = ()                 # marks of footnotes

    @property
    def heading(self) -> str:
        return self.title + ARROWS[self.direction]

    @property
    def name(self) -> str:
        """Different for every column of a table."""
        return self.key if self.kind == "value" else f"{self.key}_{self.kind}"

    @property
    def measured(self) -> bool:
        """A measured value of ours, not a property of the run."""
        return self.kind == "value" and not is_property(self.key)


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
    alike: bool = False                         # not distinguishable from the best over its runs
    doubtful: bool = False                      # a gate doubts it; its footnote says why
    link: str | None = None                     # what the text stands for, on the network

    @property
    def shown(self) -> str:
        """The text with the sign of doubt, which no format may leave out."""
        return f"{self.text} {DOUBTFUL}" if self.doubtful else self.text

    @property
    def raised(self) -> tuple[str, ...]:
        """What stands above the line: the sign of likeness, then the marks of footnotes."""
        return (ALIKE, *self.notes) if self.alike else self.notes


@dataclass(frozen=True, slots=True)
class Row:
    headers: tuple[Header, ...]
    cells: tuple[Cell, ...]
    sanity: bool = False                        # no tokenizer: a yardstick, below a rule at the end of the table


@dataclass(frozen=True, slots=True)
class Table:
    """Everything a format needs; no format computes anything."""

    name: str
    title: str
    caption: str | None
    keys: tuple[Column, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]                       # those of sanity last
    footnotes: tuple[tuple[str, str], ...]      # (mark, sentence), in order of first use
    notes: tuple[str, ...]                      # sentences on the whole table
    stamp: str
