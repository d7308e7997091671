"""Figures: what is drawn, that nothing is averaged that a table would not, and that the bytes repeat."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_records import record, value

from bench.report.figures import curve_panels, figure_series, render_figures
from bench.report.spec import FigureSpec, ReportSpec
from bench.results import Record

ROOT = Path(__file__).parents[1]
SIZE = "tokenizer.quantizer.codebook_size"
SPEC = FigureSpec(name="by_size", x=SIZE, y=("usage", "psnr"), hue="tokenizer.quantizer")


def runs() -> list[Record]:
    return [
        record(f"{q}{k}{s}", {"usage": 500 / k, "psnr": 30.0 + s + k / 1000}, size=k, seed=s, quantizer=q)
        for q in ("vq", "ema_vq")
        for k in (512, 1024, 2048)
        for s in (1, 2)
    ]


def test_a_figure_has_a_line_a_hue_a_panel_a_column_and_a_point_a_seed() -> None:
    series = figure_series(runs(), SPEC)
    assert [(s.column, s.label) for s in series] == [
        ("usage", "EMA VQ"),
        ("usage", "VQ"),
        ("psnr", "EMA VQ"),
        ("psnr", "VQ"),
    ]
    first = series[-1].points[0]
    assert first.x == 512 and [number for _, number in first.runs] == [31.512, 32.512]
    assert first.mean == pytest.approx(32.012)
    assert (
        series[0].percent
        and series[0].x_heading == "codebook size"
        and series[0].hue_heading == "quantizer type"
    )


def test_runs_of_different_steps_are_on_different_lines() -> None:
    some = [record("a", {"psnr": 1.0}), record("b", {"psnr": 9.0}, seed=2, fields={"train.steps": 2000})]
    series = figure_series(some, FigureSpec(name="f", x=SIZE, y="psnr"))
    assert [(s.label, s.points[0].mean) for s in series] == [("steps 1000", 1.0), ("steps 2000", 9.0)]


def test_numbers_of_other_conditions_are_not_drawn() -> None:
    some = [
        record("a", {"psnr": 1.0}),
        record("b", {"psnr": 2.0}, size=1024),
        record("c", {"psnr": value("psnr", 9.0, protocol="other")}, size=2048),
    ]
    (line,) = figure_series(some, FigureSpec(name="f", x=SIZE, y=("psnr",)))
    assert [p.x for p in line.points] == [512, 1024]


CURVES = [
    (run, f"run {run} $x_", step, name, 1.0 / step)
    for run in ("vq5121", "vq10241")
    for step in (100, 200, 300)
    for name in ("pixel", "commitment", "usage", "perplexity", "code_norm_mean", "test/pixel", "test/usage")
]


def test_curves_show_usage_perplexity_and_the_validated_terms() -> None:
    panels = curve_panels([*CURVES, ("vq5121", "run", 400, "pixel", math.nan)])
    assert list(panels) == ["usage", "perplexity", "pixel"]
    assert [(c.train_id, c.test, c.steps) for c in panels["pixel"]] == [
        (run, test, (100, 200, 300)) for run in ("vq10241", "vq5121") for test in (False, True)
    ]


def test_without_validation_every_loss_term_is_shown() -> None:
    assert list(curve_panels([r for r in CURVES if not r[3].startswith("test/")])) == [
        "usage",
        "perplexity",
        "commitment",
        "pixel",
    ]


def write_curves(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("train_id", "label", "step", "name", "value")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


def test_figures_are_written_and_repeat_byte_for_byte(tmp_path: Path) -> None:
    curves = write_curves(
        tmp_path / "curves.parquet", [*CURVES, ("gone", "of another suite", 1, "pixel", 1.0)]
    )
    report = ReportSpec(figures=(SPEC,))
    paths = render_figures("suite", runs(), report, curves, tmp_path / "one")
    assert [p.name for p in paths] == [
        "by_size.svg",
        "by_size.png",
        "by_size.csv",
        "curves.svg",
        "curves.png",
        "curves.csv",
    ]
    for path in render_figures("suite", runs()[::-1], report, curves, tmp_path / "two"):
        assert path.read_bytes() == (tmp_path / "one" / "suite" / path.name).read_bytes(), path.name
    with (tmp_path / "one" / "suite" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["train_id"] for r in rows} == {"vq5121", "vq10241"} and len(rows) == 2 * 3 * 5
    with (tmp_path / "one" / "suite" / "by_size.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 12 and float(rows[0]["value"]) == 500 / 512
    svg = (tmp_path / "one" / "suite" / "by_size.svg").read_text()
    assert "<dc:date>" not in svg and "matplotlib.org" not in svg.split("<defs>")[1]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_labels_and_categories_are_drawn(tmp_path: Path) -> None:
    some = [
        record(name, {"psnr": 1.0 + i}, fields={"note": name})
        for i, name in enumerate(["_$x", r"\frac{", "中 <b>"])
    ]
    report = ReportSpec(
        figures=(
            FigureSpec(name="f", x="note", y="psnr", title="$_"),
            FigureSpec(name="g", x=SIZE, y="psnr", hue="note"),
        )
    )
    assert len(render_figures("suite", some, report, None, tmp_path)) == 6


def test_a_figure_without_numbers_is_left_out(tmp_path: Path) -> None:
    report = ReportSpec(figures=(FigureSpec(name="f", x=SIZE, y="lpips"),))
    assert render_figures("suite", runs(), report, tmp_path / "none.parquet", tmp_path) == []


def test_figures_need_no_torch_and_load_no_plotting_before_they_draw(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path\n"
        "import bench.report.figures; assert 'matplotlib' not in sys.modules\n"
        "from test_figures import *\n"
        "assert render_figures('s', runs(), ReportSpec(figures=(SPEC,)), None, Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
