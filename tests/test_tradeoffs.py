"""Trade-offs: which points are on the front, what a point averages, and that names beside points can be read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import record, value

from bench.errors import BadInput
from bench.report.figures import render_figures
from bench.report.gates import suspicions
from bench.report.model import Direction
from bench.report.spec import FigureSpec, ReportSpec
from bench.report.tradeoffs import _front, draw_tradeoffs, pareto, tradeoffs
from bench.results import Record

HUE = "tokenizer.quantizer"
AT_LEAST: dict[str, Callable[[float, float], bool]] = {"lower": lambda a, b: a <= b, "higher": lambda a, b: a >= b}
NUMBERS = st.sampled_from([0.0, 0.25, 1.0, 1.5, -2.0]) | st.floats(-10, 10)


def made(bits: float, quantizer: str = "vq", seed: int = 1, size: int = 512, fields: Any = None, **values: Any) -> Record:
    return record(f"{quantizer}{size}-{bits}-{seed}", values, size=size, seed=seed, quantizer=quantizer, fields=fields,
                  layout={"bits_per_image": bits, "num_tokens": 1, "vocab_sizes": [size]})


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), st.sampled_from(["lower", "higher"]), st.sampled_from(["lower", "higher"]))
def test_the_front_is_what_no_other_point_dominates(points: list[tuple[float, float]], x: Direction, y: Direction) -> None:
    def dominates(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return p != q and AT_LEAST[x](p[0], q[0]) and AT_LEAST[y](p[1], q[1])

    assert pareto(points, x, y) == [i for i, q in enumerate(points) if not any(dominates(p, q) for p in points)]


@pytest.mark.parametrize(("x", "y"), [("none", "lower"), ("lower", "none")])
def test_without_a_better_end_there_is_no_front(x: Direction, y: Direction) -> None:
    assert pareto([(1, 2), (2, 1)], x, y) == []


@pytest.mark.parametrize(("x", "metric"), list(
    product(["layout.bits_per_image", "cost.images_per_second"], ["psnr", "rfid"])))
def test_the_line_is_the_best_that_can_be_had_at_each_x(x: str, metric: str) -> None:
    numbers = [(100, 20.0), (200, 30.0), (300, 25.0), (400, 40.0), (50, 22.0)]
    some = [record(f"r{a}", {metric: b}, size=a, layout={"bits_per_image": float(a)}, cost={"images_per_second": float(a)})
            for a, b in numbers]
    (panel,) = tradeoffs(some, FigureSpec(name="f", kind="tradeoff", x=x, y=metric))
    corners = _front(panel)
    best = max if metric == "psnr" else min
    for at in (60, 150, 250, 350):
        can = [b for a, b in numbers if (a <= at if x.startswith("layout") else a >= at)]
        assert [y for (a, y), (b, z) in pairwise(corners) if a < at < b and y == z] == [best(can)], (at, corners)


def test_a_point_is_the_mean_of_its_runs_and_tells_its_settings() -> None:
    some = [made(100, seed=1, psnr=20, rfid=3), made(100, seed=2, psnr=22, rfid=5), made(200, "ema_vq", psnr=19, rfid=4)]
    shown = tradeoffs(some, FigureSpec(name="f", kind="tradeoff", x="layout.bits_per_image", y=("psnr", "rfid"), hue=HUE))
    assert [t.column for t in shown] == ["psnr", "rfid"]
    assert [(p.hue, p.rest, p.x, p.y, len(p.runs), p.front) for p in shown[0].points] == [
        ("EMA VQ", "", 200, 19, 1, False), ("VQ", "", 100, 21, 2, True)]
    assert [(p.y, p.front) for p in shown[1].points] == [(4, False), (4, True)]
    without = tradeoffs([*some, made(300, size=1024, psnr=30)], FigureSpec(name="f", kind="tradeoff", x="psnr", y="psnr"))
    assert [p.label for p in without[0].points] == ["EMA VQ, K=512", "VQ, K=512", "VQ, K=1024"]


def test_x_may_be_measured_or_a_setting_and_has_to_exist() -> None:
    some = [made(100, psnr=20, rfid=3), made(200, size=1024, psnr=25, rfid=2)]
    (panel,) = tradeoffs(some, FigureSpec(name="f", kind="tradeoff", x="psnr", y="rfid"))
    assert [(p.x, p.y, p.front) for p in panel.points] == [(20, 3, False), (25, 2, True)] and panel.x_direction == "higher"
    (panel,) = tradeoffs(some, FigureSpec(name="f", kind="tradeoff", x="tokenizer.quantizer.codebook_size", y="rfid"))
    assert [p.x for p in panel.points] == [512, 1024] and not any(p.front for p in panel.points)
    for x in ("lpips", "tokenizer.quantizer", "parameters.none"):
        with pytest.raises(BadInput, match=f"figures: f: x: no run has a number '{x}'"):
            tradeoffs(some, FigureSpec(name="f", kind="tradeoff", x=x, y="rfid"))


def test_a_figure_whose_x_is_still_to_come_is_left_out_and_stops_no_other(tmp_path: Path) -> None:
    """All runs failed, none is measured yet, or the network was not there: no reason to draw nothing at all."""
    measured = FigureSpec(name="m", kind="tradeoff", x="rfid", y="psnr")
    known = FigureSpec(name="k", kind="tradeoff", x="layout.bits_per_image", y="psnr")
    line = FigureSpec(name="l", x="layout.bits_per_image", y="psnr")
    report = ReportSpec(figures=(measured, known, line))
    absent = value("rfid", None, reason="not here: a file was not there")
    some = [made(100.0, size=k, psnr=20.0 + k, rfid=absent) for k in (512, 1024)]
    assert {p.stem for p in render_figures("one", some, report, None, tmp_path)} == {"k", "l"}
    failed = [r.model_copy(update={"state": "failed", "reason": "why", "values": {}, "layout": {}}) for r in some]
    assert render_figures("two", failed, report, None, tmp_path) == []
    trained = [r.model_copy(update={"state": "trained", "values": {}}) for r in some]
    assert render_figures("three", trained, report, None, tmp_path) == []


def test_a_number_that_the_gates_doubt_is_ringed_and_on_no_front(tmp_path: Path) -> None:
    constant = value("psnr", 40.0, details={"constant": 1.0})
    some = [made(100.0, psnr=20.0), made(200.0, size=1024, psnr=22.0), made(50.0, size=2048, psnr=constant)]
    spec = FigureSpec(name="f", kind="tradeoff", x="layout.bits_per_image", y="psnr")
    (panel,) = tradeoffs(some, spec, suspicions(some, ()))
    assert [(p.y, p.front, p.doubtful) for p in panel.points] == [(20, True, False), (22, True, False), (40, False, True)]
    figure = draw_tradeoffs([panel], spec)
    (ring,) = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 11]
    assert ring.get_xydata().tolist() == [[50.0, 40.0]]
    assert figure.legends[0].get_texts()[-1].get_text() == "implausible (the table says why)"
    # x is measured, too: what is doubted there is no bargain either
    (panel,) = tradeoffs(some, FigureSpec(name="f", kind="tradeoff", x="psnr", y="psnr"), suspicions(some, ()))
    assert [p.doubtful for p in panel.points] == [False, False, True]
    line = FigureSpec(name="l", x="tokenizer.quantizer.codebook_size", y="psnr")
    render_figures("s", some, ReportSpec(figures=(spec, line)), None, tmp_path)
    for name in ("f", "l"):
        with (tmp_path / "s" / f"{name}.csv").open() as file:
            assert [r["doubt"] for r in csv.DictReader(file)] == ["", "", "implausible"]


def boxes(figure: Any) -> list[list[Any]]:
    """What the names beside points cover, panel by panel, in what is written in the end."""
    figure.draw_without_rendering()
    return [[t.get_window_extent() for t in ax.texts] for ax in figure.axes]


def test_few_points_have_their_names_beside_them_and_none_overlap() -> None:
    spec = FigureSpec(name="f", kind="tradeoff", x="layout.bits_per_image", y=("psnr", "rfid"), hue=HUE)
    some = [made(100 + 20 * i + 5 * j, q, size=2**k, psnr=20 + i + j, rfid=9 - i)
            for j, q in enumerate(("vq", "ema_vq")) for i, k in enumerate((9, 12, 15, 18))]
    figure = draw_tradeoffs(tradeoffs(some, spec), spec)
    assert [len(panel) for panel in boxes(figure)] == [8, 8]
    assert {t.get_text() for t in figure.axes[0].texts} == {"K=512", "K=4096", "K=32768", "K=262144"}
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["EMA VQ", "VQ", "Pareto front"]
    for ax, panel in zip(figure.axes, boxes(figure), strict=True):
        assert not any(a.overlaps(b) for a, b in combinations(panel, 2))
        for line in ax.get_lines():
            if line.get_marker() not in ("None", None, ""):
                at = ax.transData.transform(line.get_xydata())[0]
                assert not any(b.contains(*at) for b in panel)


@pytest.mark.parametrize("crowd", [13, 12])
def test_many_or_crowded_points_are_named_in_the_legend(crowd: int) -> None:
    spec = FigureSpec(name="f", kind="tradeoff", x="layout.bits_per_image", y="psnr", hue=HUE)
    far = [made(200.0, "ema_vq", psnr=60.0)]            # all others are close together
    some = [made(100 + i / 1000, size=512 + i, psnr=20 + i / 1000) for i in range(crowd - 1)]
    figure = draw_tradeoffs(tradeoffs([*some, *far], spec), spec)
    assert boxes(figure) == [[]]
    named = [t.get_text() for t in figure.legends[0].get_texts()]
    assert named[:2] == ["EMA VQ", "VQ"] and {f"K={512 + i}" for i in range(crowd - 1)} < set(named)


def test_hundreds_of_points_are_drawn_and_some_named(tmp_path: Path) -> None:
    some = [made(100.0 + i, size=512 + i, psnr=20 + i % 7, fields={"note": f"_${i}"}) for i in range(300)]
    report = ReportSpec(figures=(FigureSpec(name="f", kind="tradeoff", x="layout.bits_per_image", y="psnr"),))
    png = next(p for p in render_figures("s", some, report, None, tmp_path) if p.suffix == ".png")
    assert png.stat().st_size < 200_000
    with png.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300 and sum(r["pareto"] == "yes" for r in rows) == 7


def test_a_tradeoff_without_numbers_is_left_out(tmp_path: Path) -> None:
    report = ReportSpec(figures=(FigureSpec(name="f", kind="tradeoff", x="layout.bits_per_image", y="lpips"),))
    assert render_figures("s", [made(100, psnr=1.0)], report, None, tmp_path) == []
