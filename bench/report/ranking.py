"""Which numbers of a column are best, and which cannot be told from the best. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.report.model import Cell, Direction, Mark
from bench.report.statistics import indistinguishable


def mark_best(cells: Sequence[Cell], comparable: Sequence[bool], direction: Direction) -> list[Cell]:
    """Best and second of the unrounded means; equal numbers share a mark. A single number beats nothing."""
    numbers = [c.number for c, ok in zip(cells, comparable, strict=True) if ok and c.number is not None]
    if direction == "none" or len(numbers) < 2:
        return list(cells)
    ranked = sorted(set(numbers), reverse=direction == "higher")
    places: tuple[Mark, ...] = ("best", "second")
    marks = dict(zip(ranked, places, strict=False))
    return [replace(c, mark=marks.get(c.number, "")) if ok and c.number is not None else c
            for c, ok in zip(cells, comparable, strict=True)]


def mark_alike(cells: Sequence[Cell], runs: Sequence[Sequence[float]], comparable: Sequence[bool]) -> list[Cell]:
    """Mark the numbers whose runs cannot be told from those of the best; where nothing can be said, nothing is.

    Of rows that share the best mean, the one with most runs stands for it.
    """
    best = max((i for i, c in enumerate(cells) if c.mark == "best"), key=lambda i: (len(runs[i]), -i), default=None)
    if best is None:
        return list(cells)
    return [replace(c, alike=True) if ok and c.mark != "best" and c.number is not None
            and indistinguishable(runs[best], runs[i]) else c
            for i, (c, ok) in enumerate(zip(cells, comparable, strict=True))]
