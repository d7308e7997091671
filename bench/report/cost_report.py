"""All systems that were profiled, in tables and figures: reports/costs. Torch-free."""

from __future__ import annotations

from pathlib import Path

from bench.costs import COSTS, Profile, conditions, system_records
from bench.report.figures import render_figures
from bench.report.model import Table
from bench.report.render import build_tables, render_tables
from bench.report.spec import ColumnKey, FigureSpec, ReportSpec, RowKey, TableSpec
from bench.results import Record

NAME = "costs"
QUESTION = "What does each tokenizer cost, as it was published?"
ROWS = ("tokenizer", "system", RowKey(key="dataset.image_size", title="pixels"))
SIZES = TableSpec(
    name="sizes", title="Parameters and MACs", rows=ROWS, sanity=False, over=(),
    caption="Every system at the image size and with the keywords of its publication. Systems whose operations and shapes are the same are "
            "one row.",
    columns=(
        ColumnKey(key="layout.latent_size", title="latent size"), ColumnKey(key="layout.codebook_size", title="codebook size"),
        ColumnKey(key="layout.bits_per_image"),
        "parameters.total", "parameters.encoder", "parameters.decoder", "parameters.quantizer", "cost.encode_macs", "cost.decode_macs"))
SPEED = tuple(f"cost.{name}" for name, cost in COSTS.items() if cost.timed)
SIDE = 256                              # pixels of the images that figures compare systems on
FIGURES = tuple(FigureSpec(name=name, title=f"{title}: a published form of each network for {SIDE} pixels", kind="tradeoff", x=x, y=y, hue="tokenizer",
                           over=()) for name, title, x, y in (
    ("macs", "MACs against parameters", "parameters.total", ("cost.encode_macs", "cost.decode_macs")),
    ("throughput", "Throughput against MACs", "cost.decode_macs", ("cost.decode_images_per_second_1", "cost.decode_images_per_second")),
    ("memory", "Memory against MACs", "cost.decode_macs", ("cost.decode_peak_bytes_1", "cost.decode_peak_bytes"))))


def cost_tables(profile: Profile) -> list[Table]:
    """Sizes and MACs of all; then times and memory, a table for each machine, precision and large batch."""
    tables = build_tables(NAME, system_records(profile), ReportSpec(tables=(SIZES,)), entries=())
    for i, condition in enumerate(conditions(profile.timings), 1):
        timed = [r for r in system_records(profile, condition=condition) if "machine" in r.provenance["costs"]]
        spec = TableSpec(name=f"speed-{i}", title=f"Times and memory: {condition.text}", rows=ROWS, columns=SPEED, sanity=False, over=())
        tables += build_tables(NAME, timed, ReportSpec(tables=(spec,)), entries=())
    return tables


def render_costs(profile: Profile, reports: Path) -> list[Path]:
    """Write reports/costs; figures show the times of the machine that most systems were timed on."""
    if not profile.architectures:
        return []
    paths = render_tables(NAME, cost_tables(profile), QUESTION, reports)
    return paths + render_figures(NAME, _one_each(system_records(profile)), ReportSpec(figures=FIGURES), None, reports)


def _one_each(records: list[Record]) -> list[Record]:
    """Of each network the first system at SIDE that was timed, else the first."""
    found: dict[str, Record] = {}
    for r in sorted(records, key=lambda r: "machine" not in r.provenance["costs"]):
        if r.fields["dataset.image_size"] == SIDE:
            found.setdefault(r.fields["tokenizer.name"], r)
    return list(found.values())
