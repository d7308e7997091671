"""All systems that were profiled, in tables and figures: reports/costs. Torch-free."""

from __future__ import annotations

from pathlib import Path

from bench.costs import COSTS, Profile, conditions, system_records
from bench.report.figures import render_figures
from bench.report.model import Table
from bench.report.render import build_tables, render_tables
from bench.report.spec import ColumnKey, FigureSpec, ReportSpec, RowKey, TableSpec

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
FIGURES = (
    FigureSpec(name="macs", title="MACs against parameters", kind="tradeoff", x="parameters.total", y=("cost.encode_macs", "cost.decode_macs"),
               hue="tokenizer", over=()),
    FigureSpec(name="throughput", title="Throughput against MACs", kind="tradeoff", x="cost.decode_macs",
               y=("cost.decode_images_per_second_1", "cost.decode_images_per_second"), hue="tokenizer", over=()),
    FigureSpec(name="memory", title="Memory against MACs", kind="tradeoff", x="cost.decode_macs",
               y=("cost.encode_peak_bytes", "cost.decode_peak_bytes"), hue="tokenizer", over=()),
)


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
    return paths + render_figures(NAME, system_records(profile), ReportSpec(figures=FIGURES), None, reports)
