"""Table -> Markdown, HTML, LaTeX, CSV, terminal. Each escapes whatever a record may hold. Torch-free."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from bench.report.model import ALIKE, DOUBTFUL, Cell, Header, Table

if TYPE_CHECKING:
    import rich.table
    import rich.text
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.style import Style

UP = "../../"       # reports/<suite>/ is two folders below the repository, which sources are relative to


URL = ":/?#@!$&'()*+,;=%~"      # what an address may hold as it is
MANY = 100          # rows from which a terminal's table is laid out by `Quick`
RULED = "    \n    \n ── \n    \n ── \n ── \n    \n    \n"      # a rule below the headings and between sections


def _link(header: Header) -> str | None:
    return UP + quote(header.link, safe="/") if header.link else None


# -- Markdown ------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """Text that GitHub shows as it is, in a table cell too."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|$~])", r"\\\1", text)


def _refs(notes: tuple[str, ...]) -> str:
    return f"<sup>{','.join(notes)}</sup>" if notes else ""


def to_markdown(table: Table) -> str:
    """A GitHub table with its caption and notes, without a heading. It cannot merge: headers are repeated."""

    def header(cell: Header, sanity: bool) -> str:
        text = escape_markdown(cell.text)
        text = f"[{text}]({target})" if (target := _link(cell)) else f"<i>{text}</i>" if sanity and text else text
        return text + _refs(cell.notes)

    def number(cell: Cell) -> str:
        text = escape_markdown(cell.shown)
        text = f"[{text}](<{quote(cell.link, safe=URL)}>)" if cell.link else text
        match cell.mark:
            case "best":
                text = f"**{text}**"
            case "second":
                text = f"<u>{text}</u>"
        return text + _refs(cell.raised)

    headings = [escape_markdown(c.heading) + _refs(c.notes) for c in (*table.keys, *table.columns)]
    rules = [":---"] * len(table.keys) + ["---:"] * len(table.columns)
    lines = [headings, rules]
    for row in table.rows:
        lines.append([header(h, row.sanity) for h in row.headers] + [number(c) for c in row.cells])
    parts = [escape_markdown(table.caption)] if table.caption else []
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    below = [f"<sup>{mark}</sup> {escape_markdown(sentence)}" for mark, sentence in table.footnotes]
    below += [escape_markdown(note) for note in table.notes]
    parts.append("  \n".join([*below, f"<sub>{escape_markdown(table.stamp)}</sub>"]))
    return "\n\n".join(parts) + "\n"


# -- HTML ----------------------------------------------------------------------------------------------------


def to_html(table: Table) -> str:
    """A <figure> with the table; row headers are merged with rowspan. The page around it is render.py's."""
    e = html.escape

    def refs(raised: tuple[str, ...]) -> str:
        links = (m if m == ALIKE else f'<a href="#{e(table.name)}-{m}">{m}</a>' for m in raised)
        return f"<sup>{','.join(links)}</sup>" if raised else ""

    def header(cell: Header) -> str:
        text = e(cell.text)
        if target := _link(cell):
            text = f'<a href="{e(target)}">{text}</a>'
        if cell.span > 1:
            return f'<th scope="rowgroup" rowspan="{cell.span}">{text}{refs(cell.notes)}</th>'
        return f'<th scope="row">{text}{refs(cell.notes)}</th>'

    def number(cell: Cell) -> str:
        tag = {"best": "b", "second": "u"}.get(cell.mark)
        shown = f"<{tag}>{e(cell.shown)}</{tag}>" if tag else e(cell.shown)
        shown = f'<a href="{e(cell.link)}">{shown}</a>' if cell.link else shown
        classes = " ".join(filter(None, (cell.mark, "alike" * cell.alike, "doubtful" * cell.doubtful)))
        mark = f' class="{classes}"' if classes else ""
        raw = f' data-value="{cell.number!r}"' if cell.number is not None else ""
        return f"<td{mark}{raw}>{shown}{refs(cell.raised)}</td>"

    def row_class(i: int) -> str:
        row = table.rows[i]
        if row.sanity:
            return ' class="sanity"' if i and table.rows[i - 1].sanity else ' class="sanity rule"'
        return " class=first" if i and row.headers[0].span else ""

    lines = [f'<figure id="{e(table.name)}">']
    if table.caption:
        lines.append(f"<figcaption>{e(table.caption)}</figcaption>")
    lines.append('<div class="scroll"><table>')
    headings = [f'<th scope="col" class="key">{e(c.heading)}</th>' for c in table.keys]
    headings += [f'<th scope="col">{e(c.heading)}{refs(c.notes)}</th>' for c in table.columns]
    lines += ["<thead>", f"<tr>{''.join(headings)}</tr>", "</thead>", "<tbody>"]
    for i, row in enumerate(table.rows):
        cells = [header(h) for h in row.headers if h.span] + [number(c) for c in row.cells]
        lines.append(f"<tr{row_class(i)}>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table></div>"]
    for mark, sentence in table.footnotes:
        lines.append(f'<p class="note" id="{e(table.name)}-{mark}"><sup>{mark}</sup> {e(sentence)}</p>')
    lines += [f'<p class="note">{e(note)}</p>' for note in table.notes]
    lines += [f'<p class="stamp">{e(table.stamp)}</p>', "</figure>"]
    return "\n".join(lines) + "\n"


# -- LaTeX ---------------------------------------------------------------------------------------------------

BEGINNING = "% needs \\usepackage{booktabs} and \\usepackage{multirow}"     # of every such file
FITTED = ("\\ifdim\\wd0>\\linewidth\\ifdefined\\resizebox\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi"
          "\\else\\usebox0\\fi")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}", "-": "-{}",
    "±": r"$\pm$", "–": "--", "—": "---", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "·": r"$\cdot$",
    "×": r"$\times$", "…": r"\dots{}", "²": r"$^2$", "µ": r"$\mu$", "σ": r"$\sigma$", "→": r"$\rightarrow$",
    "≈": r"$\approx$", "√": r"$\surd$", "≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$",
}


def escape_latex(text: str) -> str:
    """Text that pdflatex sets as it is. What it has no letter for is named by its code point."""

    def letter(c: str) -> str:
        if c in _LATEX:
            return _LATEX[c]
        if " " <= c <= "~" or "À" <= c <= "ÿ":
            return c
        return f"{{[}}U+{ord(c):04X}{{]}}"

    return "".join(map(letter, " ".join(text.split())))


def to_latex(table: Table) -> str:
    r"""A table environment for booktabs and multirow; nothing else is needed.

    One that is wider than the text is made smaller where graphicx is loaded.
    """

    def notes(marks: tuple[str, ...]) -> str:
        return f"\\textsuperscript{{{','.join(map(escape_latex, marks))}}}" if marks else ""

    def header(cell: Header, sanity: bool = False) -> str:
        if not cell.span:
            return ""
        text = escape_latex(cell.text)
        text = (f"\\textit{{{text}}}" if sanity and text else text) + notes(cell.notes)
        return f"\\multirow{{{cell.span}}}{{*}}{{{text}}}" if cell.span > 1 else text

    def number(cell: Cell) -> str:
        text = escape_latex(cell.shown)
        command = {"best": "\\textbf", "second": "\\underline"}.get(cell.mark)
        return (f"{command}{{{text}}}" if command else text) + notes(cell.raised)

    lines = [BEGINNING, "\\begin{table}",
             "\\centering\\small\\setlength{\\tabcolsep}{4pt}\\setlength{\\belowcaptionskip}{6pt}"]
    caption = f"{table.title}. {table.caption}" if table.caption else table.title
    lines.append(f"\\caption{{{escape_latex(caption)}}}")
    lines.append(f"\\label{{tab:{table.name}}}")
    lines.append(f"\\sbox0{{\\begin{{tabular}}{{{'l' * len(table.keys)}{'r' * len(table.columns)}}}")
    lines.append("\\toprule")
    lines.append(" & ".join(escape_latex(c.heading) + notes(c.notes) for c in (*table.keys, *table.columns)) + " \\\\")
    lines.append("\\midrule")
    for i, row in enumerate(table.rows):
        if row.sanity:
            lines += ["\\midrule"] if i and not table.rows[i - 1].sanity else []
            lines.append(" & ".join([header(h, True) for h in row.headers] + [number(c) for c in row.cells]) + " \\\\")
            continue
        changed = next((j for j, h in enumerate(row.headers) if h.span), 0)
        merged = row.headers[changed].span > 1 or table.rows[i - 1].headers[changed].span != 1
        if i and changed < len(row.headers) - 1 and merged:
            lines.append(f"\\cmidrule{{{changed + 1}-{len(table.keys) + len(table.columns)}}}")
        lines.append(" & ".join([header(h) for h in row.headers] + [number(c) for c in row.cells]) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}}%", FITTED, "", "\\medskip"]
    lines.append("\\begin{minipage}{\\linewidth}\\footnotesize")
    below = [f"{notes((mark,))} {escape_latex(sentence)}" for mark, sentence in table.footnotes]
    below += [escape_latex(note) for note in (*table.notes, table.stamp)]
    lines.append(" \\par\n".join(below))
    lines += ["\\end{minipage}", "\\end{table}"]
    return "\n".join(lines) + "\n"


# -- CSV -----------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Unrounded numbers for other programs: row keys, then mean, std, n and a remark of each column, then whether the
    row is one of runs or of sanity. Beside a published number stands the text that says what it rests on."""

    def safe(text: str) -> str:
        """A spreadsheet takes text that begins with one of these for a formula."""
        return f"'{text}" if text[:1] in "=+-@\t\r" and text else text

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [c.key for c in table.keys]
    for column in table.columns:
        shown_as = ("_shown",) if column.kind != "value" else ("_std", "_n")
        names += [column.name, *(f"{column.name}{part}" for part in (*shown_as, "_remark"))]
    writer.writerow([*map(safe, names), "kind", "remark"])
    sentences = dict(table.footnotes)
    for row in table.rows:
        line = [safe(h.text) for h in row.headers]
        for column, cell in zip(table.columns, row.cells, strict=True):
            signs = [DOUBTFUL] * cell.doubtful + [f"{ALIKE} not distinguishable from the best"] * cell.alike
            remark = "; ".join([*signs, *(sentences[m] for m in cell.notes)])
            shown = repr(cell.number) if cell.number is not None else "" if not cell.n else safe(cell.link or cell.text)
            more = ["" if cell.std is None else repr(cell.std), str(cell.n)]
            line += [shown, *(more if column.kind == "value" else [safe(cell.text)]), safe(remark)]
        line.append("sanity" if row.sanity else "run")
        line.append(safe("; ".join(sentences[m] for h in row.headers for m in h.notes)))
        writer.writerow(line)
    return out.getvalue()


# -- terminal ------------------------------------------------------------------------------------------------


def terminal_table(table: Table) -> Quick:
    """For printing with rich; footnotes and the stamp are its caption."""
    from rich.box import Box
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(shown: str, raised: tuple[str, ...], style: str = "") -> rich.text.Text:
        return Text.assemble((shown, style), (f" {','.join(raised)}" if raised else "", "dim"))

    styles = {"best": "bold", "second": "underline", "failed": "red", "skipped": "dim", "missing": "dim"}
    below = [f"{mark} {sentence}" for mark, sentence in table.footnotes] + [*table.notes, table.stamp]
    out = RichTable(
        title=Text(table.title, style="bold"), title_justify="left",
        caption=Text("\n".join(below), style="dim"), caption_justify="left",
        box=Box(RULED), pad_edge=False, collapse_padding=True,
    )
    for c in table.keys:
        out.add_column(Text(c.heading))
    for c in table.columns:
        out.add_column(text(c.heading, c.notes), justify="right")
    for row, after in itertools.zip_longest(table.rows, table.rows[1:]):
        out.add_row(*(text(h.text if h.span else "", h.notes, "italic" if row.sanity else "") for h in row.headers),
                    *(text(c.shown, c.raised, styles.get(c.mark, "")) for c in row.cells),
                    end_section=after is not None and after.sanity and not row.sanity)
    return Quick(out)


@dataclass(frozen=True, slots=True)
class Quick:
    """A rich table that prints itself as usual, or, of many rows that fit without wrapping, ten times as fast."""

    table: rich.table.Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.cells import cell_len
        from rich.text import Span, Text

        table = self.table
        columns = [[c if isinstance(c, Text) else Text.from_markup(str(c)) if "[" in str(c) else Text(str(c))
                    for c in (column.header, *column.cells)] for column in table.columns]
        widths = [max(cell_len(text.plain) for text in column) for column in columns]
        whole = sum(widths) + 2 * (len(widths) - 1)
        if table.row_count < MANY or whole > options.max_width or any("\n" in t.plain for c in columns for t in c):
            yield table
            return
        parts: list[str] = []
        spans: list[Span] = []
        at = 0

        def put(text: str, style: str | Style = "") -> None:
            nonlocal at
            parts.append(text)
            if style:
                spans.append(Span(at, at + len(text), style))
            at += len(text)

        for i, row in enumerate(zip(*columns, strict=True)):
            for column, text, width in zip(table.columns, row, widths, strict=True):
                blanks = " " * (width - cell_len(text.plain))
                put(blanks if column.justify == "right" else "")
                spans += [span.move(at) for span in text.spans]
                put(text.plain, text.style or ("bold" if i == 0 else ""))
                put(("" if column.justify == "right" else blanks) + ("  " if column is not table.columns[-1] else "\n"))
            if i == 0 or table.rows[i - 1].end_section:
                put("─" * whole + "\n")
        for said in (table.title, Text("".join(parts), spans=spans, no_wrap=True, end=""), table.caption):
            if said is not None:
                yield said


