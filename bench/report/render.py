"""Records -> reports/<suite>/table.{md,html,tex,csv}: generated, never edited. Torch-free."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.files import replace_file
from bench.report.formats import escape_markdown, to_csv, to_html, to_latex, to_markdown
from bench.report.model import Table
from bench.report.spec import ReportSpec
from bench.report.tables import build_table
from bench.results import Record

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6470; --line: #d5dae0; --page: #fff;
  --soft: #f5f7f9; --link: #0a58ca; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --dim: #98a2ad; --line: #363d46;
  --page: #14171b; --soft: #1d2227; --link: #7db4ff; } }
body { margin: 2.5rem auto; max-width: 72rem; padding: 0 1.25rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.125rem; margin: 2.5rem 0 .5rem; }
.question { color: var(--dim); margin: 0 0 1.5rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 0; } figcaption { margin-bottom: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; font-size: .9375rem; }
th, td { padding: .3rem .8rem; white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 1px solid; font-weight: 600; }
tbody th, th.key { text-align: left; font-weight: 400; vertical-align: top; } th.key { font-weight: 600; }
tr.first > * { border-top: 1px solid var(--line); } tbody tr:hover td { background: var(--soft); }
.failed, .missing, .skipped { color: var(--dim); }
u { text-underline-offset: 3px; } sup { font-size: .7em; }
.note, .stamp { margin: .35rem 0 0; font-size: .8125rem; color: var(--dim); }
.note:first-of-type { margin-top: .75rem; }
.stamp { margin-top: .75rem; font-family: ui-monospace, monospace; font-size: .75rem; }
""".strip()


def build_tables(name: str, records: Iterable[Record], report: ReportSpec) -> list[Table]:
    """The tables of a suite, in the order of its YAML."""
    runs = list(records)
    return [build_table(runs, spec, suite=name) for spec in report.tables]


def render_suite(
    name: str, records: Iterable[Record], report: ReportSpec, question: str, reports: Path
) -> list[Path]:
    """Write reports/<name>/ and return its files; those whose content is unchanged are not touched.

    table.md and table.html hold all tables of the suite; table.tex and table.csv the first, table-<name>.tex
    and table-<name>.csv each further one. Raises BadInput naming the folder where it cannot be written.
    """
    tables = build_tables(name, records, report)
    if not tables:
        return []
    files = {"table.md": markdown_page(name, question, tables)}
    files["table.html"] = html_page(name, question, tables)
    for i, table in enumerate(tables):
        stem = f"table-{table.name}" if i else "table"
        files |= {f"{stem}.tex": to_latex(table), f"{stem}.csv": to_csv(table)}
    for file, content in files.items():
        replace_file(reports / name / file, content)
    return [reports / name / file for file in files]


def markdown_page(name: str, question: str, tables: Sequence[Table]) -> str:
    """The suite's question and its tables, each under its heading."""
    parts = [f"# {escape_markdown(name)}\n", f"{escape_markdown(question)}\n"]
    for table in tables:
        parts += [f"## {escape_markdown(table.title)}\n", to_markdown(table)]
    return "\n".join(parts)


def html_page(name: str, question: str, tables: Sequence[Table]) -> str:
    """One self-contained page: no scripts, no other files."""
    e = html.escape
    body = [f"<h1>{e(name)}</h1>", f'<p class="question">{e(question)}</p>']
    for table in tables:
        body += [f"<h2>{e(table.title)}</h2>", to_html(table)]
    return "\n".join([
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{e(name)}</title>",
        f"<style>\n{STYLE}\n</style>", "</head>", "<body>", *body, "</body>", "</html>", "",
    ])
