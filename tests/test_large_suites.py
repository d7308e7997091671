"""A suite of 1,000 runs: what they share is done once, and what a build has shown is remembered."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from report_records import record

import bench.binder
import bench.build
from bench import checked
from bench.build import check_runs
from bench.checked import Checked, check
from bench.report import figures
from bench.report.formats import MANY, terminal_table
from bench.report.spec import FigureSpec, ReportSpec, TableSpec
from bench.report.tables import build_table
from bench.run import Run
from bench.spec import flatten
from bench.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
SIZES, HIDDEN, RATES = [2**k for k in range(2, 12)], list(range(8, 28, 2)), [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]
SUITE: dict[str, Any] = {
    "name": "large", "question": "What comes out of a thousand runs?",
    "base": {
        "dataset": {"name": "photos", "image_size": 16, "train_images": 64, "test_images": 32},
        "tokenizer": {"name": "vqvae", "quantizer": {"name": "vq", "codebook_dim": 4}},
        "objective": "reconstruction",
        "optimizers": {"tokenizer": {"name": "adam"}},
        "train": {"steps": 10, "batch_size": 8},
        "measure": {"values": ["usage", "psnr"]},
        "monitors": ["codebook_usage"],
    },
    "axes": {"tokenizer.quantizer.codebook_size": SIZES, "tokenizer.hidden": HIDDEN, "optimizers.tokenizer.lr": RATES},
    "seeds": [1, 2],
}


def suite(folder: Path, **changes: Any) -> Suite:
    file = folder / "large.yaml"
    file.write_text(yaml.safe_dump(SUITE | changes, sort_keys=False))
    return Suite.load(file)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Four distinct builds of eight runs; one has an impossible width, one scales the rate of no parameter."""
    folder = tmp_path_factory.mktemp("few")
    scale = {"optimizers.tokenizer.lr": 1e-3, "tokenizer.hidden": 8, "tokenizer.quantizer.codebook_size": 8}
    return suite(folder, axes={"tokenizer.quantizer.codebook_size": [4, 8]}, seeds=[1, 2], include=[
        scale | {"tokenizer.hidden": 7}, scale | {"optimizers.tokenizer.lr_scale": {"nothing": 2.0}},
    ], base=SUITE["base"] | {"tokenizer": {**SUITE["base"]["tokenizer"], "hidden": 8},
                             "optimizers": {"tokenizer": {"lr": 1e-3}}}).expand(tiny.places(folder))


# -- planning ----------------------------------------------------------------------------------------------


def test_what_runs_share_is_bound_and_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            counts[f"{name} {arguments[0]}" if name == "bind" else name] += 1
            return function(*arguments, **keywords)
        return counted

    for name in ("bind", "open_split", "describe", "weight_identity", "load_protocol"):
        monkeypatch.setattr(bench.binder, name, counting(name, getattr(bench.binder, name)))
    runs = suite(tmp_path).expand(tiny.places(tmp_path))
    assert len(runs) == len({r.train_id for r in runs}) == len({r.label for r in runs}) == 1000
    assert counts["bind tokenizer"] == len(SIZES) * len(HIDDEN)
    assert counts["bind dataset"] == counts["bind objective"] == counts["bind monitor"] == 1
    assert counts["open_split"] == 2 and counts["load_protocol"] == 1
    assert len({id(r.train.model) for r in runs}) == len(SIZES) * len(HIDDEN)
    assert len({id(r.resources) for r in runs}) == len({id(r.data["train"]) for r in runs}) == 1


def test_each_of_them_is_what_it_would_be_alone(tmp_path: Path) -> None:
    every = {r.label: r for r in suite(tmp_path).expand(tiny.places(tmp_path))}
    assert next(iter(every)) == "codebook_size=4 hidden=8 lr=0.0001 seed=1"
    for size, hidden, rate, seed in itertools.islice(itertools.product(SIZES, HIDDEN, RATES, [1, 2]), 0, 1000, 137):
        axes = {"tokenizer.quantizer.codebook_size": [size], "tokenizer.hidden": [hidden],
                "optimizers.tokenizer.lr": [rate]}
        alone, = suite(tmp_path, axes=axes, seeds=[seed]).expand(tiny.places(tmp_path))
        same = every[f"codebook_size={size} hidden={hidden} lr={rate} seed={seed}"]
        assert same.train_id == alone.train_id == alone.train.train_id
        assert same.model_copy(update={"label": alone.label}) == alone
        assert {k: v for k, v in flatten(same.train).items() if k == "seed"} == {"seed": seed}


# -- builds that are remembered ----------------------------------------------------------------------------


def test_what_is_remembered_is_what_a_build_says(
    few: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    places, built = tiny.places(tmp_path), check_runs(few)
    assert check(few, places) == built
    said = [(c.problem, c.key) for c in built.values()]
    assert ("hidden must be even and at least 2, got 7", "tokenizer.hidden") in said
    assert any(key == "optimizers.tokenizer.lr_scale.nothing" for _, key in said)
    monkeypatch.setattr(bench.build, "check_runs", lambda runs: pytest.fail("built again"))
    assert check(few, places) == built and len(built) == 8
    assert check([], places) == {}


def test_impossible_combinations_are_remembered_and_missing_files_are_not(
    few: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = [Checked(skip="no such thing"), Checked(problem="no weights", key="objective", lasting=False)]
    monkeypatch.setattr(bench.build, "check_runs",
                        lambda runs: {r.train_id: outcomes[r.train.model.kwargs["hidden"] == 7] for r in runs})
    places = tiny.places(tmp_path)
    first = check(few, places)
    assert set(first.values()) == set(outcomes)
    monkeypatch.setattr(bench.build, "check_runs", lambda runs: {r.train_id: Checked(parameters=5) for r in runs})
    again = check(few, places)
    assert {i for i in first if again[i].parameters == 5} == {i for i, c in first.items() if not c.lasting}


@pytest.mark.parametrize("damage", [
    b"", b"{", b"[1, 2]", b"null", b"\xff\xfe", b'{"a": 1}', b'{"KEY": [null, null, null, "many"]}',
    b'{"KEY": [null, null, null]}', b'{"KEY": [1, null, null, 4]}', b"[" * 100_000,
], ids=range(10))
def test_a_damaged_cache_is_as_good_as_none(few: list[Run], damage: bytes, tmp_path: Path) -> None:
    places, keys = tiny.places(tmp_path), checked._keys(few[:1])
    file = places.cache / "checked" / "large.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(damage.replace(b"KEY", keys[few[0].train_id].encode()))
    assert check(few[:1], places) == check_runs(few[:1])
    assert json.loads(file.read_bytes())[keys[few[0].train_id]][3] > 0


def test_a_cache_that_cannot_be_written_hinders_nothing(few: list[Run], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert check(few[:1], tiny.places(tmp_path)) == check_runs(few[:1])


def test_any_keyword_player_size_or_source_is_another_key(few: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = few[0]

    def key(run: Run) -> str:
        return checked._keys([run])[run.train_id]

    def changed(**fields: Any) -> Run:
        return run.model_copy(update={"train": run.train.model_copy(update=fields)})

    first, spec = key(run), run.train
    assert key(changed(seed=5, steps=7, batch_size=4)) == first         # nothing that a build sees
    optimizer = spec.optimizers["tokenizer"]
    assert key(changed(optimizers={"tokenizer": optimizer.model_copy(update={"lr": 1.0})})) == first
    others = [
        changed(model=tiny.small("tokenizer", "vqvae", hidden=10)),
        changed(dataset=tiny.small("dataset", "photos", image_size=32)),
        changed(objective=tiny.small("objective", "reconstruction", weights={"pixel": 2.0})),
        changed(optimizers={"critic": optimizer}),
        changed(optimizers={"tokenizer": optimizer.model_copy(update={"lr_scale": {"decoder": 1.0}})}),
    ]
    keys = {first, *map(key, others)}
    plain = checked._source
    for file in ("implementations/vqvae.py", "implementations/quantizers/vq.py", "bench/build.py", "bench/train.py",
                 "bench/losses/pixel.py", "bench/objectives/reconstruction.py"):
        assert (ROOT / file).is_file()
        monkeypatch.setattr(checked, "_source", lambda f, file=file: (
            f"changed {plain(f)[0]}" if f == ROOT / file else plain(f)[0], plain(f)[1]))
        checked._sources.cache_clear()
        keys.add(key(run))
    monkeypatch.setattr(checked, "_source", plain)
    checked._sources.cache_clear()
    assert len(keys) == 1 + len(others) + 6 and key(run) == first
    monkeypatch.setattr(checked, "versions", lambda packages: {"torch": "99"})
    assert key(run) not in keys


def test_code_from_outside_counts_with_what_lies_beside_it(
    few: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checked, "included", lambda: [tmp_path])
    found = set()
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "helper.py").write_text(text)
        checked._sources.cache_clear()
        checked._source.cache_clear()
        found.add(checked._keys(few[:1])[few[0].train_id])
    checked._sources.cache_clear()
    checked._source.cache_clear()
    assert len(found) == 2


AGAIN = """
import sys
from pathlib import Path
from bench.checked import check
from bench.places import Places
from bench.suite import Suite
folder = Path(sys.argv[1])
places = Places(results=folder, reports=folder, runs=folder, cache=folder / "cache")
runs = Suite.load(folder / "large.yaml").expand(places)
print(sum(c.parameters > 0 for c in check(runs, places).values()), "torch" in sys.modules)
"""


def test_the_second_check_of_a_suite_loads_no_torch(tmp_path: Path) -> None:
    suite(tmp_path, axes={"tokenizer.hidden": [8, 10], "optimizers.tokenizer.lr": RATES})
    said = [subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path)], cwd=ROOT, text=True, capture_output=True,
                           check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}).stdout for _ in range(2)]
    assert said == ["20 True\n", "20 False\n"]


def test_the_file_keeps_the_newest(few: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "MOST", 3)
    places = tiny.places(tmp_path)
    check(few, places)
    kept = json.loads((places.cache / "checked" / "large.json").read_text())
    assert len(kept) == 3 and checked._keys(few)[few[-1].train_id] in kept


# -- reports -----------------------------------------------------------------------------------------------


def records(count: int) -> list[Any]:
    return [record(f"{i:04d}", {"psnr": 20 + i / count, "usage": i / count}, size=2 ** (2 + i % 10), dim=1 + i // 10)
            for i in range(count)]


def shown(renderable: Any, width: int) -> list[str]:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def test_a_long_table_is_printed_quickly_with_the_same_words() -> None:
    spec = TableSpec(name="t", rows=("tokenizer.quantizer.codebook_dim", "tokenizer.quantizer.codebook_size"),
                     columns=("psnr", "usage"))
    made = terminal_table(build_table(records(1000), spec))
    quick, plain = shown(made, 120), shown(made.table, 120)
    words = [[w for line in lines for w in line.split() if "─" not in w] for lines in (quick, plain)]
    assert words[0] == words[1]
    assert len({len(line) for line in quick[3:900]}) == 1
    assert shown(made, 30) == shown(made.table, 30)             # too narrow: cells have to be wrapped
    few = terminal_table(build_table(records(MANY - 1), spec))
    assert shown(few, 120) == shown(few.table, 120)


def test_cells_keep_their_styles_and_their_brackets() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bench.report.formats import Quick

    table = Table("a", "b", title="title")
    for i in range(MANY):
        table.add_row(Text(f"[x]{i} 中", "bold"), Text.assemble("1 ", ("2", "underline")))
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Quick(table))
    said = console.file.getvalue()
    assert "\x1b[1m[x]7 中\x1b[0m" in said and "1 \x1b[4m2\x1b[0m" in said and "title" in said


def test_figures_of_many_lines_name_some_and_keep_room_for_the_panels(tmp_path: Path) -> None:
    spec = ReportSpec(figures=(FigureSpec(name="f", x="tokenizer.quantizer.codebook_size", y=("psnr", "usage"),
                                          hue="tokenizer.quantizer.codebook_dim"),))
    series = figures.figure_series(records(400), spec.figures[0])
    drawn = figures._draw_series(series, spec.figures[0])
    drawn.draw_without_rendering()
    entries = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert len({s.label for s in series}) == 40
    assert len(entries) == figures.MOST_RUNS + 1 and entries[-1] == "and 16 more"
    legend = drawn.legends[0].get_window_extent()
    assert all(ax.get_window_extent().y0 > legend.y1 for ax in drawn.axes)
    assert all(ax.get_window_extent().height > 100 for ax in drawn.axes)
