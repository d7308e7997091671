"""Published numbers as points of a figure: grey, hollow where they were measured under our conditions and light where
not, with another marker where the number was not read in a text.

Which published number belongs to a run is decided in bench.published, as for tables. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bench.protocol import SEPARATOR
from bench.published import MARKS, Match, Published, candidates, read_published
from bench.report.drawing import text
from bench.report.spec import FigureSpec, ReportSpec
from bench.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKER = {"read": "D", "image": "s", "recalled": "X"}
EDGE = "#6f6f6f"
FACES = {True: "none", False: "#dddddd"}        # by whether nothing is known that keeps the two apart


@dataclass(frozen=True, slots=True)
class PublishedPoint:
    """A published number at the x of the runs that it is held against."""

    column: str
    x: Any
    number: float
    label: str                                  # of the runs' line
    evidence: str                               # read, image or recalled
    comparable: bool                            # nothing is known that keeps the two apart
    what: str                                   # system, source, evidence, and why the two need not agree

    @property
    def legend(self) -> str:
        return f"published{MARKS[self.evidence]}" + ("" if self.comparable else ", under other conditions")


class _Point(Protocol):
    @property
    def x(self) -> Any: ...
    @property
    def runs(self) -> tuple[tuple[str, float], ...]: ...


class _Line(Protocol):
    @property
    def column(self) -> str: ...
    @property
    def points(self) -> Sequence[_Point]: ...


def published_points(
    records: Sequence[Record], spec: FigureSpec, lines: Sequence[_Line], report: ReportSpec,
    entries: Sequence[Published] | None = None,
) -> list[PublishedPoint]:
    """The published numbers beside the points of a figure, each once a panel and x. `entries`: default, the file's."""
    known = {r.train_id: r for r in records}
    entries = read_published() if entries is None else entries
    found: dict[tuple[str, Any, str], PublishedPoint] = {}
    for line in lines:
        for point in line.points:
            matches = [_match(known[t], line.column, number, report, entries) for t, number in point.runs if t in known]
            one = matches[0] if matches else None
            if one is None or any(m is None or m.entry != one.entry for m in matches):
                continue
            entry = one.entry
            label = str(getattr(line, "label", "") or getattr(point, "label", ""))
            why = list(dict.fromkeys(sentence for m in matches if m is not None for sentence in m.why))
            obstacles = [o for m in matches if m is not None for o in m.obstacles if "recalled" not in o]
            what = "; ".join([f"{entry.named()}{MARKS[entry.evidence]}", f"{entry.source}, {entry.table}".rstrip(", "), *why])
            found.setdefault((line.column, point.x, entry.id), PublishedPoint(
                line.column, point.x, entry.value, label, entry.evidence, not obstacles, what))
    return list(found.values())


def _match(
    record: Record, column: str, number: float, report: ReportSpec, entries: Sequence[Published]
) -> Match | None:
    """The best match of the very number that is drawn, of the protocol that the column names, if it names one."""
    name, _, protocol = column.partition(SEPARATOR)
    return next((m for m in candidates(record, name, report.published, entries)
                 if isinstance(m, Match) and m.value.number == number and protocol in ("", m.entry.protocol)), None)


def draw_published(ax: Axes, points: Sequence[tuple[float, PublishedPoint]], colours: Mapping[str, Any]) -> None:
    """(x, point). `colours`: of lines by label, where there are several to tell apart."""
    for x, p in points:
        ax.plot([x], [p.number], linestyle="", marker=MARKER[p.evidence], markersize=6, markerfacecolor=FACES[p.comparable],
                markeredgecolor=colours.get(p.label, EDGE), markeredgewidth=1.1, zorder=5)


def published_handles(points: Sequence[PublishedPoint]) -> list[Any]:
    """Entries for a legend: one a kind of evidence, and whether the conditions are ours."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], linestyle="", marker=MARKER[e], markersize=6, markerfacecolor=FACES[comparable], markeredgecolor=EDGE,
                   markeredgewidth=1.1, label=text(label))
            for e, label, comparable in sorted({(p.evidence, p.legend, p.comparable) for p in points},
                                               key=lambda k: (list(MARKER).index(k[0]), k[1]))]
