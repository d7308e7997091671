"""Records and curves -> SVG, PNG and CSV. matplotlib is imported inside: tables do not wait for it.

The numbers come from the table model, so a figure averages exactly what a table may. Torch-free.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import replace_file
from bench.report.grouping import arrange, plain
from bench.report.model import Table
from bench.report.spec import FigureSpec, ReportSpec
from bench.report.tables import build_table, comparable_numbers
from bench.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind tell apart, the brightest left out
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#332288")
MARKERS = "osD^vPX*"
GREY = "#c8c8c8"        # of lines beyond those that a legend names
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
#: how the scalars of monitors begin; what a run logs besides them are its loss terms
MONITORS = ("code_", "codes_", "ceiling", "window_fill", "used_codes", "batch_perplexity", "lr/", "latent")
MOST_RUNS = 24          # labels in a legend; further runs are drawn in grey without one


def render_figures(
    name: str, records: Iterable[Record], report: ReportSpec, curves: Path | None, reports: Path
) -> list[Path]:
    """Write every figure of a suite as <figure>.svg, .png and .csv (what it shows) into reports/<name>/.

    `curves` is results/<suite>/curves.parquet, with the columns train_id, label, step, name, value; where it
    exists, the training curves are drawn too. Figures without a single number are left out. The same records,
    with the same matplotlib, give the same bytes; unchanged files are not touched.
    """
    all_runs = sorted(records, key=lambda r: r.train_id)
    runs = [r for r in all_runs if not r.debug] or all_runs
    written: list[Path] = []
    for spec in report.figures:
        series = figure_series(runs, spec)
        if series:
            written += _write(reports / name, spec.name, _draw_series(series, spec), _series_csv(series))
    if curves is not None and curves.is_file():
        rows = read_curves(curves, {r.train_id for r in runs})
        panels = curve_panels(rows)
        if panels:
            text = _csv(("train_id", "label", "split", "curve", "step", "value"), _curve_rows(panels))
            written += _write(reports / name, "curves", _draw_curves(panels), text)
    return written


# -- a metric against a setting ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """The runs at one x of one line."""

    x: Any
    mean: float
    runs: tuple[tuple[str, float], ...]         # (train_id, number)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of one panel."""

    column: str
    heading: str
    percent: bool
    x_heading: str
    hue_heading: str
    label: str                                  # "" where there is one line only
    points: tuple[Point, ...]


def figure_series(records: Sequence[Record], spec: FigureSpec) -> list[Series]:
    """Lines by panel, then by label. Runs that differ in more than `over` are on different lines."""
    table_spec = spec.table()
    keys = table_spec.row_keys()
    over = table_spec.over_keys()
    arranged = arrange(records, keys, over)
    table: Table = build_table(records, table_spec)
    x_key = keys[-1]
    lines: dict[str, list[tuple[Any, int]]] = {}
    for i, row in enumerate(table.rows):
        named = [(k, h) for k, h in zip(arranged.keys, row.headers, strict=True) if k is not x_key]
        added = [f"{k.heading} {h.text}" for k, h in named if k.resolved in arranged.added]
        label = ", ".join([*(h.text for k, h in named if k.resolved not in arranged.added), *added])
        value = arranged.groups[i].fact(x_key.resolved)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        x = value if number else row.headers[arranged.keys.index(x_key)].text
        lines.setdefault(label, []).append((x, i))
    asked = [k for k in arranged.keys if k is not x_key and k.resolved not in arranged.added]
    headings = ", ".join(k.heading for k in asked)
    found = []
    for j, column in enumerate(table.columns):
        numbers = comparable_numbers(arranged.groups, column.key)
        for label, members in lines.items():
            points = []
            for x, i in members:
                cell = table.rows[i].cells[j]
                if cell.number is not None and numbers[i]:
                    runs = tuple((r.train_id, number) for r, number in numbers[i])
                    points.append(Point(x, cell.number, runs))
            if points:
                found.append(Series(
                    column.key, column.heading, column.unit == "share", x_key.heading, headings,
                    label if len(lines) > 1 else "", tuple(points),
                ))
    return found


def _series_csv(series: Sequence[Series]) -> str:
    rows = [(s.column, s.label, p.x, run, repr(number), repr(p.mean))
            for s in series for p in s.points for run, number in p.runs]
    return _csv(("column", "series", "x", "train_id", "value", "mean"), rows)


def _draw_series(series: Sequence[Series], spec: FigureSpec) -> Figure:
    import seaborn
    from matplotlib.ticker import NullLocator

    columns = list(dict.fromkeys(s.column for s in series))
    labels = list(dict.fromkeys(s.label for s in series))
    places = {label: i for i, label in enumerate(labels)}
    values = [p.x for s in series for p in s.points]
    numeric = all(isinstance(x, int | float) for x in values)
    ticks = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    log2 = numeric and all(x > 0 and math.log2(x).is_integer() for x in ticks) and ticks[-1] >= 4 * ticks[0]
    with _styled(spec.name):
        figure, axes = _panels(len(columns))
        for ax, column in zip(axes, columns, strict=True):
            ax.margins(x=0.09 if numeric else 0.2)
            here = [s for s in series if s.column == column]
            for s in here:
                which = places[s.label]
                shown = which < MOST_RUNS
                colour, marker = (COLOURS[which % 8], MARKERS[which % 8]) if shown else (GREY, "")
                more = f"and {len(labels) - MOST_RUNS} more" if which == MOST_RUNS else None
                label = _text(s.label) if shown else more
                xs = [p.x if numeric else ticks.index(p.x) for p in s.points]
                means = [p.mean for p in s.points]
                ordered = sorted(zip(xs, means, strict=True))
                # seaborn's lineplot draws exactly this, but takes 20 ms a line
                ax.plot(*zip(*ordered, strict=True), color=colour, label=label, marker=marker, markeredgecolor=colour,
                        markeredgewidth=0.75, zorder=4 if shown else 2)
                several = [(x, p) for x, p in zip(xs, s.points, strict=True) if len(p.runs) > 1]
                if shown and (runs := [(x, number) for x, p in several for _, number in p.runs]):
                    run_xs, numbers = zip(*runs, strict=True)
                    seaborn.scatterplot(x=run_xs, y=numbers, ax=ax, s=13, facecolor="white", edgecolor=colour,
                                        linewidth=0.9, legend=False, zorder=3)
            if log2:
                ax.set_xscale("log", base=2)
                ax.xaxis.set_minor_locator(NullLocator())
            if numeric and len(ticks) <= 8:
                ax.set_xticks(ticks, [plain(x) for x in ticks])
            elif not numeric:
                ax.set_xticks(range(len(ticks)), [_text(str(x)) for x in ticks])
            if here[0].percent:
                _percent(ax)
            ax.set_title(_text(here[0].heading), loc="left", fontweight="bold")
            ax.set(xlabel=_text(here[0].x_heading), ylabel="")
            _roomy(ax)
        if spec.title:
            figure.suptitle(_text(spec.title), fontsize=10.5, x=0.01, ha="left")
        if any(labels):
            _legend(figure, axes, series[0].hue_heading)
        return figure


# -- curves over training ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of one panel."""

    train_id: str
    label: str
    test: bool
    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(path: Path, train_ids: set[str]) -> list[tuple[str, str, int, str, float]]:
    """(train_id, label, step, name, value) of these runs, in order of the file."""
    import pyarrow.parquet as pq

    columns = ("train_id", "label", "step", "name", "value")
    found = pq.read_table(path, columns=list(columns)).to_pydict()
    return [row for row in zip(*(found[c] for c in columns), strict=True) if row[0] in train_ids]


def curve_panels(rows: Iterable[tuple[str, str, int, str, float]]) -> dict[str, list[Curve]]:
    """Panel name -> its lines: usage and perplexity first, then every loss term.

    A loss term is what the validation measures too (test/pixel beside pixel); without any validation, all
    that no codebook monitor reports is one.
    """
    lines: dict[tuple[str, str, bool, str], dict[int, float]] = {}
    for train_id, label, step, name, value in rows:
        test = name.startswith("test/")
        base = name.removeprefix("test/").removeprefix("train/")
        if value is not None and math.isfinite(value):
            lines.setdefault((base, train_id, test, label), {})[step] = value
    tested = {base for base, _, test, _ in lines if test}
    first = sorted({b for b, *_ in lines if b.partition("/")[0] in ("usage", "perplexity")},
                   key=lambda b: (b.partition("/")[0] != "usage", b))
    terms = sorted(tested or {b for b, *_ in lines if not b.startswith(MONITORS)})
    panels: dict[str, list[Curve]] = {base: [] for base in (*first, *terms)}
    for (base, train_id, test, label), points in sorted(lines.items(), key=lambda line: line[0][::-1]):
        if base in panels:
            steps = tuple(sorted(points))
            panels[base].append(Curve(train_id, label, test, steps, tuple(points[s] for s in steps)))
    return panels


def _curve_rows(panels: dict[str, list[Curve]]) -> Iterator[tuple[Any, ...]]:
    for name, lines in panels.items():
        for c in lines:
            for step, value in zip(c.steps, c.values, strict=True):
                yield c.train_id, c.label, "test" if c.test else "train", name, step, repr(value)


def _draw_curves(panels: dict[str, list[Curve]]) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    labels = sorted({c.label for lines in panels.values() for c in lines}, key=_natural)
    colours = dict(zip(labels, _palette(len(labels)), strict=True))
    tested = any(c.test for lines in panels.values() for c in lines)
    with _styled("curves"):
        figure, axes = _panels(len(panels))
        for ax, (name, lines) in zip(axes, panels.items(), strict=True):
            for c in lines:
                few = len(c.steps) < 3
                ax.plot(
                    c.steps, c.values, color=colours[c.label], linestyle=(0, (4, 1.6)) if c.test else "-",
                    linewidth=1.1 if c.test else 1.3, marker="o" if few else "", markersize=3,
                    markeredgewidth=0.75, markeredgecolor="w", zorder=1.9 if colours[c.label] == GREY else 2,
                )
            numbers = [v for c in lines for v in c.values]
            if name.partition("/")[0] == "usage":
                _percent(ax)
            elif name.partition("/")[0] != "perplexity" and 0 < 30 * min(numbers) < max(numbers):
                ax.set_yscale("log")
            ax.set_title(_text(name.replace("_", " ")), loc="left", fontweight="bold")
            ax.set(xlabel="training step", ylabel="")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if max(s for c in lines for s in c.steps) >= 10_000:
                ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x else "0"))
            _roomy(ax)
        handles = [Line2D([], [], color=colours[label], label=_text(label)) for label in labels[:MOST_RUNS]]
        if len(labels) > MOST_RUNS:
            more = f"and {len(labels) - MOST_RUNS} more"
            handles.append(Line2D([], [], color=colours[labels[-1]], label=more))
        if tested:
            handles += [Line2D([], [], color="#444444", label="training"),
                        Line2D([], [], color="#444444", linestyle=(0, (4, 1.6)), label="test images")]
        _legend(figure, axes, "", handles)
        return figure


def _palette(n: int) -> list[Any]:
    """A colour a label: distinct ones where there are few, else along one scale, else grey."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    import matplotlib

    scale = matplotlib.colormaps["viridis"].resampled(min(n, MOST_RUNS) + 2)
    return [scale(i) if i < MOST_RUNS else GREY for i in range(n)]


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sort key by which 'k = 512' is before 'k = 1024'."""
    import re

    return [(0, float(p), "") if p.replace(".", "", 1).isdigit() and p.isascii() else (1, 0.0, p)
            for p in re.split(r"(\d+(?:\.\d+)?)", label) if p]


# -- drawing and writing -------------------------------------------------------------------------------------


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    import matplotlib

    # no user's rc file changes a figure; the backend is left alone, since nothing here opens a window
    own: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    own |= {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(own):
        yield


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    """n panels, at most three a row, as even rows as possible."""
    from matplotlib.figure import Figure

    width = n if n <= 3 else 2 if n == 4 else 3
    height = math.ceil(n / width)
    figure = Figure(figsize=(PANEL[0] * width, PANEL[1] * height), layout="constrained")
    axes = [figure.add_subplot(height, width, i + 1) for i in range(n)]
    return figure, axes


def _text(text: str) -> str:
    """As it is: no formulas in names, and no label that matplotlib hides for its underscore."""
    text = " ".join(text.split()).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _percent(ax: Axes) -> None:
    """A share: per cent, from zero, so that half as high is half as much."""
    from matplotlib.ticker import FuncFormatter

    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
    ax.set_ylim(0, min(1.05, 1.08 * max(float(ax.dataLim.ymax), 1e-4)))


def _roomy(ax: Axes) -> None:
    """A constant is no trend: do not blow up its last digits."""
    if ax.get_yscale() == "linear":
        low, high = ax.get_ylim()
        least = 1e-3 * max(abs(low), abs(high), 1e-12)
        if high - low < least:
            middle = (low + high) / 2
            ax.set_ylim(middle - least, middle + least)


def _legend(figure: Figure, axes: Sequence[Axes], title: str, handles: Sequence[Any] | None = None) -> None:
    """Below the panels; one entry a label."""
    if handles is None:
        found: dict[str, Any] = {}
        for ax in axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        handles = list(found.values())
    longest = max(len(h.get_label()) for h in handles)
    across = max(1, min(len(handles), int(figure.get_figwidth() * 13 / (longest + 6))))
    if (rows := math.ceil(len(handles) / across)) > 6:      # so tall a legend would leave the panels no room
        figure.set_figheight(figure.get_figheight() + 0.19 * rows)
    figure.legend(handles=handles, loc="outside lower left", ncols=across, title=_text(title) or None,
                  alignment="left", title_fontsize=8.5, handlelength=2.2, columnspacing=1.4)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _write(folder: Path, name: str, figure: Figure, text: str) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in ("svg", "png", "csv")]
    with _styled(name):
        svg, png = io.BytesIO(), io.BytesIO()
        figure.draw_without_rendering()         # settle the layout once, not for each format
        figure.set_layout_engine("none")
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    for path, content in zip(paths, (svg.getvalue(), png.getvalue(), text.encode()), strict=True):
        replace_file(path, content)
    return paths
