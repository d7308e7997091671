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

from bench.errors import BadInput
from bench.report.curve_figures import curve_figures, draw_curves
from bench.report.drawing import COLOURS, apart, axis_number, colour_of
from bench.report.figures import figure_series, render_figures
from bench.report.series import number_of, run_colours, settings_of
from bench.report.spec import FigureSpec, PublishedSpec, ReportSpec
from bench.results import Record, Value, write_records

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


def named(rows: list[tuple[Any, ...]], sizes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    return {f.name: f for f in curve_figures(rows, sizes)}


def test_curves_show_usage_perplexity_and_the_validated_terms() -> None:
    found = named([*CURVES, ("vq5121", "run", 400, "pixel", math.nan)])
    panels = found["curves"].panels
    assert list(panels) == ["usage", "perplexity", "pixel"]
    assert [(c.train_id, c.test, c.steps) for c in panels["pixel"]] == [
        (run, test, (100, 200, 300)) for run in ("vq10241", "vq5121") for test in (False, True)
    ]


def test_every_loss_term_has_a_panel_with_validation_or_without() -> None:
    assert list(named(CURVES)["losses"].panels) == ["pixel", "commitment"]      # the validated one first
    alone = named([r for r in CURVES if not r[3].startswith("test/")])
    assert list(alone["losses"].panels) == ["commitment", "pixel"]
    assert list(alone["curves"].panels) == ["usage", "perplexity", "commitment", "pixel"]
    names = ("usage", "dead_codes", "code_age_mean", "lr/tokenizer", "ceiling", "window_fill", "quantization_error")
    assert "losses" not in named([("a", "run", s, name, 1.0) for s in (1, 2) for name in names])


def test_the_codebook_figure_has_used_codes_with_their_ceiling_and_every_level() -> None:
    rows = [("a", "run", s, f"{split}{name}/level{level}", v)
            for s in (1, 2) for split in ("", "test/") for level in (0, 1)
            for name, v in (("usage", 0.5), ("used_codes", 8.0), ("perplexity", 4.0), ("ceiling", 0.75 + level / 4))]
    codebook = named(rows, {"a": (16, 32)})["codebook"]
    assert list(codebook.panels) == [f"{q}/level{i}" for q in ("usage", "used_codes", "perplexity") for i in (0, 1)]
    bound = {name: sorted({v for c in lines for v in c.values}) for name, lines in codebook.bounds.items()}
    # level 0 can only show 75 % of its 16 codes; level 1 all of its 32, and a line at 100 % would say nothing
    assert bound == {"usage/level0": [0.75], "used_codes/level0": [12.0], "used_codes/level1": [32.0]}
    many = [(t, label, s, n.replace("level1", f"level{i}"), v) for t, label, s, n, v in rows if "level1" in n for i in range(8)]
    assert {"codebook-usage", "codebook-used_codes", "codebook-perplexity"} < set(named(many, {"a": (16,) * 8}))
    assert list(named(many)["curves"].panels) == ["usage/level0", "usage/level7", "perplexity/level0", "perplexity/level7"]


def test_runs_that_differ_in_their_seed_share_a_colour_and_a_legend_entry() -> None:
    some = [record(f"{k}{s}", {}, size=k, seed=s, label=f"k={k} seed={s}") for k in (512, 1024) for s in (1, 2)]
    assert settings_of(some) == {"5121": "k=512", "5122": "k=512", "10241": "k=1024", "10242": "k=1024"}
    assert run_colours(some) == dict(zip(("5121", "5122", "10241", "10242"), (*COLOURS[:1] * 2, *COLOURS[1:2] * 2), strict=True))
    assert settings_of(some[:1]) == {"5121": "k=512 seed=1"}
    same = [record(f"{k}{s}", {}, size=k, seed=s, label=f"own seed={s}") for k in (512, 1024) for s in (1, 2)]
    assert set(settings_of(same).values()) == {"own seed=1", "own seed=2"}      # two settings must not look like one
    rows = [(r.train_id, r.label, s, "pixel", 1.0 / s) for r in some for s in (1, 2)]
    drawn = draw_curves(curve_figures(rows)[0], settings_of(some))
    assert [t.get_text() for t in drawn.legends[0].get_texts()] == ["k=512 (2 runs)", "k=1024 (2 runs)"]
    colours = {line.get_color() for line in drawn.axes[0].get_lines()}
    assert colours == set(COLOURS[:2]) and len(drawn.axes[0].get_lines()) == 4


def test_a_sweep_that_grows_upwards_keeps_its_colours() -> None:
    few, more = colour_of(["k=512", "k=1024"]), colour_of(["k=4096", "k=1024", "k=512", "k=512"])
    assert few == {k: more[k] for k in few} and len(set(more.values())) == 3


def colour_by_label(figure: Any) -> dict[str, str]:
    return {line.get_label(): line.get_color() for line in figure.axes[0].get_lines() if line.get_label()[0] != "_"}


def test_a_label_has_one_colour_in_all_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.report import figures

    drawn: dict[str, Any] = {}
    monkeypatch.setattr(figures, "write", lambda folder, name, figure, text: drawn.setdefault(name, figure) and [])
    some = [r for r in runs() if r.fields["train.seed"] == 1]
    some.append(record("x", {"lpips": 1.0}, quantizer="a_vq"))
    report = ReportSpec(figures=(SPEC, FigureSpec(name="other", x=SIZE, y=("lpips", "psnr"), hue="tokenizer.quantizer")))
    render_figures("s", some, report, None, tmp_path)
    first, second = colour_by_label(drawn["by_size"]), colour_by_label(drawn["other"])
    assert set(first) == {"EMA VQ", "VQ"} and "a_vq" in second
    ours = {line.get_label(): line.get_color() for ax in drawn["other"].axes for line in ax.get_lines()}
    assert all(ours[label] == colour for label, colour in first.items()) and len({*first.values(), second["a_vq"]}) == 3


def test_x_may_be_what_is_known_of_a_run() -> None:
    def made(k: int, seed: int = 1, quantizer: str = "vq", levels: int = 2, **more: Any) -> Record:
        layout = {"bits_per_image": 512.0, "num_tokens": 64, "vocab_sizes": [k] * levels}
        fields = {"dataset.image_size": 32, "tokenizer.levels": levels}
        return record(f"{quantizer}{k}{seed}{levels}", {"psnr": float(k)}, size=k, seed=seed, quantizer=quantizer,
                      layout=layout, fields=fields, **more)

    assert number_of(made(16), "layout.total_codes") == 32 and number_of(made(16), "layout.bits_per_pixel") == 0.5
    assert number_of(made(16, state="failed"), "cost.images_per_second") is None
    spec = FigureSpec(name="f", x="layout.total_codes", y="psnr")
    (line,) = figure_series([made(k, s) for k in (16, 64) for s in (1, 2)], spec)       # K follows from x: one line
    assert [(p.x, p.mean, len(p.runs)) for p in line.points] == [(32, 16.0, 2), (128, 64.0, 2)]
    assert line.x_heading == "codes of all levels"
    # at 64 codes there are two kinds of runs: what tells them apart is never averaged, and gets lines of its own
    lines = figure_series([made(16), made(32), made(64, levels=1)], spec)
    assert sorted((s.label, [p.x for p in s.points]) for s in lines) == [("levels 1", [64]), ("levels 2", [32, 64])]
    hues = FigureSpec(name="f", x="layout.total_codes", y="psnr", hue="tokenizer.quantizer")
    two = figure_series([made(k, quantizer=q) for k in (16, 64) for q in ("vq", "ema_vq")], hues)
    assert [(s.label, [p.x for p in s.points]) for s in two] == [("EMA VQ", [32, 128]), ("VQ", [32, 128])]
    with pytest.raises(BadInput, match=r"figures: f: x: no run has a number 'cost\.image_per_second'.*images_per_second"):
        figure_series([made(16)], FigureSpec(name="f", x="cost.image_per_second", y="psnr"))


@pytest.mark.parametrize(("x", "long", "short"), [
    (512, "512", "512"), (262144, "262144", "$2^{18}$"), (380291, "380291", "380.3k"), (1e6, "1e+06", "1M"), (0.625, "0.625", "0.625"),
    (1000, "1000", "1k"), (999_000_000_000_000, "999000000000000", "9.99e+05G"), (-2048, "-2048", "-2048"),
])
def test_numbers_at_ticks(x: float, long: str, short: str) -> None:
    assert (axis_number(x), axis_number(x, short=True)) == (long, short)


def test_ticks_that_would_overlap_are_left_to_the_axis() -> None:
    assert apart([512, 1024, 262144], log=True) and not apart([512, 1024, 262144], log=False) and apart([1], log=False)


def usage(number: float) -> Value:
    """As the protocol ours-1 measures it today."""
    from bench.protocol import wanted

    wish = wanted("usage", "ours-1")
    return value("usage", number, keywords=dict(wish.metric.kwargs),
                 settings={"prepare": dict(wish.prepare), "revision": wish.metric.revision})


PUBLISHED = PublishedSpec(system="vqvae-simplecnn", variant="K={tokenizer.quantizer.codebook_size}")


def published(number: float, k: int, evidence: str, **more: Any) -> Any:
    from bench.published import Published

    known = dict(
        id=f"p{k}", system="vqvae-simplecnn", variant=f"K={k}", dataset="celeba", image_size="64", split="test", n_images=705,
        tokens=None, codebook_size=k, codebook_dim=None, bits_per_image=None, metric="usage", text=str(number), value=number,
        unit="share", protocol="ours-1", source="owner/name README.md@abc", table="Table 1", evidence=evidence, note="", doubt="",
        settings=())
    return Published(**{**known, **more})


def test_published_numbers_stand_beside_the_runs_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.report import published_points as module
    from bench.report.figures import _draw_series

    entries = (published(0.9, 512, "read"), published(0.8, 1024, "image"), published(0.7, 2048, "recalled"),
               published(0.1, 4096, "read"))
    monkeypatch.setattr(module, "read_published", lambda: entries)
    images = {"train": {"fingerprint": "a", "images": 9, "of": 9}, "test": {"fingerprint": "b", "images": 705, "of": 705}}
    some = [record(f"r{k}", {"usage": usage(0.5)}, size=k, fields={"dataset.name": "celeba", "dataset.image_size": 64}, data=images)
            for k in (512, 1024, 2048, 8192)]
    spec = FigureSpec(name="f", x=SIZE, y="usage", published=True)
    report = ReportSpec(figures=(spec,), published=(PUBLISHED,))
    points = module.published_points(some, spec, figure_series(some, spec), report)
    assert [(p.x, p.number, p.legend) for p in points] == [
        (512, 0.9, "published"), (1024, 0.8, "published (read off a figure)"), (2048, 0.7, "published (recalled)")]
    drawn = _draw_series(figure_series(some, spec), spec, None, points)
    assert [t.get_text() for t in drawn.legends[0].get_texts()] == [p.legend for p in points]
    marks = [(line.get_marker(), line.get_markerfacecolor()) for line in drawn.axes[0].get_lines()[1:]]
    assert len({m for m, _ in marks}) == 3 and {face for _, face in marks} == {"none"}
    render_figures("s", some, report, None, tmp_path)
    with (tmp_path / "s" / "f.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["published"]]
    assert [(r["x"], r["value"], r["train_id"]) for r in rows] == [("512", "0.9", ""), ("1024", "0.8", ""), ("2048", "0.7", "")]
    assert "recalled" in rows[2]["published"] and "owner/name README.md@abc" in rows[0]["published"]


def test_a_published_number_of_another_training_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.report import published_points as module

    one = record("r", {"usage": usage(0.5)}, fields={"dataset.name": "celeba", "dataset.image_size": 64})
    spec = FigureSpec(name="f", x=SIZE, y="usage", published=True)
    report = ReportSpec(published=(PUBLISHED,))
    (point,) = module.published_points([one], spec, figure_series([one], spec), report,
                                       [published(0.9, 512, "read", settings=(("train.steps", "500000"),))])
    assert point.legend == "published, under other conditions" and "1,000 training steps instead of 500,000" in point.what


def test_published_numbers_of_ours_and_of_other_conditions_can_be_told_apart() -> None:
    from bench.report import published_points as module
    from bench.report.figures import _draw_series

    images = {"train": {"fingerprint": "a", "images": 9, "of": 9}, "test": {"fingerprint": "b", "images": 705, "of": 705}}
    some = [record(f"r{k}", {"usage": usage(0.5)}, size=k, fields={"dataset.name": "celeba", "dataset.image_size": 64}, data=images)
            for k in (512, 1024)]
    entries = [published(0.9, 512, "read"), published(0.8, 1024, "read", n_images=19962)]
    spec = FigureSpec(name="f", x=SIZE, y="usage", published=True)
    points = module.published_points(some, spec, figure_series(some, spec), ReportSpec(published=(PUBLISHED,)), entries)
    figure = _draw_series(figure_series(some, spec), spec, None, points)
    drawn = {line.get_ydata()[0]: line.get_markerfacecolor() for line in figure.axes[0].get_lines()[1:]}
    handles = {h.get_label(): h.get_markerfacecolor() for h in figure.legends[0].legend_handles}
    assert handles == {"published": drawn[0.9], "published, under other conditions": drawn[0.8]}
    assert drawn[0.9] != drawn[0.8]


def test_a_published_number_is_held_against_the_number_that_is_drawn() -> None:
    """A run that was also measured on all images is drawn with the few that all runs were measured on."""
    from bench.report import published_points as module

    few = usage(0.5).model_copy(update={"images": 64, "settings": {**usage(0.5).settings, "limit": 64}})
    known = {"fields": {"dataset.name": "celeba", "dataset.image_size": 64},
             "data": {"test": {"fingerprint": "b", "images": 705, "of": 705}}}
    some = [record("a", {"usage": usage(0.6), "few": few}, size=512, **known), record("b", {"few": few}, size=1024, **known)]
    spec = FigureSpec(name="f", x=SIZE, y="usage", published=True)
    series = figure_series(some, spec)
    assert [p.mean for p in series[0].points] == [0.5, 0.5]
    (point,) = module.published_points(some, spec, series, ReportSpec(published=(PUBLISHED,)), [published(0.9, 512, "read")])
    assert not point.comparable and "measured on 64 images instead of 705" in point.what


def test_figures_take_the_published_numbers_of_the_folder_of_results(tmp_path: Path) -> None:
    from bench.places import Places
    from bench.published import published_file
    from bench.reporting import render

    with (ROOT / "results" / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(r for r in rows if r["metric"] == "usage_window" and r["dataset"] == "celeba")
    places = Places.find(results=tmp_path / "results", reports=tmp_path / "reports")
    (tmp_path / "results" / "s").mkdir(parents=True)
    with (tmp_path / "results" / "published.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow({**row, "value": "0.1234", "settings": ""})
    assert published_file(places.results) == tmp_path / "results" / "published.csv"
    measured = usage(0.5)
    windowed = measured.model_copy(update={"name": "usage_window", "keywords": {**measured.keywords, "window": 65536}})
    one = record("r", {"usage_window": windowed}, size=int(row["codebook_size"]),
                 fields={"dataset.name": "celeba", "dataset.image_size": int(row["image_size"])})
    write_records(tmp_path / "results" / "s" / "records.jsonl", [one])
    report = ReportSpec(figures=(FigureSpec(name="f", x=SIZE, y="usage_window", published=True),),
                        published=(PublishedSpec(system=row["system"], variant=row["variant"]),))
    render("s", "why?", report, [one], places, figures=True)
    assert "0.1234" in (tmp_path / "reports" / "s" / "f.csv").read_text()


def test_long_names_at_ticks_do_not_run_into_one_another() -> None:
    from bench.report.figures import _draw_series

    titles = ["Vector quantization", "EMA vector quantization", "Finite scalar quantization", "Residual", "L" * 300]
    some = [record(f"r{i}", {"psnr": 20.0 + i}, quantizer=f"q{i}", quantizer_title=t) for i, t in enumerate(titles)]
    spec = FigureSpec(name="f", x="tokenizer.quantizer", y="psnr")
    figure = _draw_series(figure_series(some, spec), spec)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    assert ax.get_window_extent().height > 0.3 * figure.get_window_extent().height
    names = ax.get_xticklabels()
    angle, gap = math.radians(names[0].get_rotation()), ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    assert gap * math.sin(angle) > names[0].get_fontsize() * figure.dpi / 72        # between two slanted lines of text


def test_published_numbers_need_to_know_which_systems_the_runs_are() -> None:
    with pytest.raises(ValueError, match=r"figure 'f' shows published numbers; say in `report\.published`"):
        ReportSpec(figures=(FigureSpec(name="f", x=SIZE, y="usage", published=True),))


@pytest.mark.parametrize("name", ["curves", "losses", "codebook", "reconstructions", "table-x", "codebook-usage"])
def test_names_of_files_that_every_report_has_are_taken(name: str) -> None:
    with pytest.raises(ValueError, match="that name is taken"):
        ReportSpec(figures=(FigureSpec(name=name, x=SIZE, y="usage"),))


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
    trade = FigureSpec(name="trade", kind="tradeoff", x="layout.bits_per_image", y="psnr", hue="tokenizer.quantizer")
    report = ReportSpec(figures=(SPEC, trade))
    paths = render_figures("suite", runs(), report, curves, tmp_path / "one")
    assert [p.name for p in paths] == [
        f"{name}.{suffix}" for name in ("by_size", "trade", "curves", "losses", "codebook") for suffix in ("svg", "png", "csv")
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
