"""Timings -> log-log figures: time and memory against K, D and N, and the roofline. Torch-free.

seaborn is imported inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.drawing import MARKERS, axis_number, colour_of, panels, styled, text, to_csv, write
from bench.report.timing_tables import Floor, floors, place
from bench.timings import Timing, newest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"K": "codes K", "D": "width D", "N": "latents N"}
LEAST_MEMORY = 0.25         # MiB: below this a reading is rounding, and a logarithm has no zero
MOST_PANELS = 6


def render_timing_figures(timings: Sequence[Timing], folder: Path) -> list[Path]:
    """time_vs_K, _D, _N, memory_vs_K, _D, _N and roofline as .svg, .png and .csv; those without two sizes are left out.

    A panel is one thing done (search, train) at one pair of the other two sizes; panels with most sizes come first.
    """
    shown = [t for t in newest(timings) if t.kind in ("quantizer", "peer") and t.seconds]
    if not shown:
        return []
    colours = colour_of(t.label for t in shown)
    written: list[Path] = []
    for quantity in ("time", "memory"):
        for axis in AXES:
            groups = _groups([t for t in shown if quantity == "time" or t.memory is not None], axis)
            if groups:
                name = f"{quantity}_vs_{axis}"
                with styled(name):
                    figure = _draw(groups, axis, quantity, colours)
                written += write(folder, name, figure, _csv(groups, axis))
    floor = floors(timings)
    points = [(t, floor[place(t)]) for t in shown if t.what == "search" and t.flops and t.bytes and place(t) in floor]
    if points:
        with styled("roofline"):
            figure = _roofline(points, colours)
        rows = [(t.label, t.size["N"], t.size["D"], t.size["K"], repr(f.intensity(t)), repr(t.flops / t.median / 1e9),
                 repr(f.flops_per_second / 1e9), repr(f.bytes_per_second / 1e9)) for t, f in points]
        header = ("who", "N", "D", "K", "flops_per_byte", "gflops", "peak_gflops", "gigabytes_per_second")
        written += write(folder, "roofline", figure, to_csv(header, rows))
    return written


Groups = list[tuple[tuple[Any, ...], list[Timing]]]


def _groups(timings: Sequence[Timing], axis: str) -> Groups:
    """(machine, dtype, what, other sizes) -> timings over at least two values of `axis`; the richest first."""
    found: dict[tuple[Any, ...], list[Timing]] = {}
    for t in timings:
        others = tuple((k, v) for k, v in t.size.items() if k != axis)
        found.setdefault((t.machine.fingerprint, t.dtype, t.what, *others), []).append(t)
    kept = [(key, ts) for key, ts in found.items() if len({t.size[axis] for t in ts}) > 1]
    whats = {"search": 0, "train": 1, "lookup": 2}
    kept.sort(key=lambda g: (-len({t.size[axis] for t in g[1]}), whats.get(g[0][2], 3), str(g[0])))
    return sorted(kept[:MOST_PANELS], key=lambda g: (g[0][:2], g[0][3:], whats.get(g[0][2], 3)))


def _draw(groups: Groups, axis: str, quantity: str, colours: dict[str, Any]) -> Figure:
    import pandas
    import seaborn

    figure, axes = panels(len(groups), (3.3, 2.9))
    styles = _markers(colours)
    for ax, (key, timings) in zip(axes, groups, strict=True):
        rows = []
        for t in timings:
            low, high = t.quartiles
            y = 1e3 * t.median if quantity == "time" else max((t.memory or 0) / 2**20, LEAST_MEMORY)
            rows.append({"x": t.size[axis], "y": y, "who": t.label, "low": 1e3 * low, "high": 1e3 * high})
        frame = pandas.DataFrame(rows).sort_values("x")
        seaborn.lineplot(frame, x="x", y="y", hue="who", style="who", palette=colours, markers=styles, dashes=False, ax=ax,
                         errorbar=None, legend=False, markeredgewidth=0)
        if quantity == "time":
            for who, part in frame.groupby("who"):
                ax.fill_between(part.x, part.low, part.high, color=colours[str(who)], alpha=0.15, linewidth=0)
        _logarithmic(ax, sorted({t.size[axis] for t in timings}))
        others = ", ".join(f"{k} = {v}" for k, v in key[3:])
        ax.set(title=text(f"{key[2]}, {others}"), xlabel=AXES[axis], ylabel="")
    for ax in axes:
        ax.set_ylabel({"time": "ms", "memory": "extra MiB"}[quantity])
    _legend(figure, {t.label for _, ts in groups for t in ts}, colours)
    return figure


def _logarithmic(ax: Axes, xs: Sequence[int]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(xs, [axis_number(x, short=True) for x in xs])
    ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_ylim()
    if high / low < 10:                         # a decade at least: a small spread is not a large one
        middle = (low * high) ** 0.5
        ax.set_ylim(middle / 10**0.5, middle * 10**0.5)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _markers(colours: dict[str, Any]) -> dict[str, str]:
    return {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(colours)}


def _legend(figure: Figure, labels: set[str], colours: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    from bench.report.drawing import legend

    markers = _markers(colours)
    handles = [Line2D([], [], color=colours[who], marker=markers[who], label=text(who)) for who in colours if who in labels]
    legend(figure, figure.axes, "", handles)


def _roofline(points: Sequence[tuple[Timing, Floor]], colours: dict[str, Any]) -> Figure:
    """Achieved products per second against arithmetic intensity, below the roof measured in the same sessions."""
    import numpy
    import pandas
    import seaborn
    from matplotlib.ticker import FuncFormatter

    figure, (ax,) = panels(1, (6.0, 3.8))
    frame = pandas.DataFrame([
        {"x": f.intensity(t), "y": t.flops / t.median / 1e9, "who": t.label} for t, f in points])      # type: ignore[operator]
    peak = max(f.flops_per_second for _, f in points) / 1e9
    stream = max(f.bytes_per_second for _, f in points) / 1e9
    xs = numpy.geomspace(min(frame.x.min(), peak / stream) / 2, frame.x.max() * 2, 200)
    ax.plot(xs, numpy.minimum(peak, stream * xs), color="#444444", linewidth=1.2, zorder=1)
    seaborn.scatterplot(frame, x="x", y="y", hue="who", style="who", palette=colours, markers=_markers(colours), ax=ax,
                        legend=False, s=34, linewidth=0, zorder=3)
    ax.set(xscale="log", yscale="log", xlabel="needed flops per compulsory byte", ylabel="GFLOP/s, search")
    ax.annotate(f"{peak:.0f} GFLOP/s, best reference product", (xs[-1], peak), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8)
    ax.annotate(f"{stream:.0f} GB/s", (xs[0], stream * xs[0]), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    for side in (ax.xaxis, ax.yaxis):
        side.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    _legend(figure, set(frame.who), colours)
    return figure


def _csv(groups: Groups, axis: str) -> str:
    rows = [(key[2], t.label, t.size["N"], t.size["D"], t.size["K"], repr(t.median), *map(repr, t.quartiles),
             "" if t.memory is None else t.memory) for key, ts in groups for t in sorted(ts, key=lambda t: (t.label, t.size[axis]))]
    return to_csv(("what", "who", "N", "D", "K", "seconds", "lower_quartile", "upper_quartile", "extra_bytes"), rows)
