"""Records and curves -> SVG, PNG and CSV. matplotlib is imported inside: tables do not wait for it.

The numbers come from the table model, so a figure averages exactly what a table may. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.curve_figures import curve_figures, draw_curves, read_curves
from bench.report.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    MOST_RUNS,
    apart,
    axis_number,
    categories,
    colour_of,
    doubt_handle,
    draw_doubts,
    legend,
    panels,
    percent,
    roomy,
    styled,
    text,
    to_csv,
    write,
)
from bench.report.gates import suspicions
from bench.report.published_points import PublishedPoint, draw_published, published_handles, published_points
from bench.report.series import Series, colours_of_figures, figure_series, settings_of, shown_runs
from bench.report.spec import FigureSpec, ReportSpec
from bench.report.tradeoffs import draw_tradeoffs, tradeoff_csv, tradeoffs
from bench.results import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.published import Published

__all__ = ["figure_series", "render_figures"]


def render_figures(
    name: str, records: Iterable[Record], report: ReportSpec, curves: Path | None, reports: Path, *,
    sanity: Sequence[Record] = (), entries: Sequence[Published] | None = None,
) -> list[Path]:
    """Write every figure of a suite as <figure>.svg, .png and .csv (what it shows) into reports/<name>/.

    `curves` is results/<suite>/curves.parquet, with the columns train_id, label, step, name, value; where it
    exists, the training curves are drawn too: curves (an overview), losses and codebook. Figures without a single
    number are left out. One label has one colour in all figures. Numbers that the plausibility gates doubt, which ask
    `sanity` too, are ringed. `entries`: what is published (None: results/published.csv). The same records, with the
    same matplotlib, give the same bytes; unchanged files are not touched.
    """
    runs = shown_runs(records)
    settings = settings_of(runs)
    doubts = suspicions(runs, sanity) if report.figures else {}
    lines = {s.name: found for s in report.figures if s.kind == "line" and (found := figure_series(runs, s, doubts))}
    trades = {s.name: panel for s in report.figures if s.kind == "tradeoff" and (panel := tradeoffs(runs, s, doubts))}
    members: dict[str, list[tuple[str, tuple[tuple[str, float], ...]]]] = {
        **{name: [(s.label, p.runs) for s in found for p in s.points] for name, found in lines.items()},
        **{name: [(p.hue, p.runs) for t in found for p in t.points] for name, found in trades.items()}}
    specs = [spec for spec in report.figures if spec.name in members]
    colours = colours_of_figures({s.name: (_hue(s), _by_label(members[s.name])) for s in specs}, settings)
    written: list[Path] = []
    for spec in specs:
        shown: Sequence[Any] = lines.get(spec.name) or trades[spec.name]
        points = published_points(runs, spec, shown, report, entries) if spec.published else []
        if spec.name in lines:
            drawn, table = _draw_series(lines[spec.name], spec, colours[spec.name], points), _series_csv(lines[spec.name], points)
        else:
            drawn = draw_tradeoffs(trades[spec.name], spec, colours[spec.name], points)
            table = tradeoff_csv(trades[spec.name], points)
        written += write(reports / name, spec.name, drawn, table)
    if curves is not None and curves.is_file():
        sizes = {r.train_id: r.layout.get("vocab_sizes") or () for r in runs}
        for figure in curve_figures(read_curves(curves, set(settings)), sizes):
            written += write(reports / name, figure.name, draw_curves(figure, settings), figure.csv())
    return written


def _hue(spec: FigureSpec) -> str | None:
    return spec.hue_key.resolved if spec.hue_key is not None else None


def _by_label(members: Iterable[tuple[str, tuple[tuple[str, float], ...]]]) -> dict[str, list[str]]:
    """Label that has a colour -> the train_ids behind it."""
    found: dict[str, list[str]] = {}
    for label, runs in members:
        found.setdefault(label, []).extend(train_id for train_id, _ in runs)
    return found


# -- a metric against a setting ------------------------------------------------------------------------------


def _series_csv(series: Sequence[Series], published: Sequence[PublishedPoint] = ()) -> str:
    """With the columns `published` and `doubt` where there is something to say in them."""
    rows = [(s.column, s.label, p.x, run, repr(number), repr(p.mean), "", "implausible" if p.doubtful else "")
            for s in series for p in s.points for run, number in p.runs]
    rows += [(p.column, p.label, p.x, "", repr(p.number), "", p.what, "") for p in published]
    header = ("column", "series", "x", "train_id", "value", "mean", "published", "doubt")
    kept = [i for i in range(len(header)) if i < 6 or any(row[i] for row in rows)]
    return to_csv([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _draw_series(
    series: Sequence[Series], spec: FigureSpec, colours: Mapping[str, Any] | None = None,
    published: Sequence[PublishedPoint] = (),
) -> Figure:
    import seaborn
    from matplotlib.ticker import FuncFormatter, NullLocator

    columns = list(dict.fromkeys(s.column for s in series))
    labels = list(dict.fromkeys(s.label for s in series))
    places = {label: i for i, label in enumerate(labels)}
    colours = colours if colours is not None else colour_of(labels) if len(labels) > 1 else {labels[0]: COLOURS[0]}
    values = [p.x for s in series for p in s.points]    # published points stand at some of these
    numeric = all(isinstance(x, int | float) for x in values)
    ticks = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    log2 = numeric and all(x > 0 and math.log2(x).is_integer() for x in ticks) and ticks[-1] >= 4 * ticks[0]
    with styled(spec.name):
        figure, axes = panels(len(columns))
        for ax, column in zip(axes, columns, strict=True):
            ax.margins(x=0.09 if numeric else 0.2)
            here = [s for s in series if s.column == column]
            for s in here:
                which = places[s.label]
                shown = which < MOST_RUNS
                colour, marker = (colours[s.label], MARKERS[which % 8]) if shown else (GREY, "")
                others = f"and {len(labels) - MOST_RUNS} more" if which == MOST_RUNS else None
                label = text(s.label) if shown else others
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
            beside = [p for p in published if p.column == column]
            draw_published(ax, [(p.x if numeric else ticks.index(p.x), p) for p in beside],
                           colours if len(labels) > 1 else {})
            draw_doubts(ax, [(p.x if numeric else ticks.index(p.x), p.mean) for s in here for p in s.points if p.doubtful])
            if log2:
                ax.set_xscale("log", base=2)
                ax.xaxis.set_minor_locator(NullLocator())
            if numeric and apart(ticks, log=log2):
                short = sum(len(axis_number(x)) + 1 for x in ticks) > 26
                ax.set_xticks(ticks, [axis_number(x, short=short) for x in ticks])
            elif log2:
                ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: axis_number(x, short=True)))
            elif not numeric:
                categories(ax, [str(x) for x in ticks])
            if here[0].percent:
                percent(ax)
            ax.set_title(text(here[0].heading), loc="left", fontweight="bold")
            ax.set(xlabel=text(here[0].x_heading), ylabel="")
            roomy(ax)
        if spec.title:
            figure.suptitle(text(spec.title), fontsize=10.5, x=0.01, ha="left")
        more = [*published_handles(published), *([doubt_handle()] if any(p.doubtful for s in series for p in s.points) else [])]
        if any(labels) or more:
            legend(figure, axes, series[0].hue_heading, more=more)
        return figure
