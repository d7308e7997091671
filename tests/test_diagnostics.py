"""A run's arrays made small, and the figures that are drawn from them: what they say equals the arrays."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import record

import bench.report.diagnostics
from bench.collect import collect
from bench.diagnostics import CAP, CELLS, collect_diagnostics, compact, levels_of, packed, read_archive, summary
from bench.places import Places
from bench.report.code_figures import code_counts
from bench.report.code_panels import Subject
from bench.report.diagnostics import folder_of, render_diagnostics
from bench.results import Record

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = {"vocab_sizes": [60], "dims": [4], "num_tokens": 16, "grids": [[4, 4]]}


def one_level(codes: int, step: int, rng: np.random.Generator, suffix: str = "", alive: float = 0.5) -> dict[str, np.ndarray]:
    """Arrays of a codebook whose first codes live, as the monitors write them."""
    lives = np.arange(codes) < alive * codes
    counts = np.where(lives, rng.integers(0, 40, codes), 0)
    found = {
        "counts": counts, "code_norms": np.where(lives, rng.normal(3, 0.5, codes), rng.normal(1.4, 0.01, codes)),
        "code_gradient_norms": np.where(counts > 0, rng.lognormal(-9, 0.5, codes), 0),
        "code_ages": np.where(lives, rng.integers(0, step + 1, codes), step),
        "code_movement": np.where(lives, rng.lognormal(-5, 0.5, codes), 0),
    }
    kinds = {"counts": np.int64, "code_ages": np.int32}
    return {f"{n}{suffix}": a.astype(kinds.get(n, np.float32)) for n, a in found.items()}


def sample(codes: int, rng: np.random.Generator, width: int = 4) -> dict[str, np.ndarray]:
    """Of the latents monitor, one level."""
    latents = rng.normal(size=(50, width)).astype(np.float32) * np.array([5.0, 2.0, 0.5, 0.1], np.float32)[:width]
    vectors = rng.normal(size=(codes, width)).astype(np.float32)
    chosen = rng.integers(0, codes, (50, 1)).astype(np.int32)
    return {"latents": latents, "quantized": vectors[chosen[:, 0]], "latent_codes": chosen, "code_vectors": vectors,
            "code_sample": np.arange(codes, dtype=np.int32)}


def write_arrays(folder: Path, steps: dict[int, dict[str, np.ndarray]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for step, arrays in steps.items():
        np.savez_compressed(folder / f"{step:09d}.npz", **arrays)
    return folder


def usual(folder: Path, codes: int = 60, steps: int = 5) -> Path:
    rng = np.random.default_rng(3)
    return write_arrays(folder, {10 * t: one_level(codes, 10 * t, rng) | sample(codes, rng) for t in range(1, steps + 1)})


# -- compact -------------------------------------------------------------------------------------------------


def test_an_archive_holds_the_last_step_and_histograms_of_all(tmp_path: Path) -> None:
    folder = usual(tmp_path / "arrays")
    archive = compact(folder)
    each = [dict(np.load(p)) for p in sorted(folder.glob("*.npz"))]
    for name in ("counts", "code_gradient_norms", "code_norms", "code_ages", "code_movement"):
        assert archive[name].tolist() == each[-1][name].tolist()
    assert archive["step"] == 50 and archive["steps"].tolist() == [10, 20, 30, 40, 50]
    edges = archive["norm_edges"]
    everything = np.concatenate([a["code_norms"] for a in each]).astype(np.float64)
    assert len(edges) == 101 and (edges[0], edges[-1]) == (everything.min(), pytest.approx(everything.max()))
    for row, arrays in zip(archive["norms_over_time"], each, strict=True):
        wanted = [0] * 100
        for norm in arrays["code_norms"].astype(np.float64):
            wanted[min(sum(norm >= e for e in edges[1:-1]), 99)] += 1
        assert row.tolist() == wanted
    assert archive["use_over_time"].tolist() == [(a["counts"] > 0).astype(float).tolist() for a in each]


def test_the_same_arrays_give_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    one = packed(compact(usual(tmp_path / "one")))
    assert packed(compact(usual(tmp_path / "two"))) == one
    (tmp_path / "a.npz").write_bytes(one)
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {i.date_time for i in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert file.namelist() == sorted(file.namelist())
    again = read_archive(tmp_path / "a.npz")
    assert again["step"].shape == () and packed(again) == one


def test_more_than_200_steps_are_thinned_evenly_and_the_last_one_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_arrays(tmp_path, {t: {"code_norms": rng.random(4).astype(np.float32)} for t in range(1, 452)})
    steps = compact(tmp_path)["steps"]
    assert len(steps) == 200 and steps[0] == 1 and steps[-1] == 451
    assert set(np.diff(steps)) <= {2, 3}


def test_a_step_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = usual(tmp_path / "arrays")
    whole = compact(folder)
    for step in (30, 50):
        path = folder / f"{step:09d}.npz"
        path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        left = compact(folder)
    assert "000000030.npz cannot be read" in caplog.text and "000000050.npz cannot be read" in caplog.text
    assert left["step"] == 40 and left["steps"].tolist() == [10, 20, 40] and whole["step"] == 50
    assert compact(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("levels, codes", [(1, 262_144), (6, 16_384)])
def test_an_archive_stays_small_and_says_the_same(levels: int, codes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ends = [""] if levels == 1 else [f"/level{i}" for i in range(levels)]
    arrays: dict[str, np.ndarray] = {}
    for end in ends:
        arrays |= one_level(codes, 20, rng, end)
    archive = compact(write_arrays(tmp_path, {20: arrays, 40: arrays}))
    assert len(packed(archive)) <= CAP and f"counts{ends[0]}" not in archive
    for end, (suffix, level) in zip(ends, levels_of(archive), strict=True):
        assert suffix == end
        counts, norms = arrays[f"counts{end}"], arrays[f"code_norms{end}"]
        assert (level["codes"], level["used"], level["window"]) == (codes, (counts > 0).sum(), counts.sum())
        assert level["counts.count"][0] == counts.max() and level["counts.rank"][-1] == codes
        edges = level["code_norms.edges"]
        for kind, mask in (("active", counts > 0), ("dead", counts == 0)):
            assert (level[f"code_norms.{kind}"] == np.histogram(norms[mask].astype(np.float64), edges)[0]).all()
        cells = level["code_gradient_norms.cells"]
        m = -(-codes // len(cells))
        assert m > 1 and cells[3] == pytest.approx(arrays[f"code_gradient_norms{end}"][3 * m : 4 * m].mean(dtype=np.float64))


per_code = st.integers(1, 40).flatmap(lambda k: st.tuples(
    st.lists(st.integers(0, 5), min_size=k, max_size=k),
    st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 0.5, 2.0, 1e5, float("inf"), float("nan")]), min_size=k, max_size=k),
    st.lists(st.integers(0, 9), min_size=k, max_size=k)))


@settings(max_examples=150, deadline=None)
@given(per_code, st.integers(1, 50))
def test_a_summary_counts_every_code_once(arrays: tuple, cells: int) -> None:
    counts, norms, ages = arrays
    level = {"counts": np.array(counts, np.int32), "code_norms": np.array(norms, np.float32), "code_ages": np.array(ages, np.int32)}
    found = summary(level, cells)
    assert found["used"] == sum(c > 0 for c in counts) and found["used_by"] == "counts"
    assert found["counts.count"].tolist() == sorted(counts, reverse=True)
    younger = dict(zip(found["code_ages.age"].tolist(), found["code_ages.codes"].tolist(), strict=True))
    assert younger == {a: sum(b <= a for b in ages) for a in ages}
    finite = [(n, c > 0) for n, c in zip(level["code_norms"].tolist(), counts, strict=True) if np.isfinite(n)]
    if finite:
        for i, (kind, active) in enumerate((("active", True), ("dead", False))):
            mine = [n for n, a in finite if a == active]
            assert found["code_norms.zeros"][i] == mine.count(0.0)
            assert found[f"code_norms.{kind}"].sum() + mine.count(0.0) == len(mine)
        assert (np.diff(found["code_norms.edges"]) > 0).all()
    else:
        assert "code_norms.edges" not in found


# -- projections ---------------------------------------------------------------------------------------------


def test_the_plane_is_that_of_the_principal_components(tmp_path: Path) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    arrays = sample(60, np.random.default_rng(5)) | {"counts": np.arange(60) % 3}
    archive = compact(write_arrays(tmp_path, {10: arrays}))
    wanted = decomposition.PCA(2).fit(arrays["latents"])
    assert archive["plane"] == pytest.approx(wanted.explained_variance_ratio_, rel=1e-4)
    for name, points in (("latents_2d", "latents"), ("quantized_2d", "quantized"), ("codes_2d", "code_vectors")):
        flat = wanted.transform(arrays[points])
        sign = np.sign((archive[name] * flat).sum(0))
        assert archive[name] == pytest.approx(flat * sign, abs=1e-4)
    assert archive["codes_used"].tolist() == [k % 3 > 0 for k in range(60)]
    assert "unit" not in archive


def test_latents_are_scaled_where_all_codes_have_length_one(tmp_path: Path) -> None:
    arrays = sample(60, np.random.default_rng(5))
    arrays["code_vectors"] /= np.linalg.norm(arrays["code_vectors"], axis=1, keepdims=True)
    archive = compact(write_arrays(tmp_path, {10: arrays}))
    assert archive["unit"] and np.linalg.norm(archive["latents_2d"] - archive["latents_2d"].mean(0), axis=1).max() < 2.01


def test_latents_of_one_dimension_have_a_picture(tmp_path: Path) -> None:
    archive = compact(write_arrays(tmp_path, {10: sample(8, np.random.default_rng(5), width=1)}))
    assert np.ptp(archive["latents_2d"][:, 0]) > 0 and not archive["latents_2d"][:, 1].any()


def test_near_codes_of_a_sub_codebook_stay_near(tmp_path: Path) -> None:
    pytest.importorskip("sklearn.manifold")
    rng = np.random.default_rng(2)
    group = rng.integers(0, 3, 90)
    book = (rng.normal(size=(90, 5)) * 0.1 + 10 * np.eye(5)[group]).astype(np.float32)
    chosen = rng.integers(0, 70, (200, 2)).astype(np.int32)
    arrays = {"latents": np.ones((200, 3), np.float32), "quantized": np.ones((200, 10), np.float32), "latent_codes": chosen}
    for level in range(2):
        arrays |= {f"token_vectors/level{level}": book[chosen[:, level]], f"code_vectors/level{level}": book,
                   f"code_sample/level{level}": np.arange(90, dtype=np.int32)}
    archive = compact(write_arrays(tmp_path, {10: arrays}))
    for level in range(2):
        flat, tokens = archive[f"tsne_2d/level{level}"], archive[f"tsne_tokens/level{level}"]
        codes, numbers = np.unique(chosen[:, level], return_counts=True)
        assert len(flat) == 90 and tokens[: len(codes)].tolist() == sorted(numbers, reverse=True) and not tokens[len(codes) :].any()
        order = [*codes[np.argsort(-numbers, kind="stable")], *np.setdiff1d(np.arange(90), codes)]
        far = ((flat[:, None] - flat[None]) ** 2).sum(-1) + 1e9 * np.eye(90)
        assert (group[order][far.argmin(1)] == group[order]).mean() > 0.95


# -- collecting ----------------------------------------------------------------------------------------------


def test_only_what_has_changed_is_made_anew(tmp_path: Path) -> None:
    places = Places(results=tmp_path / "results", reports=tmp_path / "reports", runs=tmp_path / "runs", cache=tmp_path / "cache")
    runs: list[Any] = [SimpleNamespace(train_id=f"{i:012d}") for i in range(3)]
    for run in runs[:2]:
        usual(places.runs / run.train_id / "arrays", steps=2)
    folder = tmp_path / "results" / "s" / "diagnostics"
    collect_diagnostics("s", runs, places)
    assert sorted(p.name for p in folder.iterdir()) == ["000000000000.npz", "000000000001.npz"]
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    rng = np.random.default_rng(9)
    write_arrays(places.runs / runs[1].train_id / "arrays", {30: one_level(60, 30, rng)})
    (folder / "000000000000.npz").rename(tmp_path / "kept.npz")
    collect_diagnostics("s", runs, places)
    assert (folder / "000000000000.npz").read_bytes() == (tmp_path / "kept.npz").read_bytes()
    assert read_archive(folder / "000000000001.npz")["step"] == 30
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    collect_diagnostics("s", runs, places)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == times


def test_collecting_a_suite_collects_them(tmp_path: Path) -> None:
    places = Places(results=tmp_path / "results", reports=tmp_path / "reports", runs=tmp_path / "runs", cache=tmp_path / "cache")
    done = record("0123456789ab")
    run: Any = SimpleNamespace(train_id=done.train_id, label=done.label, fields=done.fields, components=done.components)
    folder = places.runs / done.train_id
    usual(folder / "arrays", steps=2)
    (folder / "record.json").write_text(done.model_dump_json())
    collect("s", [run], places)
    assert (tmp_path / "results" / "s" / "diagnostics" / "0123456789ab.npz").is_file()


# -- figures -------------------------------------------------------------------------------------------------


def archived(folder: Path, run: Record, arrays: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run.train_id}.npz").write_bytes(packed(compact(arrays)))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def write_curves(path: Path, run: Record, values: list[float]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(run.train_id, run.label, i * 10, "quantization_error", v) for i, v in enumerate(values)]
    rows.append((run.train_id, run.label, 10, "pixel", 1.0))
    names = ("train_id", "label", "step", "name", "value")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Record, list[Path]]:
    """(arrays, reports, run, files) of a run with everything."""
    folder = tmp_path_factory.mktemp("drawn")
    run = record("0123456789ab", layout=LAYOUT, label="vq $x_ <b>")
    arrays = usual(folder / "arrays")
    curves = write_curves(folder / "curves.parquet", run, [1.0, 0.5, float("nan"), 0.25])
    found = render_diagnostics("s", [run], archived(folder / "d", run, arrays), curves, folder / "reports")
    return arrays, folder / "reports", run, found


ALL = ["code_counts", "code_age", "code_norms", "code_norms_over_time", "code_use_over_time", "code_gradients",
       "code_gradient_map", "code_movement", "latents", "quantization_error"]


def test_every_quantity_has_its_figure_and_the_page_shows_it(drawn: tuple) -> None:
    _, reports, run, paths = drawn
    where = reports / "s" / "diagnostics" / folder_of(run)
    assert folder_of(run) == "vq-x-b-012345"
    assert paths == [*(where / f"{n}.{s}" for n in ALL for s in ("svg", "png", "csv")), reports / "s" / "diagnostics.md"]
    assert all(p.stat().st_size > 30 for p in paths)
    page = paths[-1].read_text()
    assert [line for line in page.splitlines() if line.startswith("![")] == [
        f"![{n.replace('_', ' ')}](diagnostics/vq-x-b-012345/{n}.png)" for n in ALL]
    assert "\n- " not in page                       # nothing is missing
    assert "<b>" not in page


def test_what_is_plotted_equals_the_arrays(drawn: tuple) -> None:
    folder, reports, run, _ = drawn
    last = dict(np.load(folder / "000000050.npz"))
    where = reports / "s" / "diagnostics" / folder_of(run)
    active = last["counts"] > 0
    for figure, name in (("code_gradients", "code_gradient_norms"), ("code_norms", "code_norms"), ("code_movement", "code_movement")):
        rows = rows_of(where / f"{figure}.csv")
        zeros = [r for r in rows if float(r["to"]) == 0]
        bins = [r for r in rows if float(r["to"]) > 0]
        values = last[name].astype(np.float64)
        assert sum(int(r["active_codes"]) + int(r["dead_codes"]) for r in zeros) == (values == 0).sum()
        assert len(bins) == 100
        assert float(bins[0]["from"]) == pytest.approx(values[values > 0].min()) and float(bins[-1]["to"]) == pytest.approx(values.max())
        for kind, mask in (("active_codes", active), ("dead_codes", ~active)):
            assert sum(int(r[kind]) for r in bins) == (values[mask] != 0).sum()
            middle = float(bins[49]["to"])
            assert sum(int(r[kind]) for r in bins[:50]) == pytest.approx(((values[mask] != 0) & (values[mask] < middle)).sum(), abs=1)
    cells = rows_of(where / "code_gradient_map.csv")
    assert [(int(r["first_code"]), int(r["codes"])) for r in cells] == [(k, 1) for k in range(60)]
    assert [float(r["gradient_norm"]) for r in cells] == pytest.approx(last["code_gradient_norms"].tolist(), rel=1e-6)
    counts = rows_of(where / "code_counts.csv")
    assert [int(r["count"]) for r in counts] == sorted(last["counts"].tolist(), reverse=True)
    ages = {int(r["age_at_most"]): int(r["codes"]) for r in rows_of(where / "code_age.csv")}
    assert ages == {int(a): int((last["code_ages"] <= a).sum()) for a in last["code_ages"]}
    over = rows_of(where / "code_norms_over_time.csv")
    assert {int(r["step"]) for r in over} == {10, 20, 30, 40, 50} and sum(int(r["codes"]) for r in over) == 5 * 60
    use = [float(r["share_in_use"]) for r in rows_of(where / "code_use_over_time.csv") if r["step"] == "50"]
    assert use == active.astype(float).tolist()
    kinds = [r["kind"] for r in rows_of(where / "latents.csv")]
    assert [kinds.count(k) for k in ("latent", "active code", "dead code")] == [50, active.sum(), (~active).sum()]
    assert [(r["step"], float(r["quantization_error"])) for r in rows_of(where / "quantization_error.csv")] == [
        ("0", 1.0), ("10", 0.5), ("30", 0.25)]


def test_figures_repeat_byte_for_byte_and_need_no_torch(drawn: tuple, tmp_path: Path) -> None:
    arrays, reports, run, paths = drawn
    (tmp_path / "run.json").write_text(run.model_dump_json())
    archived(tmp_path / "d", run, arrays)
    code = (
        "import sys; from pathlib import Path; from bench.results import Record; import bench.report.diagnostics as d\n"
        "assert 'matplotlib' not in sys.modules and 'numpy' not in sys.modules\n"
        "t = Path(sys.argv[1]); r = Record.model_validate_json((t / 'run.json').read_text())\n"
        "d.render_diagnostics('s', [r], t / 'd', Path(sys.argv[2]), t / 'reports'); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(reports.parent / "curves.parquet")], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in paths:
        assert (tmp_path / "reports" / path.relative_to(reports)).read_bytes() == path.read_bytes(), path.name


def test_figures_of_262144_codes_are_small_and_quick(tmp_path: Path) -> None:
    run = record("0123456789ab", layout=LAYOUT | {"vocab_sizes": [262_144]})
    rng = np.random.default_rng(4)
    arrays = write_arrays(tmp_path / "arrays", {20 * t: one_level(262_144, 20, rng, alive=0.2) for t in (1, 2)})
    folder = archived(tmp_path / "d", run, arrays)
    began = time.process_time()
    paths = render_diagnostics("s", [run], folder, None, tmp_path)
    assert time.process_time() - began < 12                             # 4 s here
    assert len(paths) == 8 * 3 + 1
    sizes = {p.name: p.stat().st_size for p in paths}
    assert max(size for name, size in sizes.items() if name.endswith(".svg")) < 300_000
    assert max(sizes.values()) < 2**20
    cells = rows_of(tmp_path / "s" / "diagnostics" / folder_of(run) / "code_gradient_map.csv")
    assert len(cells) == CELLS and sum(int(r["codes"]) for r in cells) == 262_144


def test_several_levels_have_a_panel_each(tmp_path: Path) -> None:
    run = record("0123456789ab", layout=LAYOUT | {"vocab_sizes": [30, 20], "dims": [4, 4]})
    rng = np.random.default_rng(4)
    arrays = one_level(30, 9, rng, "/level0") | one_level(20, 9, rng, "/level1")
    folder = archived(tmp_path / "d", run, write_arrays(tmp_path / "arrays", {9: arrays}))
    render_diagnostics("s", [run], folder, None, tmp_path)
    counts = rows_of(tmp_path / "s" / "diagnostics" / folder_of(run) / "code_counts.csv")
    assert [sum(int(r["count"]) for r in counts if r["level"] == str(i)) for i in range(2)] == [
        arrays[f"counts/level{i}"].sum() for i in range(2)]


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out, but not written in three formats."""
    def write(folder: Path, name: str, figure: Any, text: str) -> list[Path]:
        figure.draw_without_rendering()
        return [folder / f"{name}.svg"]

    monkeypatch.setattr(bench.report.diagnostics, "write", write)


@pytest.mark.usefixtures("unwritten")
def test_of_many_levels_the_first_six_are_drawn_and_the_page_says_so(tmp_path: Path) -> None:
    arrays = {f"counts/level{i}": np.arange(5) + i for i in range(11)}
    said, figures = sentences(tmp_path, arrays, {"vocab_sizes": [5] * 11})
    assert said[0] == "The first 6 of 11 levels are shown." and "code_counts" in figures
    archive = read_archive(tmp_path / "d" / "0123456789ab.npz")
    assert [suffix for suffix, _ in levels_of(archive)] == [f"/level{i}" for i in range(11)]
    assert [int(level["window"]) for _, level in levels_of(archive)] == [10 + 5 * i for i in range(11)]


def sentences(tmp_path: Path, arrays: dict[str, np.ndarray], layout: dict[str, Any]) -> tuple[list[str], set[str]]:
    """(what the page says is missing, the figures drawn)."""
    run = record("0123456789ab", layout=LAYOUT | layout)
    folder = tmp_path / "d"
    folder.mkdir()
    if arrays:
        archived(folder, run, write_arrays(tmp_path / "arrays", {10: arrays, 20: arrays}))
    else:
        (folder / f"{run.train_id}.npz").write_bytes(b"no archive")
    paths = render_diagnostics("s", [run], folder, None, tmp_path)
    page = paths[-1].read_text()
    return [line[2:] for line in page.splitlines() if line.startswith("- ")], {p.stem for p in paths if p.suffix == ".svg"}


@pytest.mark.usefixtures("unwritten")
def test_a_codebook_of_moving_averages_has_no_gradient_and_the_page_says_so(tmp_path: Path) -> None:
    arrays = one_level(60, 10, np.random.default_rng(0)) | {"code_gradient_norms": np.zeros(0, np.float32)}
    said, figures = sentences(tmp_path, arrays, {})
    assert said[0] == "Its codebook does not learn by gradient: there are no gradient norms; its movement is shown instead."
    assert [s.partition(":")[0] for s in said[1:]] == ["Not recorded", "Not recorded"]         # latents, quantization error
    assert "code_movement_map" in figures and not figures & {"code_gradients", "code_gradient_map"}


@pytest.mark.usefixtures("unwritten")
def test_implicit_codes_have_use_and_age_only(tmp_path: Path) -> None:
    arrays = {n: a for n, a in one_level(60, 10, np.random.default_rng(0)).items() if n in ("counts", "code_ages")}
    said, figures = sentences(tmp_path, arrays | {"code_gradient_norms": np.zeros(0, np.float32)}, {"dims": []})
    assert said[0] == "Its codes are implicit: there is no codebook, and so no norms, gradients or movement of codes."
    assert figures == {"code_counts", "code_age", "code_use_over_time"}


@pytest.mark.usefixtures("unwritten")
def test_continuous_latents_have_no_codes(tmp_path: Path) -> None:
    arrays = {n: a for n, a in sample(3, np.random.default_rng(0)).items() if n in ("latents", "quantized")}
    said, figures = sentences(tmp_path, arrays, {"dims": [], "vocab_sizes": []})
    assert said == ["Its latents are continuous: it has no codes, and so no use, age, norms or gradients of them.",
                    r"Not recorded: the quantization error, by the monitor quantization\_error."]
    assert figures == {"latents"}


@pytest.mark.usefixtures("unwritten")
def test_what_was_not_recorded_is_told_with_its_monitor(tmp_path: Path) -> None:
    said, figures = sentences(tmp_path, {"counts": np.arange(60)}, {})
    assert figures == {"code_counts", "code_use_over_time"}
    assert r"Not recorded: the age of the codes, by the monitor code\_age." in said
    assert r"Not recorded: gradient norms, by the monitor codebook\_gradients." in said and len(said) == 6


@pytest.mark.usefixtures("unwritten")
def test_a_run_without_an_archive_says_what_to_ask_for(tmp_path: Path) -> None:
    said, figures = sentences(tmp_path, {}, {})
    assert figures == set() and len(said) == 1 and said[0].startswith(r"Nothing was recorded: a suite asks for it with train.watch\_every")


@pytest.mark.usefixtures("unwritten")
def test_a_collapsed_constant_or_exploded_codebook_is_drawn(tmp_path: Path) -> None:
    arrays = {"counts": np.eye(40, dtype=np.int64)[3], "code_norms": np.full(40, 1.0, np.float32), "code_ages": np.full(40, 20, np.int32),
              "code_gradient_norms": np.zeros(40, np.float32), "code_movement": np.full(40, np.nan, np.float32)}
    _, figures = sentences(tmp_path, arrays | sample(40, np.random.default_rng(0)), {})
    assert {"code_counts", "code_norms", "code_age", "code_gradients", "code_gradient_map", "latents"} <= figures
    exploded = {"counts": np.zeros(40, np.int64), "code_norms": np.geomspace(1e-3, 1e6, 40).astype(np.float32)}
    (tmp_path / "second").mkdir()
    assert {"code_norms", "code_norms_over_time"} == sentences(tmp_path / "second", exploded, {})[1] - {"code_use_over_time"}


@pytest.mark.usefixtures("unwritten")
def test_only_so_many_runs_are_drawn_and_the_page_names_the_others(tmp_path: Path) -> None:
    runs = [record(f"{i:012d}", layout=LAYOUT, label=f"k = {2 ** i}") for i in range(5)]
    arrays = write_arrays(tmp_path / "arrays", {10: {"counts": np.arange(60)}})
    for run in runs:
        folder = archived(tmp_path / "d", run, arrays)
    runs.append(record("failed", state="failed", reason="x"))
    page = render_diagnostics("s", runs, folder, None, tmp_path, most=2)[-1].read_text()
    assert [line for line in page.splitlines() if line.startswith("##")] == ["## k = 1 (000000)", "## k = 2 (000000)"]
    assert "Not drawn: 3 further runs (k = 4, k = 8, k = 16)." in page
    everything = render_diagnostics("t", runs, folder, None, tmp_path, most=None)[-1].read_text()
    assert everything.count("\n## ") == 5 and "Not drawn" not in everything
    assert render_diagnostics("u", runs, tmp_path / "nowhere", None, tmp_path) == []
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"diagnostics.md"} == {p.name for p in (tmp_path / "t").iterdir()}


@pytest.mark.usefixtures("unwritten")
def test_a_codebook_without_a_finite_number_is_drawn_as_far_as_it_can_be(tmp_path: Path) -> None:
    nothing = np.full(60, np.nan, np.float32)
    arrays = one_level(60, 10, np.random.default_rng(0)) | {"code_norms": nothing, "code_gradient_norms": nothing}
    said, figures = sentences(tmp_path, arrays, {})
    assert figures == {"code_counts", "code_age", "code_movement", "code_movement_map", "code_use_over_time"}
    assert {"Recorded, but nowhere finite: code norms.", "Recorded, but nowhere finite: gradient norms."} < set(said)


@pytest.mark.parametrize("counts", [[42], [128] * 4, [128, 129, 128, 127]])
def test_equal_counts_are_no_trend(counts: list[int]) -> None:
    figure = code_counts(Subject("run", "#000000", {"step": np.array(1), "counts": np.array(counts)}))[0]
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    assert low <= min(counts) / 2 and high >= 2 * max(counts) * 0.99


@pytest.mark.usefixtures("unwritten")
def test_figures_under_a_label_that_a_run_had_before_are_removed(tmp_path: Path) -> None:
    old, new = record("0123456789ab", label="k=60", layout=LAYOUT), record("0123456789ab", label="k=60 d=4", layout=LAYOUT)
    other = record("ba9876543210", label="k=60", layout=LAYOUT)
    for run in (old, other):
        folder = tmp_path / "s" / "diagnostics" / folder_of(run)
        folder.mkdir(parents=True)
        (folder / "code_norms.svg").write_text("")
    (tmp_path / "d").mkdir()
    archived(tmp_path / "d", new, usual(tmp_path / "arrays", steps=1))
    render_diagnostics("s", [new, other], tmp_path / "d", None, tmp_path)
    assert [p.name for p in (tmp_path / "s" / "diagnostics").iterdir()] == [folder_of(other)]
