"""Markdown, HTML, LaTeX and CSV of one table hold the same: each is read back from its own syntax and compared."""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_records import record, value

from bench.collect import report_spec
from bench.places import Places
from bench.report.formats import _LATEX, to_csv, to_html, to_latex, to_markdown
from bench.report.model import ALIKE, DOUBTFUL, Table
from bench.report.render import build_tables
from bench.report.spec import ColumnKey, RowKey, TableSpec
from bench.report.tables import build_table
from bench.results import merge, read_records

ROOT = Path(__file__).resolve().parents[1]
SIZE = "tokenizer.quantizer.codebook_size"
Grid = list[list[tuple[str, tuple[str, ...]]]]          # rows of (text, raised marks); merged headers stand in each row


@dataclass
class Read:
    """What a format shows, without its syntax."""

    headings: list[str]
    grid: Grid
    below: list[str]                                    # footnotes with their mark, notes, stamp


def read_markdown(text: str) -> Read:
    def plain(cell: str) -> tuple[str, tuple[str, ...]]:
        cell, raised = re.fullmatch(r"(.*?)(?:<sup>([^<]*)</sup>)?", cell).groups()
        link = re.fullmatch(r"(\**|(?:<u>)?)\[(.*)\]\([^()]*\)(.*)", cell)
        cell = link[1] + link[2] + link[3] if link else cell
        for mark in (r"\*\*(.*)\*\*", r"<u>(.*)</u>", r"<i>(.*)</i>"):
            cell = inner[1] if (inner := re.fullmatch(mark, cell)) else cell
        return html.unescape(re.sub(r"\\(.)", r"\1", cell)), tuple(raised.split(",")) if raised else ()

    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[plain(c) for c in re.split(r" (?<!\\)\| ", line[2:-2])] for line in lines]
    below = text.split("\n\n")[-1].split("  \n")
    below = [html.unescape(re.sub(r"\\(.)", r"\1", re.sub("</?su[bp]>", "", b))).rstrip("\n") for b in below]
    return Read([c for c, _ in table[0]], table[2:], below)


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[list]] = []                # [text, raised, rowspan] of each cell
        self.below: list[str] = []
        self.into, self.raised = "", False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(["", "", int(dict(attrs).get("rowspan", 1))])
            self.into = "cell"
        elif tag == "p":
            self.below.append("")
            self.into = "below"
        elif tag == "sup":
            self.raised = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "p"):
            self.into = ""
        elif tag == "sup":
            self.raised = False

    def handle_data(self, data: str) -> None:
        if self.into == "cell":
            self.rows[-1][-1][self.raised] += data
        elif self.into == "below":
            self.below[-1] += data


def read_html(text: str) -> Read:
    parser = _Html()
    parser.feed(text)
    head, *body = parser.rows
    grid: Grid = []
    above: dict[int, tuple[int, tuple]] = {}            # column -> rows that its header still covers, the header
    for row in body:
        cells, made = iter(row), []
        for j in range(len(head)):
            left, cell = above.get(j, (0, None))
            if not left:
                text_of, raised, left = next(cells)
                cell = text_of, tuple(raised.split(",")) if raised else ()
            above[j] = left - 1, cell
            made.append(cell)
        assert next(cells, None) is None
        grid.append(made)
    return Read([t for t, *_ in head], grid, parser.below)


MULTIROW = r"\\multirow\{(\d+)\}\{\*\}\{(.*)\}"


def read_latex(text: str) -> Read:
    back = sorted(((v, k) for k, v in _LATEX.items()), key=lambda pair: -len(pair[0]))

    def plain(tex: str) -> str:
        made, i = "", 0
        while i < len(tex):
            found = next(((v, k) for v, k in back if tex.startswith(v, i)), None)
            made, i = (made + found[1], i + len(found[0])) if found else (made + tex[i], i + 1)
        return re.sub(r"\[U\+([0-9A-F]{4,6})\]", lambda m: chr(int(m[1], 16)), made)

    def cell(tex: str) -> tuple[str, tuple[str, ...]]:
        if merged := re.fullmatch(MULTIROW, tex):
            tex = merged[2]
        tex, raised = re.fullmatch(r"(.*?)(?:\\textsuperscript\{(.*)\})?", tex).groups()
        for command in ("textbf", "underline", "textit"):
            tex = inner[1] if (inner := re.fullmatch(rf"\\{command}\{{(.*)\}}", tex)) else tex
        return plain(tex), tuple(map(plain, raised.split(","))) if raised else ()

    written = [line.removesuffix(" \\\\").split(" & ") for line in text.splitlines() if line.endswith(" \\\\")]
    rows = [list(map(cell, line)) for line in written]
    covered: dict[int, int] = {}                        # column -> rows that the header above still covers
    for i, line in enumerate(written[1:], start=1):
        for j, tex in enumerate(line):
            if covered.get(j):
                assert tex == ""
                rows[i][j], covered[j] = rows[i - 1][j], covered[j] - 1
            elif merged := re.fullmatch(MULTIROW, tex):
                covered[j] = int(merged[1]) - 1
    below = re.search(r"\\footnotesize\n(.*)\n\\end\{minipage\}", text, re.S)[1].split(" \\par\n")
    return Read([t for t, _ in rows[0]], rows[1:], [plain(re.sub(r"^\\textsuperscript\{(.*?)\}", r"\1", b)) for b in below])


def made_of(table: Table) -> Read:
    """The table model itself; a header without notes of its own stands in all rows that it covers."""
    grid: Grid = []
    for row in table.rows:
        headers = [(h.text, h.notes) if h.span else grid[-1][j] for j, h in enumerate(row.headers)]
        grid.append([*headers, *((c.shown, c.raised) for c in row.cells)])
    below = [f"{mark} {sentence}" for mark, sentence in table.footnotes] + [*table.notes, table.stamp]
    return Read([c.heading for c in (*table.keys, *table.columns)], grid, below)


def spaces(text: str) -> str:
    return " ".join(text.split())


def check(table: Table) -> None:
    want = made_of(table)
    grid = [[(spaces(t), raised) for t, raised in row] for row in want.grid]
    for name, read in (("markdown", read_markdown(to_markdown(table))), ("html", read_html(to_html(table))),
                       ("latex", read_latex(to_latex(table)))):
        assert list(map(spaces, read.headings)) == list(map(spaces, want.headings)), name
        assert [[(spaces(t), raised) for t, raised in row] for row in read.grid] == grid, name
        assert list(map(spaces, read.below)) == list(map(spaces, want.below)), name
    check_csv(table)


def check_csv(table: Table) -> None:
    """Numbers are those of the model, bit for bit, and round to what is shown; the remarks are the notes' sentences."""
    head, *lines = csv.reader(io.StringIO(to_csv(table)))
    assert len(lines) == len(table.rows) and all(len(line) == len(head) for line in lines)
    sentences = dict(table.footnotes)
    for row, line in zip(table.rows, lines, strict=True):
        found = dict(zip(head, line, strict=True))
        assert [x.removeprefix("'") for x in line[: len(table.keys)]] == [h.text.removeprefix("'") for h in row.headers]
        assert found["kind"] == ("sanity" if row.sanity else "run")
        assert found["remark"].removeprefix("'") == "; ".join(sentences[m] for h in row.headers for m in h.notes)
        for column, cell in zip(table.columns, row.cells, strict=True):
            shown = found[column.name]
            if cell.number is not None:
                assert float(shown) == cell.number
                decimals = len(re.match(r"[-+\d,]+(?:\.(\d+))?", cell.text)[1] or "") if "e" not in cell.text else None
                if column.measured and decimals is not None:
                    scale = 100 if "%" in cell.text else 1
                    assert f"{scale * float(shown):.{decimals}f}" in cell.text.replace(",", "")
            remark = [DOUBTFUL] * cell.doubtful + [f"{ALIKE} not distinguishable from the best"] * cell.alike
            assert found[f"{column.name}_remark"].removeprefix("'") == "; ".join([*remark, *(sentences[m] for m in cell.notes)])


@pytest.mark.parametrize("records", sorted((ROOT / "results").glob("*/records.jsonl")), ids=lambda p: p.parent.name)
def test_the_formats_of_committed_tables_agree(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, _, report = report_spec(records.parent.name, Places.find(results=ROOT / "results"))
    tables = build_tables(name, read_records(records), report, sanity=read_records(records.with_name("sanity.jsonl")))
    assert tables
    for table in tables:
        check(table)


def everything() -> Table:
    """Merged rows, means, likeness, failures, doubts, people who differ, hostile names."""
    hostile = r"""<script> | *b* _c_ [x](y) & 100% #1 $5 ~ ^ \ {z} 中 -- ``' "x" """
    runs = [record(f"r{size}{seed}", {"psnr": 30 + seed / 7 + size / 1e4, "usage": 0.5, "rfid": value("rfid", None, reason=hostile)},
                   size=size, seed=seed, fields={"note": hostile if size < 2048 else "+plain"})
            for size in (512, 1024, 2048) for seed in (1, 2)]
    runs.append(record("f", {}, size=4096, state="failed", reason=hostile, fields={"note": "=1+1"}))
    other = runs[0].model_copy(update={"provenance": {"device": "a & b_c"}, "values": record("r5121", {"psnr": 31.25}).values})
    spec = TableSpec(name="t", title=hostile, caption=hostile, rows=("note", RowKey(key=SIZE, title=hostile)),
                     columns=("psnr", ColumnKey(key="usage", title="a|b_c"), "rfid", "parameters.total", "cost.images_per_second"))
    return build_table(merge([("alice", runs), ("bob", [other])]), spec, suite=hostile)


def test_the_formats_of_a_table_of_everything_agree() -> None:
    table = everything()
    assert any(h.span > 1 for r in table.rows for h in r.headers) and len(table.footnotes) >= 3
    assert any(c.alike for r in table.rows for c in r.cells) and any("bob" in s for _, s in table.footnotes)
    check(table)


@pytest.mark.parametrize("render", [to_markdown, to_html, to_latex])
def test_a_changed_digit_is_seen(render) -> None:
    """That the readers read: one digit of a number changed in the text changes what is read."""
    reader = {to_markdown: read_markdown, to_html: read_html, to_latex: read_latex}[render]
    table = everything()
    text = render(table)
    number = table.rows[0].cells[0].text.split(" ")[0]
    assert reader(text.replace(number, number[:-1] + "¼", 1)).grid != reader(text).grid
