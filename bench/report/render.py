"""Records -> reports/<suite>/table.{md,html,tex,csv}: generated, never edited. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bench.files import replace_file
from bench.report.formats import BEGINNING, escape_markdown, to_csv, to_html, to_latex, to_markdown
from bench.report.model import Table
from bench.report.spec import ReportSpec
from bench.report.tables import build_table
from bench.results import Record

if TYPE_CHECKING:
    from bench.published import Published


def build_tables(
    name: str, records: Iterable[Record], report: ReportSpec, *,
    sanity: Sequence[Record] = (), entries: Sequence[Published] | None = None,
) -> list[Table]:
    """The tables of a suite, in the order of its YAML.

    `sanity`: the yardsticks of results/<name>/sanity.jsonl; `entries`: what is published (None:
    results/published.csv, read where a column wants it).
    """
    runs = list(records)
    return [build_table(runs, spec, suite=name, sanity=sanity, published=report.published, entries=entries)
            for spec in report.tables]


def render_suite(
    name: str, records: Iterable[Record], report: ReportSpec, question: str, reports: Path, *,
    sanity: Sequence[Record] = (), entries: Sequence[Published] | None = None,
) -> list[Path]:
    """Write reports/<name>/ and return its files; those whose content is unchanged are not touched.

    table.md and table.html hold all tables of the suite; table.tex and table.csv the first, table-<name>.tex
    and table-<name>.csv each further one; those of tables that are no more are removed. Raises BadInput naming the folder where it cannot be written.
    """
    return render_tables(name, build_tables(name, records, report, sanity=sanity, entries=entries), question, reports)


def render_tables(name: str, tables: Sequence[Table], question: str, reports: Path) -> list[Path]:
    """The files of `render_suite`, from tables that are built already."""
    if not tables:
        return []
    files = {"table.md": markdown_page(name, question, tables)}
    files["table.html"] = html_page(name, question, tables)
    for i, table in enumerate(tables):
        stem = f"table-{table.name}" if i else "table"
        files |= {f"{stem}.tex": to_latex(table), f"{stem}.csv": to_csv(table)}
    for file, content in files.items():
        replace_file(reports / name / file, content)
    for path in (reports / name).glob("table-*.tex"):       # of tables that the suite does not have any more
        if path.name not in files and path.read_bytes().startswith(BEGINNING.encode()):
            path.unlink()
            path.with_suffix(".csv").unlink(missing_ok=True)
    return [reports / name / file for file in files]


def markdown_page(name: str, question: str, tables: Sequence[Table]) -> str:
    """The suite's question and its tables, each under its heading."""
    parts = [f"# {escape_markdown(name)}\n", f"{escape_markdown(question)}\n"]
    for table in tables:
        parts += [f"## {escape_markdown(table.title)}\n", to_markdown(table)]
    return "\n".join(parts)


def html_page(name: str, question: str, tables: Sequence[Table]) -> str:
    """One self-contained page: no scripts, no other files. The template escapes; a table escapes itself."""
    page = Environment(autoescape=True, keep_trailing_newline=True, undefined=StrictUndefined).from_string(
        (Path(__file__).parent / "tables.html.j2").read_text(encoding="utf-8"))
    return page.render(name=name, question=question, tables=[(t.title, Markup(to_html(t))) for t in tables])
