"""What all figures of a run's codes share: whose they are, a panel per level, axes that read well. Torch-free."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.diagnostics import levels_of
from bench.report.drawing import panels, styled, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEAD = "#9a9a9a"            # of codes that are not used; a run's own colour is that of the active ones
INK = "#444444"
MAP = "plasma"
MOST_LEVELS = 6             # panels; further levels are in the archive only
WHEN = {"counts": "in the last {window:,} codes", "code_ages": "in the last step",
        "code_gradient_norms": "in the last step", "": ""}

Drawn = tuple["Figure", Sequence[str], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Level:
    """One codebook of a run."""

    title: str                                  # "level 0: " where there are several, else ""
    name: Any                                   # its number, "" where there is one only
    of: Mapping[str, np.ndarray]                # see bench.diagnostics.summary

    def number(self, what: str) -> int:
        return int(self.of[what])

    @property
    def when(self) -> str:
        """Of which codes it is known that they are active: ' in the last 65,536 codes'."""
        told = WHEN[str(self.of["used_by"])].format(window=int(self.of.get("window", 0)))
        return f" {told}" if told else ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is drawn: one run."""

    label: str
    colour: Any
    archive: Mapping[str, np.ndarray]

    @property
    def step(self) -> int:
        return int(self.archive["step"])

    def levels(self, what: str) -> list[Level]:
        """Those that have the quantity."""
        found = list(levels_of(self.archive))
        several = len(found) > 1
        return [Level(f"level {i}: " if several else "", i if several else "", of)
                for i, (_, of) in enumerate(found) if what in of][:MOST_LEVELS]


def each(
    subject: Subject, levels: Sequence[Level], title: str, draw: Callable[[Axes, Level], None],
    size: tuple[float, float] = (4.7, 3.1),
) -> Figure:
    """A panel per level under one heading that names the run and the step."""
    many = 0.72 if len(levels) > 1 else 1.0
    with styled(title):
        figure, axes = panels(len(levels), (size[0] * many, size[1] * many))
        figure.suptitle(_lines(f"{title} · {subject.label} · step {subject.step:,}", figure), fontsize=9, x=0.012,
                        ha="left", fontweight="bold")
        for ax, level in zip(axes, levels, strict=True):
            draw(ax, level)
        return figure


def _lines(heading: str, figure: Figure) -> str:
    """No wider than the figure."""
    return "\n".join(text(line) for line in textwrap.wrap(heading, max(20, int(figure.get_figwidth() * 12))))


def say(ax: Axes, sentence: str) -> None:
    """What a panel shows, above it and no wider than it."""
    width = ax.figure.get_figwidth() / max(1, len({a.get_subplotspec().colspan.start for a in ax.figure.axes
                                                    if a.get_subplotspec()}))
    ax.set_title("\n".join(textwrap.wrap(sentence, int(width * 13.5))), loc="left", fontsize=8, color=INK)


def scale(ax: Axes, edges: np.ndarray, axis: str) -> None:
    """Logarithmic where the bins are."""
    if _logarithmic(edges):
        getattr(ax, f"set_{axis}scale")("log")
        plain_ticks(ax, axis)
    else:
        ax.ticklabel_format(axis=axis, style="sci", scilimits=(-2, 4))


def plain_ticks(ax: Axes, *axes: str) -> None:
    """1,000 and 0.01 instead of powers of ten, as far as these are short."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def short(x: float, _: Any) -> str:
        return f"{x:,.0f}" if 1 <= abs(x) < 1e7 else f"{x:g}"

    for which in axes:
        axis = getattr(ax, f"{which}axis")
        axis.set_major_formatter(FuncFormatter(short))
        axis.set_minor_formatter(NullFormatter())


def _logarithmic(edges: np.ndarray) -> bool:
    return bool(edges[0] > 0 and edges[-1] - edges[-2] > 1.01 * (edges[1] - edges[0]))


def time_axis(ax: Axes, steps: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.set_xlabel("training step")
    ax.grid(False)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if steps[-1] >= 10_000:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x else "0"))


def codes_per_cell(codes: int, cells: int) -> int:
    return math.ceil(codes / cells)
