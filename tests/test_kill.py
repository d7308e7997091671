"""kill -9 at any moment, then the same command: weights, record, curves as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HARNESS = Path(__file__).with_name("kill_harness.py")

# One suite with two runs, vq and then ema_vq, of 40 steps a checkpoint every 5; killed, started again, ...
KILLS = [
    "save:step-*.pt:3:half",        # vq, step 15: the checkpoint is half written
    "save:final.pt:1:aside",        # vq: between its last checkpoint and the file that says it is trained
    "batch:3",                      # vq: in the middle of the evaluation
    "save:record.json:2:half",      # vq: all is measured, but its record does not say so
    "step:18",                      # ema_vq: after step 17, two steps beyond a checkpoint
    "save:*.parquet:2:renamed",     # ema_vq: a stretch of its curves is there, the checkpoint is not
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("kill")
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--chain", ",".join(KILLS), "--folder", str(folder)], text=True,
        capture_output=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return folder, done


def test_a_killed_run_ends_bit_equal_to_an_undisturbed_one(killed: tuple) -> None:
    _, done = killed
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == {"trials": 1, "kills": len(KILLS), "bad": 0}
    assert f"exits {[-9] * len(KILLS) + [0]}: bit-equal" in done.stdout


def test_the_comparison_sees_what_is_different(killed: tuple) -> None:
    """The harness itself can fail: one bit of the weights, one value, one point of a curve."""
    from kill_harness import differences
    from tiny import CPU

    from bench.checkpoint import read_state, write_state
    from bench.runs import run_folders

    folder, done = killed
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = folder / "disturbed", folder / "undisturbed"
    assert differences(ours, theirs) == []
    run = next(iter(run_folders(ours / "runs")))
    final = run.checkpoints / "final.pt"
    before = final.read_bytes()
    state = read_state(final, CPU)
    weight = state["train"]["model"]["encoder.0.weight"]
    weight[0, 0, 0, 0] = weight[0, 0, 0, 0].nextafter(weight.new_tensor(9.0))
    write_state(final, state)
    assert any("encoder.0.weight" in d for d in differences(ours, theirs))
    final.write_bytes(before)
    value = next(run.values.glob("*.json"))
    before = value.read_bytes()
    value.write_bytes(before + b" ")
    assert any(value.name in d for d in differences(ours, theirs))
    value.write_bytes(before)
    record = run.path / "record.json"
    before = record.read_bytes()
    record.write_bytes(before.replace(b'"done"', b'"trained"'))
    assert any("record" in d for d in differences(ours, theirs))
    record.write_bytes(before)


def test_the_same_command_in_a_fresh_process_has_nothing_to_do(killed: tuple) -> None:
    folder, _ = killed
    target = folder / "disturbed"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", str(folder / "killed.yaml"), "--launcher", "debug",
         "--results", str(target / "results"), "--reports", str(target / "reports"),
         "--runs", str(target / "runs")],
        cwd=ROOT, text=True, capture_output=True, timeout=120,
        env=os.environ | {"BENCH_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
