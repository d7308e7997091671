"""Curves over training: an overview, every loss term, and what became of the codebook. Torch-free.

Training is drawn in full, test images dashed, and dotted what so many uniform codes would reach.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.drawing import (
    GREY,
    MOST_RUNS,
    colour_of,
    legend,
    natural,
    panels,
    percent,
    roomy,
    styled,
    text,
    to_csv,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: how the scalars of monitors begin; what a run logs besides them are its loss terms
MONITORS = ("code_", "codes_", "ceiling", "window_fill", "used_codes", "batch_perplexity", "lr/", "latent", "usage",
            "perplexity", "quantization_error", "dead_")
#: what the figure `codebook` shows, in this order; each may have levels
CODEBOOK = ("usage", "used_codes", "perplexity", "dead_codes", "code_age_mean", "code_age_max", "quantization_error")
SHARES = ("usage", "dead_codes")
TITLES = {"usage": "usage (share of codes)", "dead_codes": "dead codes (share)", "code_age_mean": "mean code age (steps)",
          "code_age_max": "age of the oldest code (steps)", "quantization_error": "quantization error (MSE)"}
OVERVIEW = 9            # panels
MOST_PANELS = 15        # of the codebook figure; further ones make it one figure a quantity
DASHED, DOTTED, SPARSE = (0, (4, 1.6)), (0, (1, 1.4)), (0, (1, 3))
HEADER = ("train_id", "label", "split", "curve", "step", "value")

Rows = Sequence[tuple[str, str, int, str, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of one panel."""

    train_id: str
    label: str
    test: bool
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """A figure's name, and its panels: name -> lines; `bounds` has lines of the same panels, to be drawn dotted."""

    name: str
    panels: dict[str, list[Curve]]
    bounds: dict[str, list[Curve]]

    def csv(self) -> str:
        return to_csv(HEADER, _rows(self.panels))


def read_curves(path: Path, train_ids: set[str]) -> Rows:
    """(train_id, label, step, name, value) of these runs, in order of the file."""
    import pyarrow.parquet as pq

    columns = ("train_id", "label", "step", "name", "value")
    found = pq.read_table(path, columns=list(columns)).to_pydict()
    return [row for row in zip(*(found[c] for c in columns), strict=True) if row[0] in train_ids]


def curve_figures(rows: Rows, sizes: Mapping[str, Sequence[int]] | None = None) -> list[CurveFigure]:
    """The figures of these curves; one without a line is left out. `sizes`: train_id -> K of each level."""
    lines = _lines(rows)
    bounds = _bounds(lines, sizes or {})
    found = [CurveFigure("curves", _pick(lines, _overview(lines)), {}),
             CurveFigure("losses", _pick(lines, loss_terms(lines)), {})]
    names = _codebook(lines)
    if len(names) <= MOST_PANELS:
        found.append(CurveFigure("codebook", _pick(lines, names), _pick(bounds, names)))
    else:
        for quantity in dict.fromkeys(_quantity(n) for n in names):
            part = [n for n in names if _quantity(n) == quantity]
            found.append(CurveFigure(f"codebook-{quantity}", _pick(lines, part), _pick(bounds, part)))
    return [f for f in found if f.panels]


# -- which lines ---------------------------------------------------------------------------------------------


def _lines(rows: Rows) -> dict[str, list[Curve]]:
    """Name of a quantity, without its split -> its lines, by label, then train_id, training before test."""
    points: dict[tuple[str, str, bool, str], dict[int, float]] = {}
    for train_id, label, step, name, value in rows:
        base = name.removeprefix("test/").removeprefix("train/")
        if value is not None and math.isfinite(value):
            points.setdefault((base, train_id, name.startswith("test/"), label), {})[step] = value
    found: dict[str, list[Curve]] = {}
    for (base, train_id, test, label), values in sorted(points.items(), key=lambda line: line[0][::-1]):
        steps = tuple(sorted(values))
        found.setdefault(base, []).append(Curve(train_id, label, test, steps, tuple(values[s] for s in steps)))
    return {base: found[base] for base in sorted(found, key=natural)}


def _pick(lines: Mapping[str, list[Curve]], names: Iterable[str]) -> dict[str, list[Curve]]:
    return {name: lines[name] for name in names if name in lines}


def loss_terms(lines: Mapping[str, list[Curve]]) -> list[str]:
    """All that no monitor reports: first what validation measures too, then what only training has."""
    terms = [name for name in lines if not name.startswith(MONITORS)]
    return sorted(terms, key=lambda name: not any(c.test for c in lines[name]))


def _codebook(lines: Mapping[str, list[Curve]]) -> list[str]:
    return [name for quantity in CODEBOOK for name in lines if _quantity(name) == quantity]


def _overview(lines: Mapping[str, list[Curve]]) -> list[str]:
    """Usage and perplexity (of many levels, the first and the last), then what the validation measures, too."""
    first: list[str] = []
    for quantity in ("usage", "perplexity"):
        levels = [name for name in lines if _quantity(name) == quantity]
        first += levels if len(levels) <= 2 else [levels[0], levels[-1]]
    terms = loss_terms(lines)
    tested = [name for name in terms if any(c.test for c in lines[name])]
    return [*first, *(tested or terms)][:OVERVIEW]


def _quantity(name: str) -> str:
    return name.partition("/")[0]


def _bounds(lines: Mapping[str, list[Curve]], sizes: Mapping[str, Sequence[int]]) -> dict[str, list[Curve]]:
    """What uniform codes would reach in as many draws: of usage where it is not all codes, of used codes always."""
    found: dict[str, list[Curve]] = {}
    for name in lines:
        quantity, level = _quantity(name), re.search(r"/level(\d+)$", name)
        if quantity not in ("usage", "used_codes"):
            continue
        index = int(level[1]) if level else 0
        ceilings = {(c.train_id, c.test): c for c in lines.get(name.replace(quantity, "ceiling"), ())}
        for c in lines[name]:
            if index >= len(sizes.get(c.train_id, ())):
                continue
            k = sizes[c.train_id][index]
            ceiling = ceilings.get((c.train_id, c.test))
            if ceiling is None or ceiling.values[-1] > 0.99:
                if quantity == "used_codes" and not c.test:
                    found.setdefault(name, []).append(
                        Curve(c.train_id, c.label, False, (c.steps[0], c.steps[-1]), (float(k), float(k))))
            else:
                scale = k if quantity == "used_codes" else 1
                found.setdefault(name, []).append(
                    Curve(c.train_id, c.label, c.test, ceiling.steps, tuple(scale * v for v in ceiling.values)))
    return found


def _rows(shown: Mapping[str, list[Curve]]) -> Iterator[tuple[Any, ...]]:
    for name, lines in shown.items():
        for c in lines:
            for step, value in zip(c.steps, c.values, strict=True):
                yield c.train_id, c.label, "test" if c.test else "train", name, step, repr(value)


# -- drawing -------------------------------------------------------------------------------------------------


def draw_curves(figure: CurveFigure, settings: Mapping[str, str] | None = None) -> Figure:
    """`settings`: train_id -> what the legend calls a run; runs of one name share a colour. Default: their labels.

    It may name runs without curves: their colours are kept free, so that all figures of a report agree.
    """
    from matplotlib.lines import Line2D

    shown = [c for lines in figure.panels.values() for c in lines]
    called = {c.train_id: c.label for c in shown} | dict(settings or {})
    colours = colour_of(called.values())
    with styled(figure.name):
        drawn, axes = panels(len(figure.panels))
        for ax, (name, lines) in zip(axes, figure.panels.items(), strict=True):
            for c in figure.bounds.get(name, ()):
                ax.plot(c.steps, c.values, color=colours[called[c.train_id]], linestyle=SPARSE if c.test else DOTTED,
                        linewidth=1.0, alpha=0.8, zorder=1.8)
            for c in lines:
                colour, few = colours[called[c.train_id]], len(c.steps) < 3
                ax.plot(
                    c.steps, c.values, color=colour, linestyle=DASHED if c.test else "-",
                    linewidth=1.1 if c.test else 1.3, marker="o" if few else "", markersize=3,
                    markeredgewidth=0.75, markeredgecolor="w", zorder=1.9 if colour == GREY else 2,
                )
            _scale(ax, name, _same(figure.panels, name), _same(figure.bounds, name))
            ax.set_title(text(_title(name)), loc="left", fontweight="bold")
            ax.set(xlabel="training step", ylabel="")
            _steps(ax, max(s for c in lines for s in c.steps))
            roomy(ax)
        runs: dict[str, set[str]] = {}
        for c in shown:
            runs.setdefault(called[c.train_id], set()).add(c.train_id)
        labels = sorted(runs, key=natural)
        named = [label for label in labels if colours[label] != GREY]
        handles = [Line2D([], [], color=colours[x], label=text(x if len(runs[x]) == 1 else f"{x} ({len(runs[x])} runs)"))
                   for x in named[:MOST_RUNS]]
        if more := len(labels) - len(handles):
            handles.append(Line2D([], [], color=GREY, label=f"and {more} more"))
        if any(c.test for c in shown):
            handles += [Line2D([], [], color="#444444", label="training"),
                        Line2D([], [], color="#444444", linestyle=DASHED, label="test images")]
        if figure.bounds:
            handles.append(Line2D([], [], color="#444444", linestyle=DOTTED, label="ceiling (uniform codes)"))
        legend(drawn, axes, "", handles)
        return drawn


def _same(shown: Mapping[str, list[Curve]], name: str) -> list[Curve]:
    """The lines of a quantity on all its levels: their panels have one kind of axis."""
    return [c for other, lines in shown.items() if _quantity(other) == _quantity(name) for c in lines]


def _title(name: str) -> str:
    base, _, level = name.partition("/level")
    words = TITLES.get(base, base.replace("_", " "))
    return f"{words}, level {level}" if level.isdigit() else words if not level else name.replace("_", " ")


def _scale(ax: Axes, name: str, lines: Sequence[Curve], bounds: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    quantity = _quantity(name)
    numbers = [v for c in lines for v in c.values]
    limits = [v for c in bounds for v in c.values]
    if quantity in SHARES:
        percent(ax)
        return
    counted = quantity in CODEBOOK and quantity != "quantization_error"
    last = [c.values[-1] for c in lines]
    if counted:
        wide = min(numbers) > 0 and (max(limits, default=0.0) > 4 * max(numbers) or 30 * min(last) < max(last))
        if wide:
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
            ax.yaxis.set_minor_locator(NullLocator())
        elif quantity == "used_codes":
            ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}"))
    elif 0 < 30 * min(numbers) < max(numbers):
        ax.set_yscale("log")


def _steps(ax: Axes, last: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if last >= 10_000:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x else "0"))
