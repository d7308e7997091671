"""The two columns beside ours: what is published, and how far ours is from it. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from bench.published import MARKS, Match, Published, candidates, read_published
from bench.report.columns import Built, Rows
from bench.report.grouping import DASH
from bench.report.model import Cell, Column
from bench.report.spec import PublishedSpec
from bench.results import Record, Value

Runs = Sequence[tuple[Record, Value]]


def published_columns(
    ours: Built, rows: Rows, specs: Sequence[PublishedSpec], entries: Sequence[Published] | None
) -> list[Built]:
    """The columns "published" and "difference" of a column of measured values, row by row.

    A published number stands here only where it was measured as ours was; where other images, another training or a
    number from memory keep the two from agreeing, it is shown with that sentence and without a difference.
    """
    known = read_published() if entries is None else entries
    cells = [_pair(ours, i, rows, specs, known) for i in range(len(rows.groups))]
    blank = (Cell(DASH, mark="missing"),) * len(rows.sanity)
    return [Built(ours.key, Column(ours.column.key, "published", unit=ours.column.unit, kind="published"),
                  tuple(theirs for theirs, _ in cells), blank),
            Built(ours.key, Column(ours.column.key, "difference", unit=ours.column.unit, kind="difference"),
                  tuple(gap for _, gap in cells), blank)]


def _pair(
    ours: Built, row: int, rows: Rows, specs: Sequence[PublishedSpec], entries: Sequence[Published]
) -> tuple[Cell, Cell]:
    """(what is published, ours minus it) of one row."""
    runs, cell = ours.used[row], ours.cells[row]
    if not runs:
        dash = Cell(DASH, mark=cell.mark)
        return dash, dash                       # why is said at ours
    found = [m for r, v in runs if (m := _match(ours, r, v, specs, entries)) is not None]
    entry = found[0].entry if found else None
    if entry is None or len(found) < len(runs) or any(m.entry != entry for m in found):
        dash = Cell(DASH, mark="missing", notes=(_why_none(ours, runs, specs, entries),))
        return dash, dash
    obstacles = tuple(dict.fromkeys(o for m in found for o in m.obstacles))
    remarks = tuple(r for r in found[0].remarks if all(r in m.remarks for m in found))
    why = ("; ".join((*obstacles, *remarks)),) if obstacles or remarks else ()
    theirs = _published_cell(entry, why)
    if obstacles or cell.doubtful or cell.number is None:
        return theirs, Cell(DASH, mark="missing", notes=why if obstacles else ("our number is doubtful",))
    text = _difference(cell.number - entry.value, ours, entry)
    number = cell.number - entry.value if not MARKS[entry.evidence] else None
    return theirs, Cell(text, number, notes=why)


def _match(
    ours: Built, record: Record, value: Value, specs: Sequence[PublishedSpec], entries: Sequence[Published]
) -> Match | None:
    """The best match of the very number that is shown, of the protocol that the column names, if it names one."""
    asked = ours.asked
    for pair in candidates(record, asked.name, specs, entries) if asked is not None else ():
        if isinstance(pair, Match) and pair.value is value and asked.protocol in ("", pair.entry.protocol):
            return pair
    return None


def _published_cell(entry: Published, why: Sequence[str]) -> Cell:
    """A bare number, which a program may read, only where it was read in its source; the text carries the mark."""
    source = f"published: {', '.join(filter(None, (entry.source, entry.table)))}; protocol {entry.protocol}"
    return Cell(entry.shown(), entry.value if not MARKS[entry.evidence] else None, notes=(source, *why))


def _difference(gap: float, ours: Built, entry: Published) -> str:
    """Signed, with no more decimals than either of the two has; of shares, percentage points."""
    share = entry.unit == "share"
    decimals = max(0, min(ours.decimals, entry.decimals - 2 if share else entry.decimals))
    text = f"{100 * gap if share else gap:+.{decimals}f}"
    if float(text) == 0:
        text = text[1:]
    return text.replace("-", "−") + MARKS[entry.evidence]


def _why_none(ours: Built, runs: Runs, specs: Sequence[PublishedSpec], entries: Sequence[Published]) -> str:
    """Why nothing is beside a number: what is published of the same system was measured otherwise, or there is none."""
    for record, value in runs:
        for other in candidates(record, ours.asked.name, specs, entries) if ours.asked is not None else ():
            if not isinstance(other, Match) and other.value is value:
                return f"nothing comparable is published ({other.why})"
    return "nothing is published of this run"
