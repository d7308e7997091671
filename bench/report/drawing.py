"""How every figure looks and is written: colours, panels, legends, and SVG, PNG and CSV that repeat byte for byte.

matplotlib is imported inside: who only reads a record does not wait for it. Torch-free.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import replace_file
from bench.report.grouping import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind tell apart, the brightest left out
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#332288")
MARKERS = "osD^vPX*"
GREY = "#c8c8c8"        # of lines beyond those that a legend names
DOUBT = "#b00020"       # of the ring around a number that a plausibility gate doubts
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9,
    "legend.fontsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#444444", "axes.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444",
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e3e3e3", "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5, "lines.markersize": 4.5, "legend.frameon": False, "svg.fonttype": "path",
    "savefig.facecolor": "white", "figure.facecolor": "white",
}
PANEL = (2.9, 2.35)     # inches
MOST_RUNS = 24          # labels in a legend; further runs are drawn in grey without one


def palette(n: int) -> list[Any]:
    """A colour a label: distinct ones where there are few, else along one scale, else grey."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    import matplotlib

    scale = matplotlib.colormaps["viridis"].resampled(min(n, MOST_RUNS) + 2)
    return [scale(i) if i < MOST_RUNS else GREY for i in range(n)]


def colour_of(labels: Iterable[str]) -> dict[str, Any]:
    """Label -> its colour, the same in every figure that is given the same set of labels, in any order.

    Labels are ranked as a reader counts ('k = 512' before 'k = 1024'), so that a sweep that is continued upwards
    keeps its colours while there are as many as COLOURS; more than those lie along one scale.
    """
    ranked = sorted(set(labels), key=natural)
    return dict(zip(ranked, palette(len(ranked)), strict=True))


def natural(label: str) -> list[tuple[int, float, str]]:
    """Sort key by which 'k = 512' is before 'k = 1024'."""
    import re

    return [(0, float(p), "") if p.replace(".", "", 1).isdigit() and p.isascii() else (1, 0.0, p)
            for p in re.split(r"(\d+(?:\.\d+)?)", label) if p]


# -- drawing and writing -------------------------------------------------------------------------------------


@contextmanager
def styled(salt: str) -> Iterator[None]:
    import matplotlib

    # no user's rc file changes a figure; the backend is left alone, since nothing here opens a window
    own: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    own |= {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(own):
        yield


def panels(n: int, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """n panels of so many inches, at most three a row, as even rows as possible."""
    from matplotlib.figure import Figure

    width = n if n <= 3 else 2 if n == 4 else 3
    height = math.ceil(n / width)
    figure = Figure(figsize=(size[0] * width, size[1] * height), layout="constrained")
    axes = [figure.add_subplot(height, width, i + 1) for i in range(n)]
    return figure, axes


def text(text: str) -> str:
    """As it is: no formulas in names, and no label that matplotlib hides for its underscore."""
    text = " ".join(text.split()).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def percent(ax: Axes) -> None:
    """A share: per cent, from zero, so that half as high is half as much."""
    from matplotlib.ticker import FuncFormatter

    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
    ax.set_ylim(0, min(1.05, 1.08 * max(float(ax.dataLim.ymax), 1e-4)))


def roomy(ax: Axes) -> None:
    """A constant is no trend: do not blow up its last digits."""
    if ax.get_yscale() == "linear":
        low, high = ax.get_ylim()
        least = 1e-3 * max(abs(low), abs(high), 1e-12)
        if high - low < least:
            middle = (low + high) / 2
            ax.set_ylim(middle - least, middle + least)


def axis_number(x: float, *, short: bool = False) -> str:
    """A number at a tick; short: a large power of two as such, else with a k, an M or a G."""
    if not short or abs(x) < 1000:
        return plain(x)
    if math.log2(abs(x)).is_integer():
        return f"$2^{{{int(math.log2(x))}}}$" if x > 0 else plain(x)
    power = min(int(math.log10(abs(x)) + 1e-9) // 3, 3)
    return f"{x / 1000**power:.4g}{' kMG'[power]}"


def apart(ticks: Sequence[float], *, log: bool) -> bool:
    """Whether labels at these ticks have room beside one another in a panel: few, and none close to the next."""
    at = [math.log(x) if log else x for x in sorted(ticks)]
    gaps = [b - a for a, b in itertools.pairwise(at)]
    return len(at) <= 8 and (not gaps or min(gaps) >= 0.1 * (at[-1] - at[0]))


def categories(ax: Axes, names: Sequence[str]) -> None:
    """Names at ticks 0, 1, ...: slanted where they would run into one another, and never longer than a panel is high."""
    shown = [text(n if len(n) <= 28 else f"{n[:27]}…") for n in (" ".join(n.split()) for n in names)]
    slanted = len(shown) > 1 and len(shown) * (max(map(len, shown)) + 2) > 36
    how = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    ax.set_xticks(range(len(shown)), shown, **how)


def draw_doubts(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A ring around each of these points: a plausibility gate doubts it, as the table's footnote says."""
    if points:
        ax.plot(*zip(*points, strict=True), **_ring(), zorder=6)


def doubt_handle() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **_ring(), label="implausible (the table says why)")


def _ring() -> dict[str, Any]:
    return {"linestyle": "", "marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": DOUBT,
            "markeredgewidth": 1.2}


def legend(
    figure: Figure, axes: Sequence[Axes], title: str, handles: Sequence[Any] | None = None, more: Sequence[Any] = ()
) -> None:
    """Below the panels; one entry a label, then `more`."""
    if handles is None:
        found: dict[str, Any] = {}
        for ax in axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        handles = list(found.values())
    handles = [*handles, *more]
    longest = max(len(h.get_label()) for h in handles)
    across = max(1, min(len(handles), int(figure.get_figwidth() * 13 / (longest + 6))))
    if (rows := math.ceil(len(handles) / across)) > 2:      # so tall a legend would leave the panels no room
        figure.set_figheight(figure.get_figheight() + 0.19 * (rows - 2 if rows <= 6 else rows))
    figure.legend(handles=handles, loc="outside lower left", ncols=across, title=text(title) or None,
                  alignment="left", title_fontsize=8.5, handlelength=2.2, columnspacing=1.4)


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def write(folder: Path, name: str, figure: Figure, text: str) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in ("svg", "png", "csv")]
    with styled(name):
        svg, png = io.BytesIO(), io.BytesIO()
        figure.draw_without_rendering()         # settle the layout once, not for each format
        figure.set_layout_engine("none")
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    for path, content in zip(paths, (svg.getvalue(), png.getvalue(), text.encode()), strict=True):
        replace_file(path, content)
    return paths
