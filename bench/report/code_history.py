"""Figures of a run's codes over training: their norms, their use, and the quantization error. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.report.code_panels import (
    MAP,
    Drawn,
    Level,
    Subject,
    codes_per_cell,
    each,
    plain_ticks,
    say,
    scale,
    time_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def code_norms_over_time(subject: Subject) -> Drawn | None:
    """Time x norm: the share of codes in each of 100 bins that are the same at every step."""
    levels = [level for level in subject.levels("norms_over_time")
              if len(level.of["norms_over_time"]) > 1 and level.of["norms_over_time"].any()]    # none: no norm is finite
    if not levels:
        return None
    from matplotlib.colors import LogNorm

    steps, rows = subject.archive["steps"], []

    def draw(ax: Axes, level: Level) -> None:
        edges, counts = level.of["norm_edges"], level.of["norms_over_time"]
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        shown = np.ma.masked_equal(shares.T, 0)
        mesh = ax.pcolormesh(_step_edges(steps), edges, shown, cmap=MAP, rasterized=True,
                             norm=LogNorm(max(shown.min(), 1e-6), max(shown.max(), 1.1 * shown.min())))
        scale(ax, edges, "y")
        time_axis(ax, steps)
        ax.set_ylabel("code norm")
        _share_bar(ax, mesh, "share of codes")
        say(ax, f"{level.title}{level.number('codes'):,} codes; white: no code")
        rows.extend((level.name, int(step), f"{edges[j]:.7g}", f"{edges[j + 1]:.7g}", int(n))
                    for step, line in zip(steps, counts, strict=True) for j, n in enumerate(line) if n)

    figure = each(subject, levels, "Code norms over training", draw, size=(6.0, 3.3))
    figure.set_dpi(180)
    return figure, ("level", "step", "from", "to", "codes"), rows


def code_use_over_time(subject: Subject) -> Drawn | None:
    """Which parts of the codebook are in use: neighbours in the codebook share a row."""
    levels = [level for level in subject.levels("use_over_time") if len(level.of["use_over_time"]) > 1]
    if not levels:
        return None
    from matplotlib.colors import Normalize
    from matplotlib.ticker import FuncFormatter

    steps, rows = subject.archive["steps"], []

    def draw(ax: Axes, level: Level) -> None:
        shares, codes = level.of["use_over_time"], level.number("codes")
        m = codes_per_cell(codes, shares.shape[1])
        first = np.minimum(np.arange(shares.shape[1] + 1) * m, codes)
        shown = np.ma.masked_equal(shares.T, 0)
        mesh = ax.pcolormesh(_step_edges(steps), first, shown, cmap=MAP, norm=Normalize(0, max(shares.max(), 1e-6)), rasterized=True)
        time_axis(ax, steps)
        ax.set_ylabel("code")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        _share_bar(ax, mesh, "share in use")
        each = "one code" if m == 1 else f"{m:,} neighbouring codes"
        say(ax, f"{level.title}used{level.when}; each row {each}, white: not used")
        rows.extend((level.name, int(step), int(first[j]), int(first[j + 1] - first[j]), f"{v:.6g}")
                    for step, line in zip(steps, shares, strict=True) for j, v in enumerate(line))

    figure = each(subject, levels, "Codes in use over training", draw, size=(6.0, 3.3))
    figure.set_dpi(180)
    return figure, ("level", "step", "first_code", "codes", "share_in_use"), rows


def _step_edges(steps: np.ndarray) -> np.ndarray:
    """Around each step as far as half the way to the next."""
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0] - (middle[0] - steps[0])], middle, [steps[-1] + (steps[-1] - middle[-1])]])


def _share_bar(ax: Axes, mesh: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    bar = ax.figure.colorbar(mesh, ax=ax, label=label, fraction=0.05, pad=0.02,
                             format=FuncFormatter(lambda y, _: f"{100 * y:.3g}%"))
    bar.minorticks_off()
    bar.outline.set_visible(False)


def quantization_error(subject: Subject, points: Sequence[tuple[int, float]]) -> Drawn | None:
    """points: (step, mean squared difference per element)."""
    if not points:
        return None
    level = Level("", "", {})

    def draw(ax: Axes, level: Level) -> None:
        steps, values = zip(*points, strict=True)
        ax.plot(steps, values, color=subject.colour, marker="o" if len(steps) < 3 else "")
        if 0 < 30 * min(values) < max(values):
            ax.set_yscale("log")
            plain_ticks(ax, "y")
        else:
            ax.set_ylim(bottom=0)
        time_axis(ax, np.array(steps))
        ax.grid(True, axis="y")
        ax.set_ylabel("mean squared error")
        say(ax, "between latents and what replaces them, per element")

    figure = each(subject, [level], "Quantization error", draw)
    return figure, ("step", "quantization_error"), [(step, repr(value)) for step, value in points]
