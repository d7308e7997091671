"""Figures of the codes of one run, from its diagnostics: histograms, maps, use, age. Torch-free.

Each function returns (figure, header, rows of what it shows), or None where the run has not got the quantity.
matplotlib and seaborn are imported inside. Nothing here grows with the number of codes beyond 16,384.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.report.code_history import code_norms_over_time, code_use_over_time, quantization_error
from bench.report.code_panels import (
    DEAD,
    INK,
    MAP,
    Drawn,
    Level,
    Subject,
    codes_per_cell,
    each,
    plain_ticks,
    say,
    scale,
)
from bench.report.code_projections import latents, sub_codebooks
from bench.report.drawing import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NONE = "#e2e2e2"            # of cells of a map that are zero
MOST_NUMBERED = 1024        # codes whose number fits into their cell of a map


# -- histograms ----------------------------------------------------------------------------------------------


def code_gradients(subject: Subject) -> Drawn | None:
    return _histogram(subject, "code_gradient_norms", "Gradient norm per code", "gradient norm",
                      "{zeros:,} of {codes:,} codes have no gradient (not drawn)")


def code_movement(subject: Subject) -> Drawn | None:
    return _histogram(subject, "code_movement", "Movement per code", "displacement per step",
                      "{zeros:,} of {codes:,} codes did not move (not drawn)")


def code_norms(subject: Subject) -> Drawn | None:
    return _histogram(subject, "code_norms", "Code norms", "code norm", "")


def _histogram(subject: Subject, name: str, title: str, xlabel: str, zeros: str) -> Drawn | None:
    levels = subject.levels(f"{name}.edges")
    if not levels:
        return None
    from matplotlib.ticker import MaxNLocator

    rows: list[tuple[Any, ...]] = []

    def draw(ax: Axes, level: Level) -> None:
        of = level.of
        edges, parts = of[f"{name}.edges"], {k: of[f"{name}.{k}"].astype(int) for k in ("active", "dead")}
        known = str(of["used_by"]) != ""
        both = known and name == "code_norms"       # a dead code has neither gradient nor, most often, movement
        heights = parts if both else {"all": parts["active"] + parts["dead"]}
        for kind, height in heights.items():
            if height.any():
                colour = DEAD if kind == "dead" else subject.colour
                ax.stairs(height, edges, fill=True, color=colour, alpha=0.85, linewidth=0, zorder=3 - (kind == "dead"))
                if kind == "dead":              # also where the active ones cover them
                    ax.stairs(height, edges, color=INK, linewidth=0.7, zorder=4)
        scale(ax, edges, "x")
        highest = max(h.max(initial=0) for h in heights.values())
        usual = np.median(np.concatenate([np.ones(1), *(h[h > 0] for h in heights.values())]))
        if both and highest > 40 * max(usual, 1):   # thousands of dead codes of one length must not hide the others
            ax.set_yscale("symlog", linthresh=1)
            ax.set_ylim(0, 2 * highest)
            plain_ticks(ax, "y")
        else:
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set(xlabel=xlabel, ylabel="number of codes")
        codes, used = level.number("codes"), level.number("used")
        if both:
            said = f"{used:,} active and {codes - used:,} dead codes (unused{level.when})"
            _legend_inside(ax, [("active", subject.colour), ("dead", DEAD)])
        else:
            said = zeros.format(zeros=int(of[f"{name}.zeros"].sum()), codes=codes)
        say(ax, level.title + said)
        apart = of[f"{name}.zeros"].tolist()
        if any(apart):
            rows.append((level.name, 0, 0, *apart))
        rows.extend((level.name, f"{edges[i]:.7g}", f"{edges[i + 1]:.7g}", int(parts["active"][i]), int(parts["dead"][i]))
                    for i in range(len(edges) - 1))

    figure = each(subject, levels, title, draw)
    return figure, ("level", "from", "to", "active_codes", "dead_codes"), rows


def _legend_inside(ax: Axes, entries: Sequence[tuple[str, Any]]) -> None:
    from matplotlib.patches import Patch

    ax.legend(handles=[Patch(color=colour, label=label) for label, colour in entries], loc="best", handlelength=1.2)


# -- maps ----------------------------------------------------------------------------------------------------


def code_gradient_map(subject: Subject) -> Drawn | None:
    return _map(subject, "code_gradient_norms", "Gradient norm of each code", "gradient norm")


def code_movement_map(subject: Subject) -> Drawn | None:
    return _map(subject, "code_movement", "Movement of each code", "displacement per step")


def _map(subject: Subject, name: str, title: str, label: str) -> Drawn | None:
    """About as many rows as columns, row by row in the order of the codebook; cells beyond the last code are white."""
    levels = subject.levels(f"{name}.cells")
    if not levels:
        return None
    import matplotlib
    import seaborn

    colours = matplotlib.colormaps[MAP].with_extremes(under=NONE)
    rows: list[tuple[Any, ...]] = []
    numbered = len(levels) == 1 and levels[0].number("codes") <= MOST_NUMBERED

    def draw(ax: Axes, level: Level) -> None:
        cells, codes = level.of[f"{name}.cells"], level.number("codes")
        grid, numbers = _grid(cells)
        some = cells[np.isfinite(cells) & (cells > 0)]
        high = float(some.max()) if len(some) else 1.0
        cut = len(some) > 20 and high > 20 * float(np.quantile(some, 0.99))     # one code must not darken all others
        seaborn.heatmap(
            grid, ax=ax, cmap=colours, vmin=1e-12 * high, vmax=float(np.quantile(some, 0.99)) if cut else high, mask=np.isnan(grid),
            annot=numbers if numbered else None, fmt="", annot_kws={"fontsize": 3.6 if codes > 256 else 5.5},
            xticklabels=False, yticklabels=False, rasterized=True, square=True,
            linewidths=0.25 if codes <= MOST_NUMBERED else 0, linecolor="white",
            cbar_kws={"label": label, "extend": "max" if cut else "neither", "fraction": 0.05, "pad": 0.03},
        )
        for written in ax.texts:
            written.set_rasterized(True)
        bar = ax.collections[0].colorbar
        bar.formatter.set_powerlimits((-2, 4))
        bar.outline.set_visible(False)
        across, m = grid.shape[1], codes_per_cell(codes, len(cells))
        what = "each cell one code" if m == 1 else f"each cell the mean of {m} neighbouring codes"
        say(ax, f"{level.title}{codes:,} codes in rows of {across * m:,}, {what}; grey: zero")
        rows.extend((level.name, i * m, min(m, codes - i * m), f"{v:.7g}") for i, v in enumerate(cells))

    figure = each(subject, levels, title, draw, size=(6.6, 6.2) if numbered else (5.2, 4.9))
    figure.set_dpi(180)                         # of what an SVG holds as pixels
    return figure, ("level", "first_code", "codes", label.replace(" ", "_")), rows


def _grid(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values in rows, NaN beyond the last; their numbers as text), the narrowest rectangle not higher than wide."""
    across = math.ceil(math.sqrt(len(cells)))
    down = math.ceil(len(cells) / across)
    grid = np.full(down * across, np.nan)
    grid[: len(cells)] = cells
    numbers = np.array([str(i) if i < len(cells) else "" for i in range(grid.size)])
    return grid.reshape(down, across), numbers.reshape(down, across)


# -- use and age ---------------------------------------------------------------------------------------------


def code_counts(subject: Subject) -> Drawn | None:
    """Counts in descending order, against those of codes that are all equally likely."""
    levels = [level for level in subject.levels("counts.rank") if level.number("window")]
    if not levels:
        return None
    rows: list[tuple[Any, ...]] = []

    def draw(ax: Axes, level: Level) -> None:
        ranks, counts = level.of["counts.rank"], level.of["counts.count"]
        codes, used, window = (level.number(n) for n in ("codes", "used", "window"))
        seen = counts > 0
        ax.plot(ranks[seen], counts[seen], color=subject.colour, drawstyle="steps-mid",
                marker="o" if seen.sum() < 3 else "", markersize=3)
        ax.axhline(window / codes, color=INK, linewidth=0.9, linestyle=(0, (4, 1.6)), zorder=1)
        ax.annotate("all equally often", (1.0, window / codes), xytext=(2, 3), textcoords="offset points", fontsize=7.5,
                    color=INK)
        if used < codes:
            ax.axvspan(used + 0.5, codes + 0.5, color=DEAD, alpha=0.18, linewidth=0, zorder=0)
            if math.log(codes / max(used, 1)) > 0.16 * math.log(max(codes, 2)):
                ax.annotate("never", ((used * codes) ** 0.5 if used else codes**0.5, 0.94), xycoords=ax.get_xaxis_transform(),
                            ha="center", va="top", fontsize=7.5, color=INK)
        ax.set(xscale="log", yscale="log", xlim=(0.9, codes * 1.1), xlabel="rank of the code", ylabel="times chosen")
        low, high = min(counts[seen].min(), window / codes), counts.max()
        if high < 4 * low:                          # nearly equal counts are no trend: do not blow up the last of them
            ax.set_ylim(low / 2, 2 * high)
        plain_ticks(ax, "x", "y")
        say(ax, f"{level.title}{used:,} of {codes:,} codes used ({100 * used / codes:.3g}%){level.when}")
        rows.extend((level.name, int(r), int(n)) for r, n in zip(ranks, counts, strict=True))

    return each(subject, levels, "How often each code is chosen", draw), ("level", "rank", "count"), rows


def code_age(subject: Subject) -> Drawn | None:
    """The share of codes whose last use is at most so many steps ago."""
    levels = subject.levels("code_ages.age")
    if not levels:
        return None
    rows: list[tuple[Any, ...]] = []

    def draw(ax: Axes, level: Level) -> None:
        ages, younger, codes = level.of["code_ages.age"], level.of["code_ages.codes"], level.number("codes")
        known = ages < subject.step                 # the others have not been chosen since training began
        now, ever = int(younger[0]) if ages[0] == 0 else 0, int(younger[known].max(initial=0))
        never, end = codes - ever, max(subject.step, 1)
        xs, ys = np.append(ages[known], 1.3 * end), np.append(younger[known], ever) / codes
        ax.fill_between(xs, ys, step="post", color=subject.colour, alpha=0.18, linewidth=0)
        ax.step(xs, ys, where="post", color=subject.colour)
        ax.set_xscale("symlog", linthresh=1)
        plain_ticks(ax, "x")
        ax.set(xlim=(0, 1.3 * end), xlabel="steps since the code was last used", ylabel="share of codes, cumulative")
        percent(ax)
        ax.set_ylim(0, 1)
        if never:
            ax.axhspan(ever / codes, 1, color=DEAD, alpha=0.25, linewidth=0)
            if never > 0.1 * codes:
                ax.annotate("never used", (0.5, (1 + ever / codes) / 2), xycoords=ax.get_yaxis_transform(), ha="center",
                            va="center", fontsize=8, color=INK)
        median = int(ages[np.searchsorted(younger, codes / 2)])
        say(ax, f"{level.title}{now:,} of {codes:,} codes used in the last step, {never:,} never; median age {median:,}")
        rows.extend((level.name, int(a), int(n)) for a, n in zip(ages, younger, strict=True))

    figure = each(subject, levels, "Age of the codes", draw)
    return figure, ("level", "age_at_most", "codes"), rows


# -- all of them ---------------------------------------------------------------------------------------------


def every(subject: Subject, error: Sequence[tuple[int, float]]) -> Iterator[tuple[str, Drawn]]:
    """(file name, what is drawn) of all figures that this run has; `error`: points of the quantization error."""
    has_gradient = bool(subject.levels("code_gradient_norms.cells"))
    for draw in FIGURES:
        if (draw is not code_movement_map or not has_gradient) and (drawn := draw(subject)) is not None:
            yield draw.__name__, drawn
    if (drawn := quantization_error(subject, error)) is not None:
        yield "quantization_error", drawn


FIGURES = (code_counts, code_age, code_norms, code_norms_over_time, code_use_over_time, code_gradients,
           code_gradient_map, code_movement, code_movement_map, latents, sub_codebooks)
