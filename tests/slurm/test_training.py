"""Real training on the `photos` data set, under each fault: where the run resumes, it ends bit-equal to one that nobody
disturbed. All faults of the table in docs/slurm.md that need torch to be shown; the others are in test_launching.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import ROOT, Bench, suite, until
from kill_harness import run_differences
from waiting import queued, release, show, slurm, squeue_state, submit

from bench import submissions
from bench.checkpoint import read_state
from bench.curves import read_curves
from bench.runs import RunFolder

STEPS = 1000
FEW = 4
TOGETHER = 200              # of four processes, which share few cores here


def training(steps: int = STEPS, **resources: object) -> dict:
    """One run of a few seconds that saves ten times."""
    content = suite(seeds=[0], resources={"gpus": 0, "cpus": 1, "hours": 1} | resources)
    content["base"]["tokenizer"] = {"name": "vqvae", "hidden": 16,
                                    "quantizer": {"name": "ema_vq", "codebook_size": 64, "codebook_dim": 8, "init": "samples"}}
    content["base"]["train"] = {"steps": steps, "batch_size": 16, "checkpoint_every": max(1, steps // 10), "log_every": max(1, min(20, steps // 10)),
                                "watch_every": steps // 4, "eval_every": steps // 4}
    if steps == FEW:            # Adam divides by the gradient's size and so makes rounding as large as any gradient
        content["base"]["optimizers"]["tokenizer"]["eps"] = 1e-2
    content["base"]["monitors"] = ["codebook_usage", "codebook_gradients", "codebook_norms"]
    content["base"]["measure"]["values"] = ["usage", "usage_window", "perplexity", "psnr", "ssim"]
    return content


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(cluster, tmp_path, cache) -> Bench:
    return Bench(tmp_path, cache, stub=False)


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory, cache) -> Callable[..., RunFolder]:
    """The same run when nothing happens to it; of each number of processes one."""
    known: dict[str, RunFolder] = {}

    def trained(steps: int = STEPS, **resources: object) -> RunFolder:
        key = json.dumps([steps, resources])
        if key not in known:
            one = Bench(tmp_path_factory.mktemp("undisturbed"), cache, stub=False)
            path = one.write(training(steps, **resources))
            one("run", str(path), "--launcher", "slurm", "--wait", seconds=180)
            known[key] = one.run_folder(path, "run")
        return known[key]

    return trained


@dataclass
class Launched:
    bench: Bench
    path: Path
    job: str
    folder: RunFolder

    def state(self) -> str:
        return self.bench.states(self.path)["run"]

    def note(self) -> str:
        return self.bench.status(self.path)["run"]["note"]

    def in_training(self, step: int = 150) -> None:
        until(lambda: (s := self.folder.read_state()) is not None and s.phase == "training" and s.step >= step, f"step {step}")

    def back_in_the_queue(self) -> None:
        until(lambda: squeue_state(self.job) == "PENDING", "its return to the queue")
        assert self.state() == "pending"
        release(self.job)

    def until_done(self) -> None:
        self.bench.until_states(self.path, {"run": "done"}, seconds=120)

    def retry(self) -> None:
        self.bench("retry", str(self.path), "--launcher", "slurm", "--wait", seconds=180)


def launched(bench: Bench, steps: int = STEPS, **resources: object) -> Launched:
    path = bench.write(training(steps, **resources))
    out = bench("run", str(path), "--launcher", "slurm")
    return Launched(bench, path, re.search(r"submitted: (\d+)", out)[1], bench.run_folder(path, "run"))


# -- what happens to a run; each ends with the run on its way to its end


def time_limit(run: Launched, cluster) -> None:
    slurm("scancel", "--signal=USR2", run.job)
    run.back_in_the_queue()


def administrators_requeue(run: Launched, cluster) -> None:
    slurm("scontrol", "requeue", run.job)
    run.back_in_the_queue()


def preemption(run: Launched, cluster) -> None:
    high = submit("sleep 1", "--partition=high", "--nodes=2", "--exclusive")
    until(lambda: squeue_state(high) == "COMPLETED", "the other job's end")
    run.back_in_the_queue()


def node_failure(run: Launched, cluster) -> None:
    cluster.fail_node(show(run.job)["NodeList"])
    run.back_in_the_queue()


def cancelled_and_retried(run: Launched, cluster) -> None:
    slurm("scancel", run.job)
    assert run.bench.until_states(run.path, {"run": "cancelled"})["run"]["note"].startswith(f"job {run.job} was cancelled")
    run.retry()


def killed_and_retried(run: Launched, cluster) -> None:
    os.kill(run.folder.owner().pid, signal.SIGKILL)
    note = run.bench.until_states(run.path, {"run": "failed"})["run"]["note"]
    assert "SIGKILL (from outside, or out of memory)" in note
    run.retry()


def controller_down_when_time_is_up(run: Launched, cluster) -> None:
    pid = run.folder.owner().pid
    os.kill(pid, signal.SIGSTOP)                # how long the controller takes to end is not to be the run's end as well
    time.sleep(6)                               # the controller saves what it knows of jobs every few seconds
    cluster.stop_daemon("slurmctld")
    os.kill(pid, signal.SIGUSR2)
    os.kill(pid, signal.SIGCONT)
    until(lambda: run.folder.read_state().phase == "waiting", "its checkpoint")
    assert run.state() == "unknown"
    cluster.start_daemon("slurmctld")
    run.back_in_the_queue()


FAULTS = [time_limit, administrators_requeue, preemption, node_failure, cancelled_and_retried, killed_and_retried,
          controller_down_when_time_is_up]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_run_ends_bit_equal_to_an_undisturbed_one_after(fault, cluster, bench, undisturbed):
    theirs = undisturbed()
    if fault is preemption:
        (bench.folder / "config.yaml").write_text("slurm: {partition: low}")
    run = launched(bench)
    run.in_training(150 if fault is not controller_down_when_time_is_up else 20)
    fault(run, cluster)
    run.until_done()
    assert run_differences(run.folder, theirs) == []
    assert run.folder.record().cost["restarts"] >= 1
    until(lambda: not queued(), "the end of its job")


def test_two_launchers_at_once_of_which_one_is_killed_train_a_run_once(bench, undisturbed):
    theirs = undisturbed()
    path = bench.write(training())
    first, second = (bench.start("run", str(path), "--launcher", "slurm", "--wait") for _ in range(2))
    folder = bench.run_folder(path, "run")
    until(lambda: (s := folder.read_state()) is not None and s.step > 0, "the first steps")
    first.kill()
    assert len(queued()) == 1
    out, err = second.communicate(timeout=120)
    first.communicate()
    assert second.returncode == 0, out + err
    assert run_differences(folder, theirs) == [] and folder.record().cost["restarts"] == 0


def test_a_local_queue_survives_its_command_and_comes_to_the_same_end(bench, undisturbed):
    theirs = undisturbed()
    path = bench.write(training())
    process = bench.start("run", str(path), "--launcher", "local")
    folder = bench.run_folder(path, "run")
    until(lambda: (s := folder.read_state()) is not None and s.step > 0, "the first steps")
    process.kill()
    process.communicate()
    bench("status", str(path), "--watch", seconds=120)
    assert run_differences(folder, theirs) == []


def test_a_disk_that_is_full_fails_the_run_and_space_lets_it_continue(bench, undisturbed, tmp_path):
    theirs, small = undisturbed(), tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], capture_output=True).returncode == 0
    path = bench.write(training())
    try:
        bench.environment["BENCH_RUNS"] = str(small)
        if not mounted:                         # not allowed here: then no file may be larger than 200 KB
            (bench.folder / "config.yaml").write_text("slurm: {setup: [ulimit -f 200]}")
        bench("run", str(path), "--launcher", "slurm")
        folder = RunFolder(small, bench.status(path)["run"]["train_id"])
        if mounted:
            until(lambda: list(folder.checkpoints.glob("step-*.pt")), "a checkpoint")
            free = shutil.disk_usage(small).free
            (small / "filler").write_bytes(bytes(free - 20_000))
        note = bench.until_states(path, {"run": "failed"})["run"]["note"].lower()
        assert ("no space left on device" if mounted else "file too large") + " while writing" in note and "free some space" in note
        (small / "filler").unlink(missing_ok=True)
        (bench.folder / "config.yaml").unlink(missing_ok=True)
        bench("retry", str(path), "--launcher", "slurm", "--wait", seconds=180)
        assert run_differences(folder, theirs) == []
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_two_processes_on_each_of_two_nodes_equal_one(bench, undisturbed):
    """Over few steps: rounding in another order grows by training, as it does from any other cause. Among 32,768 test
    codes a few lie so near to two codes that it decides; with hundreds of codes counts are equal: tests/test_processes.py.
    """
    one, four = undisturbed(FEW), undisturbed(FEW, nodes=2, processes=2)
    ours, theirs = (f.record() for f in (four, one))
    assert ours.provenance["processes"] == 4 and theirs.provenance["processes"] == 1
    for value_id, value in theirs.values.items():
        assert ours.values[value_id].images == value.images
        near = {"usage": 0, "usage_window": 0, "perplexity": 1e-4}.get(value.name, 1e-5)
        assert ours.values[value_id].number == pytest.approx(value.number, rel=near, abs=0), value.name
    rows = list(zip(read_curves(four.curves), read_curves(one.curves), strict=True))
    assert len(rows) > FEW and all(a[:2] == b[:2] for a, b in rows)
    assert {name: (a, b) for (step, name, a), (_, _, b) in rows
            if abs(a - b) > (1e-4 if "perplexity" in name else 1e-6) * max(abs(b), 1e-2)} == {}
    finals = [read_state(f.checkpoints / "final.pt", "cpu")["train"]["model"] for f in (four, one)]
    for name in [name for name, part in finals[1].items() if isinstance(part, torch.Tensor)]:
        four, one = (final[name].double() for final in finals)
        assert (four - one).abs().max() <= 1e-6 * one.abs().max().clamp_min(1e-2), name


def test_a_process_that_dies_ends_the_job_at_once_and_the_run_continues(bench, undisturbed):
    theirs = undisturbed(TOGETHER, nodes=2, processes=2)
    run = launched(bench, TOGETHER, nodes=2, processes=2)
    run.in_training(40)
    main = run.folder.owner().pid
    others = [int(pid) for pid in subprocess.run(["pgrep", "-f", f"submitit.core._submit.*{run.job}|{run.folder.runs}"],
                                                 capture_output=True, text=True).stdout.split()]
    victim = next(pid for pid in others if pid != main and b"SLURM_PROCID=3" in Path(f"/proc/{pid}/environ").read_bytes())
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    note = run.bench.until_states(run.path, {"run": "failed"})["run"]["note"]
    assert time.monotonic() - began < 30 and not queued()
    assert "another process of this run died or stopped answering" in note or "SIGKILL" in note
    run.retry()
    assert run_differences(run.folder, theirs) == []


def test_several_processes_are_stopped_together_and_continue(bench, undisturbed):
    theirs = undisturbed(TOGETHER, nodes=2, processes=2)
    run = launched(bench, TOGETHER, nodes=2, processes=2)
    run.in_training(40)
    slurm("scancel", "--signal=USR2", run.job)
    run.back_in_the_queue()
    assert read_state(max(run.folder.checkpoints.glob("step-*.pt")), "cpu")["train"]["step"] == run.folder.read_state().step
    run.until_done()
    assert run_differences(run.folder, theirs) == []


def test_torchrun_does_the_same_without_a_scheduler(bench, undisturbed):
    theirs = undisturbed(TOGETHER, nodes=2, processes=2)
    path = bench.write(training(TOGETHER))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "bench"]
    for words in (["run", str(path)], ["eval", str(path), "measure.values=[usage,usage_window,perplexity,psnr,ssim,ssim]"][:2]):
        done = subprocess.run([*command, *words], cwd=ROOT, env=bench.env(), capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
    assert run_differences(bench.run_folder(path, "run"), theirs) == []


def test_code_that_changed_between_submission_and_start_is_told(bench, tmp_path):
    clone = tmp_path / "clone"
    if subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)]).returncode:
        pytest.fail("the tests of submission need the repository")
    bench.root = clone
    (bench.folder / "config.yaml").write_text("slurm: {extra: [--hold]}")
    run = launched(bench, TOGETHER)
    assert run.state() == "pending"
    with (clone / "bench" / "train.py").open("a") as file:
        file.write("\n# somebody could not wait\n")
    slurm("scontrol", "release", run.job)
    run.until_done()
    facts = run.folder.record().provenance
    assert (facts["dirty"] is True and set(facts["submitted"]) == {"diff", "dirty"}) or facts["submitted"] == {"diff": None}
    [log] = submissions.logs(run.folder)
    assert "this is not the code that was submitted" in log.read_text()
    bench("run", str(run.path), "--launcher", "slurm")
    assert "trained with code that changed after submission" in (bench.folder / "reports" / "six" / "table.md").read_text()
