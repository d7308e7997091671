"""Records -> Table: one model of cells, marks, spans and footnotes, that every format renders. Torch-free.

Pure: the same records and spec give the same table, byte for byte, on any machine and day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.costs import cost_notes
from bench.errors import BadInput
from bench.report.beside import published_columns
from bench.report.columns import Built, Doubts, Rows, build_column, common_n, comparable_numbers, ended, show_n
from bench.report.formats import terminal_table, to_csv, to_html, to_latex, to_markdown
from bench.report.gates import suspicions
from bench.report.grouping import (
    ABSENT,
    DATA,
    RUN,
    Arranged,
    Group,
    arrange,
    canonical,
    component_titles,
    plain,
    selected,
)
from bench.report.model import Column, Header, Row, Table
from bench.report.notes import count_of, images_text, stamp, table_notes
from bench.report.sanity import yardstick_headers, yardsticks
from bench.report.spec import PublishedSpec, RowKey, TableSpec
from bench.results import Record

if TYPE_CHECKING:
    from bench.published import Published

__all__ = ["build_table", "comparable_numbers", "terminal_table", "to_csv", "to_html", "to_latex", "to_markdown"]


def build_table(
    records: Iterable[Record], spec: TableSpec, suite: str = "", *, sanity: Sequence[Record] = (),
    published: Sequence[PublishedSpec] = (), entries: Sequence[Published] | None = None, doubts: Doubts | None = None,
) -> Table:
    """The table of these runs. Debug runs are left out unless all are debug runs.

    `sanity`: records of the yardsticks that were measured beside them. `published`: which published systems the runs
    are; `entries`: what is published (None: results/published.csv, read where a column wants it). `doubts`: what the
    plausibility gates say (None: they are asked).
    A row key that no run has is left out with a note. Raises BadInput where none is known, for a column key of an unknown kind or protocol, and for a column
    with published numbers in a report that names no published system.
    """
    all_runs = sorted(records, key=lambda r: r.train_id)
    runs = [r for r in all_runs if not r.debug] or all_runs
    runs = [r for r in runs if selected(r, spec.row_keys())]
    over = spec.over_keys()
    arranged = arrange(runs, spec.row_keys(), over, leave_out=True)
    beneath = yardsticks(sanity, runs) if spec.sanity and arranged.groups and arranged.keys else []
    rows = Rows(
        arranged.groups, tuple(Group((r,), {}) for r in beneath), over,
        by_dataset=any(k.resolved.partition(".")[0] == "dataset" for k in arranged.keys),
        doubts=suspicions(runs, sanity) if doubts is None else doubts,
    )
    built = _columns(spec, rows, published, entries)
    n = common_n(built)
    columns, lettered, footnotes = _lettered(
        [b.column for b in built], _rows([show_n(b, n) for b in built], arranged, beneath, over))
    return Table(
        name=spec.name,
        title=spec.heading,
        caption=spec.caption,
        keys=tuple(Column(k.resolved, k.heading) for k in arranged.keys),
        columns=columns,
        rows=lettered,
        footnotes=footnotes,
        notes=(*table_notes(arranged, runs, built, over, n), *cost_notes([b.column.key for b in built], runs)),
        stamp=stamp(runs, suite, beneath),
    )


def _columns(
    spec: TableSpec, rows: Rows, published: Sequence[PublishedSpec], entries: Sequence[Published] | None
) -> list[Built]:
    built: list[Built] = []
    for key in spec.column_keys():
        made = build_column(key, rows)
        built.append(replace(made, column=replace(made.column, notes=(key.note,))) if key.note else made)
        if not key.published:
            continue
        if not built[-1].column.measured:
            raise BadInput(f"report: columns: {key.key}: nothing is published of it; leave out `published: true`")
        if not published:
            raise BadInput(f"report: columns: {key.key}: `published: true`, but the report does not say which "
                           f"published system its runs are; add `published: [{{system: ...}}]` to the report section")
        built += published_columns(built[-1], rows, published, entries)
    return built


def _rows(built: Sequence[Built], arranged: Arranged, beneath: Sequence[Record], over: Sequence[str]) -> list[Row]:
    """The runs' rows, then the yardsticks'; notes are sentences still."""
    rows = [Row(h, tuple(b.cells[i] for b in built)) for i, h in enumerate(_headers(arranged, over))]
    return rows + [Row(h, tuple(b.sanity[i] for b in built), sanity=True)
                   for i, h in enumerate(yardstick_headers(beneath, arranged.keys))]


def _lettered(
    columns: Sequence[Column], rows: Sequence[Row]
) -> tuple[tuple[Column, ...], tuple[Row, ...], tuple[tuple[str, str], ...]]:
    """Sentences at headings and cells become marks a, b, ..., z, aa, ... in reading order; equal sentences share one."""
    marks: dict[str, str] = {}

    def mark(sentences: tuple[str, ...]) -> tuple[str, ...]:
        clean = [" ".join(s.split()) for s in sentences]
        letters = {marks.setdefault(s, _letters(len(marks))) for s in clean}
        return tuple(sorted(letters, key=lambda x: (len(x), x)))

    headed = tuple(replace(c, notes=mark(c.notes)) if c.notes else c for c in columns)
    lettered = tuple(
        replace(row, headers=tuple(replace(h, notes=mark(h.notes)) if h.notes else h for h in row.headers),
                cells=tuple(replace(c, notes=mark(c.notes)) if c.notes else c for c in row.cells))
        for row in rows
    )
    return headed, lettered, tuple((letter, sentence) for sentence, letter in marks.items())


def _letters(index: int) -> str:
    head, last = divmod(index, 26)
    return (_letters(head - 1) if head else "") + chr(ord("a") + last)


# -- row headers ---------------------------------------------------------------------------------------------


def _headers(arranged: Arranged, over: Sequence[str]) -> list[tuple[Header, ...]]:
    """Row headers with spans; sentences on the row are at its last header, which no other row shares."""
    groups, keys = arranged.groups, arranged.keys
    titles = {k.resolved: component_titles(groups, k.resolved) for k in keys}
    images_of = _training_images(groups) if DATA in titles else []
    table = [[_header(k, g, titles[k.resolved]) for k in keys] for g in groups]
    for j in (j for j, k in enumerate(keys) if k.resolved == DATA):
        for row, text in zip(table, images_of, strict=True):
            row[j] = replace(row[j], text=text)
    texts = [[canonical(g.fact(k.resolved)) for k in keys] for g in groups]
    for j in range(len(keys)):
        first = 0                                       # the row that carries the header of the rows below it
        for i in range(1, len(groups) + 1):
            if i == len(groups) or texts[i][: j + 1] != texts[first][: j + 1]:
                if i - first > 1:
                    table[first][j] = replace(table[first][j], span=i - first)
                first = i
            else:
                table[i][j] = replace(table[i][j], span=0)
    images = [images_text(g.records) for g in groups]
    several = len(set(images) - {""}) > 1
    for row, g, used in zip(table, groups, images, strict=True):
        notes = ended(g, over) if any(r.trained for r in g.records) else []
        if several:
            notes.append(used or "which images were used is not recorded")
        if notes:
            row[-1] = replace(row[-1], notes=tuple(notes))
    return [tuple(row) for row in table]


def _header(key: RowKey, group: Group, titles: dict[Any, str]) -> Header:
    value = group.fact(key.resolved)
    if key.resolved == RUN:
        return Header(value, str(value)[:12])
    component = next((c for r in group.records if (c := r.components.get(key.resolved)) is not None), None)
    if component is not None:
        return Header(value, titles[component.name], component.source if key.link else None)
    return Header(None if value is ABSENT else value, plain(value))


def _training_images(groups: Sequence[Group]) -> list[str]:
    """'2,822 of 162,770' for each group, with a fingerprint where equally many images are different ones."""
    texts = []
    for g in groups:
        data = next((r.data["train"] for r in g.records if "train" in r.data), None)
        texts.append(count_of(data) if data is not None else plain(g.fact(DATA)))
    different: dict[str, set[str]] = {}
    for text, g in zip(texts, groups, strict=True):
        different.setdefault(text, set()).add(canonical(g.fact(DATA)))
    return [f"{text} ({str(fact[0])[:8]})" if len(different[text]) > 1 and isinstance(fact, list) else text
            for text, fact in zip(texts, (g.fact(DATA) for g in groups), strict=True)]
