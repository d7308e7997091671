"""A suite's whole report: tables, figures, codebook diagnostics, reconstructions; all from what is stored. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.collect import records_file
from bench.costs import Profile, with_costs
from bench.places import Places
from bench.published import published_file, read_published
from bench.report.model import Table
from bench.report.render import build_tables, render_tables
from bench.report.spec import ReportSpec
from bench.results import Record, read_records


@dataclass(frozen=True, slots=True)
class Report:
    """What was rendered."""

    tables: tuple[Table, ...]
    paths: tuple[Path, ...]             # files written, or kept since they hold the same


def render(
    name: str, question: str, report: ReportSpec, records: Sequence[Record], places: Places, *, figures: bool,
    anew: bool = True,
) -> Report:
    """Write reports/<name>/. The same records give the same bytes; files whose content is unchanged are not touched.

    Reconstructions are drawn where the run folders are on this machine. Codebook diagnostics take seconds a run: without
    `anew` only where there are none yet.
    """
    if not records:
        return Report((), ())
    home = records_file(places, name).parent
    records = with_costs(records, Profile.read(places.results), report.machine)
    compared = any(column.published for table in report.tables for column in table.column_keys()) or any(
        figure.published for figure in report.figures)
    sanity = read_records(home / "sanity.jsonl")
    entries = read_published(published_file(places.results)) if compared else ()
    tables = build_tables(name, records, report, sanity=sanity, entries=entries)
    paths = list(render_tables(name, tables, question, places.reports))
    if figures:
        from bench.diagnostics import diagnostics_folder
        from bench.report.diagnostics import render_diagnostics
        from bench.report.figures import render_figures
        from bench.report.strips import render_reconstructions

        curves = home / "curves.parquet"
        paths += render_figures(name, records, report, curves, places.reports, sanity=sanity, entries=entries)
        paths += render_reconstructions(name, records, places.runs, places.reports)
        from bench.report.level_figures import render_levels
        from bench.report.page import render_page

        if anew or not (places.reports / name / "diagnostics.md").is_file():
            paths += render_diagnostics(name, records, diagnostics_folder(places, name), curves, places.reports)
        paths += render_levels(name, records, places.runs, places.reports)
        paths.append(render_page(name, question, tables, records, places.runs, places.reports, curves=curves,
                                 suite=read_suite(home)))
    return Report(tuple(tables), tuple(paths))


def read_suite(home: Path) -> dict[str, Any]:
    """What results/<suite>/suite.json keeps of the suite as it was run; {} where it is not there."""
    try:
        return json.loads((home / "suite.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
