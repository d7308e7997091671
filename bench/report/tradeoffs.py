"""Rate-distortion and other trade-offs: a point a row of the suite, and the best that can be had (Pareto). Torch-free."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.costs import COSTS, is_cost, machine_of
from bench.errors import BadInput
from bench.report.columns import Doubts
from bench.report.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    MOST_RUNS,
    apart,
    axis_number,
    colour_of,
    doubt_handle,
    draw_doubts,
    legend,
    natural,
    panels,
    percent,
    roomy,
    styled,
    text,
    to_csv,
)
from bench.report.grouping import Arranged, arrange
from bench.report.model import Direction, Table, is_property
from bench.report.published_points import PublishedPoint, draw_published, published_handles
from bench.report.series import PROPERTIES, may_come, number_of, x_title, y_title
from bench.report.spec import ColumnKey, FigureSpec
from bench.report.tables import build_table, comparable_numbers
from bench.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: how labels at points abbreviate settings
LETTERS = {"tokenizer.quantizer.codebook_size": "K", "tokenizer.quantizer.codebook_dim": "D"}
DIRECT = 12             # labels beside the points of a panel; with more of them a legend names the points
SIZES = {1: (4.8, 3.5), 2: (4.1, 3.1)}      # inches of a panel, by their number
SIZE = (3.4, 2.8)
FRONT = "#8a8a8a"
#: where a label may stand, in points from its own one, the best place first
PLACES = ((6, 0), (-6, 0), (0, 5), (0, -5), (4, 4), (-4, 4), (4, -4), (-4, -4), (0, 13), (0, -13), (8, 10), (-8, 10),
          (8, -10), (-8, -10))


@dataclass(frozen=True, slots=True)
class TradePoint:
    """The runs of one row: their means."""

    x: float
    y: float
    hue: str                                    # what its colour says; "" where nothing does
    rest: str                                   # what else tells it from the other points
    front: bool                                 # no other point is at least as good in both and better in one
    runs: tuple[tuple[str, float], ...]         # (train_id, y)
    group: int = 0
    doubtful: bool = False                      # a plausibility gate doubts x or y; then it is on no front

    @property
    def label(self) -> str:
        return ", ".join(part for part in (self.hue, self.rest) if part)


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """One panel."""

    column: str
    heading: str
    percent: bool
    direction: Direction
    x_heading: str
    x_direction: Direction
    hue_heading: str
    points: tuple[TradePoint, ...]


def pareto(points: Sequence[tuple[float, float]], x: Direction, y: Direction) -> list[int]:
    """Indices, ascending, of the points that none dominates: at least as good in both, better in one. Equal points stay
    together. Without a better end on either axis there is no front: [].
    """
    if "none" in (x, y):
        return []
    signs = (1.0 if x == "lower" else -1.0, 1.0 if y == "lower" else -1.0)
    costs = [(signs[0] * a, signs[1] * b) for a, b in points]
    front: list[int] = []
    best = math.inf                             # the lowest cost in y of all that cost less in x
    ranked = sorted(range(len(costs)), key=lambda i: costs[i])
    for i in ranked:
        if costs[i][1] < best or (front and costs[i] == costs[front[-1]]):
            front.append(i)
            best = costs[i][1]
    return sorted(front)


def tradeoffs(records: Sequence[Record], spec: FigureSpec, doubts: Doubts | None = None) -> list[Tradeoff]:
    """Panels of a figure, one a column of `y`; rows are grouped, averaged and told apart as in a table.

    `x` is a dotted key of layout, parameters, cost or monitors, a setting with a number, or a measured value. Raises
    BadInput where no run has it.
    """
    key = spec.x_key
    measured = "." not in key.resolved
    table_spec = spec.table(x_heads_rows=False)
    if measured:
        extra = ColumnKey(key=key.key, title=key.title)
        table_spec = table_spec.model_copy(update={"columns": (*table_spec.columns, extra)})
    arranged = arrange(records, table_spec.row_keys(), table_spec.over_keys())
    table = build_table(records, table_spec, doubts=doubts or {})
    xs = _xs(arranged, table, spec)
    x_heading, x_direction = x_title(key), PROPERTIES.get(key.resolved, ("", "none"))[1]
    if is_cost(key.resolved) and COSTS[key.resolved.removeprefix("cost.")].timed and (machine := machine_of(records)):
        x_heading += f" ({machine.partition(',')[0]})"
    if measured:
        x_heading, x_direction = table.columns[-1].heading, table.columns[-1].direction
    names = [_names(arranged, table, i, spec) for i in range(len(table.rows))]
    found = []
    for j, column in enumerate(table.columns[: len(spec.y)]):
        numbers = comparable_numbers(arranged.groups, column.key)
        rows = [(i, x, y) for i, (x, row) in enumerate(zip(xs, table.rows, strict=True))
                if x is not None and (y := row.cells[j].number) is not None and numbers[i]]
        direction = PROPERTIES.get(column.key, ("", column.direction))[1]
        doubtful = {i for i, row in enumerate(table.rows)
                    if row.cells[j].doubtful or (measured and row.cells[-1].doubtful)}
        sound = [row for row in rows if row[0] not in doubtful]
        front = {sound[at][0] for at in pareto([(x, y) for _, x, y in sound], x_direction, direction)}
        points = tuple(
            TradePoint(x, y, *names[i], i in front, tuple((r.train_id, n) for r, n in numbers[i]), i, i in doubtful)
            for i, x, y in rows)
        if points:
            found.append(Tradeoff(column.key, y_title(column), column.unit == "share", direction, x_heading, x_direction,
                                  spec.hue_key.heading if spec.hue_key is not None else "", points))
    return found


def _xs(arranged: Arranged, table: Table, spec: FigureSpec) -> list[float | None]:
    key = spec.x_key.resolved
    if "." not in key:
        comparable = comparable_numbers(arranged.groups, table.columns[-1].key)
        found = [row.cells[-1].number if runs else None for row, runs in zip(table.rows, comparable, strict=True)]
    elif is_property(key):
        found = [_mean([x for r in g.records if (x := number_of(r, key)) is not None]) for g in arranged.groups]
    else:
        facts = [g.fact(key) for g in arranged.groups]
        found = [f if isinstance(f, int | float) and not isinstance(f, bool) else None for f in facts]
    if all(x is None for x in found) and not may_come(arranged.groups, key):
        raise BadInput(f"report: figures: {spec.name}: x: no run has a number {key!r}; give a measured value, or a key of "
                       f"layout, parameters or cost such as layout.bits_per_pixel")
    return found


def _mean(numbers: Sequence[float]) -> float | None:
    return None if not numbers else numbers[0] if len(set(numbers)) == 1 else math.fsum(numbers) / len(numbers)


def _names(arranged: Arranged, table: Table, i: int, spec: FigureSpec) -> tuple[str, str]:
    """(hue, rest) of a row: what its colour says, and what else tells it from the others."""
    headers = {k.resolved: (k, h.text) for k, h in zip(arranged.keys, table.rows[i].headers, strict=True)}
    parts = {k for g in arranged.groups for r in g.records for k in r.components}      # they need no heading
    rest = [f"{LETTERS[k]}={t}" if k in LETTERS else t if k in parts else f"{key.heading} {t}"
            for k, (key, t) in headers.items() if k in arranged.added]
    if spec.hue_key is not None:
        return headers[spec.hue_key.resolved][1], ", ".join(rest)
    several = len({row.headers[0].text for row in table.rows}) > 1
    first = [table.rows[i].headers[0].text] if several or not rest else []
    return ", ".join([*first, *rest]), ""


def tradeoff_csv(shown: Sequence[Tradeoff], published: Sequence[PublishedPoint] = ()) -> str:
    rows = [(t.column, p.label, repr(p.x), repr(p.y), "yes" if p.front else "no", " ".join(r for r, _ in p.runs), "",
             "implausible" if p.doubtful else "") for t in shown for p in t.points]
    rows += [(p.column, p.label, repr(p.x), repr(p.number), "", "", p.what, "") for p in published]
    return to_csv(("column", "label", "x", "y", "pareto", "train_ids", "published", "doubt"), rows)


# -- drawing -------------------------------------------------------------------------------------------------


def draw_tradeoffs(
    shown: Sequence[Tradeoff], spec: FigureSpec, colours: Mapping[str, Any] | None = None,
    published: Sequence[PublishedPoint] = (),
) -> Figure:
    """Few points have their names beside them. Else markers tell apart what colours do not, and the legend says so."""
    points = [p for t in shown for p in t.points]
    hues = sorted({p.hue for p in points}, key=natural)
    rests = sorted({p.rest for p in points}, key=natural)
    colours = colours if colours is not None else colour_of(hues) if len(hues) > 1 else dict.fromkeys(hues, COLOURS[0])
    by_hue = {h: MARKERS[i % 8] for i, h in enumerate(hues)}
    by_rest = {r: MARKERS[i % 8] for i, r in enumerate(rests)} if len(rests) > 1 else {}
    with styled(spec.name):
        if len({p.label for p in points}) <= DIRECT:
            figure, axes = _panels(shown, spec, colours, published, {(p.hue, p.rest): by_hue[p.hue] for p in points})
            named = [_handle(h, colours[h], by_hue[h]) for h in hues] if spec.hue is not None else []
            _finish(figure, axes, shown, published, named)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")    # labels are placed in what is drawn in the end
            if all(_label_points(ax, t, published) for ax, t in zip(axes, shown, strict=True)):
                return figure
        markers = {(p.hue, p.rest): by_rest.get(p.rest, by_hue[p.hue]) for p in points}
        figure, axes = _panels(shown, spec, colours, published, markers)
        named = [_handle(h, colours[h], "o" if by_rest else by_hue[h]) for h in hues[:MOST_RUNS]]
        if more := len(hues) - len(named):
            named.append(_handle(f"and {more} more", GREY, "o"))
        named += [_handle(r, "#444444", m) for r, m in list(by_rest.items())[:MOST_RUNS]]
        _finish(figure, axes, shown, published, named)
        return figure


def _panels(
    shown: Sequence[Tradeoff], spec: FigureSpec, colours: Mapping[str, Any], published: Sequence[PublishedPoint],
    markers: Mapping[tuple[str, str], str],
) -> tuple[Figure, list[Axes]]:
    """`markers`: by hue and rest of a point."""
    figure, axes = panels(len(shown), SIZES.get(len(shown), SIZE))
    for ax, t in zip(axes, shown, strict=True):
        ax.margins(0.12)
        if front := _front(t):
            ax.plot(*zip(*front, strict=True), color=FRONT, linewidth=1.0, zorder=2)
        for p in t.points:
            ax.plot([p.x], [p.y], linestyle="", marker=markers[p.hue, p.rest], color=colours[p.hue], zorder=4)
            if len(p.runs) > 1:
                ax.plot([p.x] * len(p.runs), [y for _, y in p.runs], linestyle="", marker="o", markersize=3,
                        markerfacecolor="white", markeredgecolor=colours[p.hue], zorder=3)
        draw_published(ax, [(p.x, p) for p in published if p.column == t.column], {})
        draw_doubts(ax, [(p.x, p.y) for p in t.points if p.doubtful])
        _axes(ax, t, spec)
    if spec.title:
        figure.suptitle(text(spec.title), fontsize=10.5, x=0.01, ha="left")
    return figure, axes


def _handle(label: str, colour: Any, marker: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=colour, label=text(label))


def _finish(
    figure: Figure, axes: Sequence[Axes], shown: Sequence[Tradeoff], published: Sequence[PublishedPoint],
    named: Sequence[Any],
) -> None:
    """The legend: what is `named`, then the front and what is published."""
    from matplotlib.lines import Line2D

    handles = list(named)
    if any(len(t.points) > 1 and any(p.front for p in t.points) for t in shown):
        handles.append(Line2D([], [], color=FRONT, linewidth=1.0, label="Pareto front"))
    handles += published_handles(published)
    if any(p.doubtful for t in shown for p in t.points):
        handles.append(doubt_handle())
    if handles:
        legend(figure, axes, shown[0].hue_heading if named else "", handles)


def _front(t: Tradeoff) -> list[tuple[float, float]]:
    """Corners of the best y that can be had at each x, from the first point of the front to the end of the data."""
    front = sorted({(p.x, p.y) for p in t.points if p.front})
    if len(t.points) < 2 or not front:
        return []
    xs = [p.x for p in t.points]
    if t.x_direction == "lower":                # what has been had once stays
        corners = [c for (x, y), (next_x, _) in itertools.pairwise(front) for c in ((x, y), (next_x, y))]
        return [*corners, front[-1], (max(xs), front[-1][1])]
    corners = [c for (x, _), (next_x, y) in itertools.pairwise(front) for c in ((x, y), (next_x, y))]
    return [(min(xs), front[0][1]), front[0], *corners]


def _axes(ax: Axes, t: Tradeoff, spec: FigureSpec) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    key = spec.x_key.resolved
    ticks = sorted({p.x for p in t.points})
    powers = all(x > 0 and math.log2(x).is_integer() for x in ticks) and ticks[-1] >= 4 * ticks[0]
    if powers:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
        if apart(ticks, log=True):
            ax.set_xticks(ticks, [axis_number(x, short=sum(len(axis_number(x)) + 1 for x in ticks) > 26) for x in ticks])
    elif ticks[0] > 0 and ticks[-1] > 20 * ticks[0]:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        shown = (lambda x, _: f"{x / 2**30:.3g}Gi") if key.endswith("_bytes") else (lambda x, _: axis_number(x, short=x >= 1e4))
        ax.xaxis.set_major_formatter(FuncFormatter(shown))
    ys = [p.y for p in t.points]
    if t.percent:
        percent(ax)
    elif 0 < 30 * min(ys) < max(ys):
        ax.set_yscale("log")
    better = {"higher": " →", "lower": " ←", "none": ""}[t.x_direction]
    ax.grid(visible=True, axis="x")
    ax.set_title(text(t.heading), loc="left", fontweight="bold")
    ax.set(xlabel=text(t.x_heading.rstrip("↑↓")) + (f"  (better{better})" if better else ""), ylabel="")
    roomy(ax)


def _label_points(ax: Axes, t: Tradeoff, published: Sequence[PublishedPoint]) -> bool:
    """Write what tells the points apart beside them, off the front where that is possible; False where labels would
    overlap. The layout of the figure is settled.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    frame, scale = ax.get_window_extent(), ax.figure.dpi / 72
    at = [ax.transData.transform((p.x, p.y)) for p in t.points]
    at += [ax.transData.transform((p.x, p.number)) for p in published if p.column == t.column]
    taken = [Bbox.from_bounds(x - 3 * scale, y - 3 * scale, 6 * scale, 6 * scale) for x, y in at]
    corners = [ax.transData.transform(c) for c in _front(t)]
    front = [Bbox([(min(a[0], b[0]), min(a[1], b[1]) - 1), (max(a[0], b[0]), max(a[1], b[1]) + 1)])
             for a, b in itertools.pairwise(corners)]
    for i, p in enumerate(t.points):
        said = p.rest if t.hue_heading else p.label
        if not said:
            continue
        note = ax.annotate(text(said), (p.x, p.y), xytext=(0, 0), textcoords="offset points", fontsize=7.5, color="#333333", zorder=5,
                           path_effects=[withStroke(linewidth=2, foreground="white")])
        note.set_in_layout(False)
        fits: list[tuple[bool, int]] = []       # (crosses the front, place)
        for place, (dx, dy) in enumerate(PLACES):
            box = _put(note, dx, dy)
            inside = box.x0 >= frame.x0 + 4 and box.x1 <= frame.x1 + 4 and box.y0 >= frame.y0 + 2 and box.y1 <= frame.y1 + 4
            if inside and not any(box.overlaps(other) for j, other in enumerate(taken) if j != i):
                fits.append((any(box.overlaps(line) for line in front), place))
        if not fits:
            return False
        taken.append(_put(note, *PLACES[min(fits)[1]]))
    return True


def _put(note: Any, dx: float, dy: float) -> Any:
    """Place a label so many points from its own one; what it then covers, in pixels."""
    note.set_position((dx, dy))
    note.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
    note.set_va("bottom" if dy > 0 else "top" if dy < 0 else "center")
    return note.get_window_extent().padded(1)
