"""The two-dimensional example: what the published animation shows, seen by counting."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.errors import BadInput
from bench.points import Trace, points_suite, run_points
from bench.report.points import animation, render_points
from bench.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "suites/toy2d.yaml"


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    suite = points_suite(SUITE)
    wanted = {"VQ, cross-entropy", "VQ", "OptVQ", "FSQ"}
    fewer = tuple(e for e in suite.quantizers if e.title in wanted)
    train = suite.train.model_copy(update={"frame_every": 250})
    return {t.title: t for t in run_points(suite.model_copy(update={"quantizers": fewer, "train": train}))}


def test_cross_entropy_collapses_further_than_distances_and_transport_not_at_all(traces: dict[str, Trace]) -> None:
    used = {title: trace.used[-1] for title, trace in traces.items()}
    assert used["VQ, cross-entropy"] < used["VQ"] < used["OptVQ"] == 32
    assert traces["OptVQ"].error < traces["VQ"].error < traces["VQ, cross-entropy"].error


def test_all_see_the_same_points_which_drift(traces: dict[str, Trace]) -> None:
    one, other = traces["VQ"], traces["OptVQ"]
    np.testing.assert_array_equal(one.points, other.points)
    np.testing.assert_allclose(one.points[-1] - one.points[0], np.broadcast_to([1.5, 1.0], (100, 2)), atol=1e-5)


def test_points_choose_their_nearest_code(traces: dict[str, Trace]) -> None:
    trace = traces["VQ"]
    distances = ((trace.points[:, :, None] - trace.codes[:, None]) ** 2).sum(-1)
    np.testing.assert_array_equal(trace.chosen, distances.argmin(-1))
    assert trace.error == pytest.approx(distances[-1].min(-1).mean() / 2, rel=1e-5)


def test_an_implicit_code_stands_where_its_points_are(traces: dict[str, Trace]) -> None:
    trace = traces["FSQ"]
    centres = trace.centres(-1)
    for k in np.unique(trace.chosen[-1]):
        np.testing.assert_allclose(centres[k], trace.points[-1][trace.chosen[-1] == k].mean(0), rtol=1e-5)


def test_the_animation_has_every_frame_and_the_report_its_files(traces: dict[str, Trace], tmp_path: Path) -> None:
    shown = list(traces.values())
    picture = Image.open(io.BytesIO(animation(shown)))
    assert picture.format == "WEBP" and picture.n_frames == len(shown[0].steps) == 5
    paths = render_points("toy", "Which?", shown, tmp_path)
    assert all(p.is_file() for p in paths)
    assert f"| VQ | {traces['VQ'].used[-1]} | 32 |" in (tmp_path / "toy/table.md").read_text()


@pytest.mark.parametrize(("old", "new", "says"), [
    ("count: 100", "count: 0", r"toy.yaml:\d+: points.count = 0: .*greater than 0"),
    ("levels: [8, 4]", "levels: [8, 4, 4]", r"quantizers.7.quantizer = 'FSQ': the points have two coordinates"),
    ("codebook_size: 32, projection", "codebook_sise: 32, projection", r"quantizers.6.quantizer.codebook_sise"),
])
def test_bad_input_names_file_key_and_value(old: str, new: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(SUITE.read_text().replace(old, new))
    with pytest.raises(BadInput, match=says):
        points_suite(tmp_path / "toy.yaml")


def test_other_commands_say_that_it_has_no_runs() -> None:
    with pytest.raises(BadInput, match="a suite of points has no runs"):
        Suite.load(SUITE)
