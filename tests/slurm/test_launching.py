"""`bench run --launcher slurm`, status, cancel, retry and every fault, with runs that need no torch."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
import yaml
from commands import Bench, at_step, steps_done, suite
from waiting import queued, release, show, slurm, squeue_state, submit, until

from bench import submissions
from bench.runs import RunFolder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(cluster, tmp_path, cache) -> Bench:
    return Bench(tmp_path, cache)


def launched(bench: Bench, do: dict[str, str], *words: str, **changes: object):
    """(suite file, its job's id or its array's)."""
    path = bench.write(suite(**changes))
    out = bench("run", str(path), "--launcher", "slurm", *words, do=do)
    return path, re.search(r"submitted: (\d+)", out)[1]


# -- submission


def test_a_suite_goes_as_one_array_returns_at_once_and_is_not_submitted_twice(bench):
    path, array = launched(bench, {"*": "sleep:5"}, "-j", "2")
    assert sorted(queued()) == [f"{array}_{i}" for i in range(6)]
    said = bench("run", str(path), "--launcher", "slurm")           # nothing is missing: all is in somebody's hands
    assert "nothing to do" in said and len(queued()) <= 6
    rows = bench.until_states(path, {f"seed={i}": "done" for i in range(6)})
    folders = [bench.folder / "runs" / row["train_id"] for row in rows.values()]
    began = sorted(yaml.safe_load((f / "environment.json").read_text())["started"] for f in folders)
    ended = sorted(float((f / "ended").read_text()) for f in folders)
    assert all(began[i + 2] > ended[i] for i in range(4))           # never more than two at a time
    said = bench("run", str(path), "--launcher", "slurm")
    assert "nothing to do: every run is trained and measured" in said and not queued()


def test_wait_follows_to_the_end_and_the_exit_code_tells(bench):
    path = bench.write(suite(seeds=[0, 1]))
    said = bench("run", str(path), "--launcher", "slurm", "--wait", do={"seed=1": "fail:7"}, code=1)
    assert "failed seed=1: the loss became NaN at step 7" in said and "bench run" in said
    assert bench.states(path) == {"seed=0": "done", "seed=1": "failed"}


def test_plan_shows_the_script_that_is_then_submitted(bench):
    path = bench.write(suite(resources={"gpus": 1, "cpus": 2, "memory_gb": 1.5, "hours": 0.6}))
    (bench.folder / "config.yaml").write_text(yaml.safe_dump({"slurm": {
        "partition": "low", "extra": ["--comment=for the paper"], "setup": ["export GREETING=hello"], "signal_seconds": 60}}))
    planned = yaml.safe_load(bench("plan", str(path), "--launcher", "slurm", "--json"))
    assert not queued()
    said = bench("run", str(path), "--launcher", "slurm", do={"*": "sleep:1"})
    array = re.search(r"submitted: (\d+)", said)[1]
    [script] = [p for p in (bench.folder / "runs" / "_jobs").rglob("*submission.sh") if array in p.name][:1]
    assert planned["scripts"] == [re.sub(r"_jobs/[\d-]+/", "_jobs/JOBS/", script.read_text())]
    job = show(f"{array}_0")
    assert (job["Partition"], job["TimeLimit"], job["Requeue"], job["Comment"]) == ("low", "00:36:00", "1", "for")
    assert "export GREETING=hello" in planned["scripts"][0] and "#SBATCH --signal=USR2@60" in planned["scripts"][0]
    rows = bench.until_states(path, {"seed=0": "done"})
    told = yaml.safe_load((bench.folder / "runs" / rows["seed=0"]["train_id"] / "environment.json").read_text())
    assert told["gpus"] in ("0", "1")


def test_runs_with_other_resources_go_in_an_array_of_their_own(bench):
    path = bench.write(suite(axes={"tokenizer.quantizer.codebook_size": [16, 32, 64]}, seeds=[0, 1], override=[
        {"match": {"tokenizer.quantizer.codebook_size": 32}, "set": {"resources.hours": 2}}]))
    said = bench("run", str(path), "--launcher", "slurm", do={"*": "sleep:1"})
    first, second = re.search(r"submitted: (\d+)_\[0-3\], (\d+)_\[0-1\]", said).groups()
    assert show(f"{first}_3")["TimeLimit"] == "01:00:00" and show(f"{second}_1")["TimeLimit"] == "02:00:00"


def test_a_habit_that_is_not_the_sites_is_refused_in_one_sentence(bench):
    path = bench.write(suite())
    for content, sentence in (
        ({"partitoin": "low"}, "slurm.partitoin: no such key; did you mean partition"),
        ({"extra": ["--time=5"]}, "slurm.extra.* --time cannot be set here: it is the suite's resources.hours"),
        ({"extra": ["mem 5"]}, "'mem 5' is not an sbatch option"),
    ):
        (bench.folder / "config.yaml").write_text(yaml.safe_dump({"slurm": content}))
        assert re.search(sentence, bench("run", str(path), "--launcher", "slurm", code=2))
    assert not queued()


def test_what_slurm_refuses_is_said_in_its_words_and_leaves_nothing_behind(bench):
    path = bench.write(suite())
    (bench.folder / "config.yaml").write_text("slurm: {partition: nowhere}")
    said = bench("run", str(path), "--launcher", "slurm", code=2)
    assert "SLURM refused the jobs" in said and "invalid partition" in said
    assert set(bench.states(path).values()) == {"new"}
    (bench.folder / "config.yaml").unlink()
    bench("run", str(path), "--launcher", "slurm", "--wait", seconds=90)
    assert set(bench.states(path).values()) == {"done"}


def test_two_launchers_at_once_submit_each_run_once(bench):
    path = bench.write(suite())
    both = [bench.start("run", str(path), "--launcher", "slurm", do={"*": "sleep:5"}) for _ in range(2)]
    said = "".join("".join(process.communicate(timeout=60)) for process in both)
    elements = [job for job in queued()]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(elements) == 6, said


def test_a_launcher_that_died_before_it_submitted_blocks_nobody(bench):
    path = bench.write(suite(seeds=[0]))
    folder = bench.run_folder(path, "run").create()
    if (child := os.fork()) == 0:
        submissions.claim(folder, "slurm", None)
        os._exit(0)
    os.waitpid(child, 0)
    assert bench.states(path) == {"run": "new"}
    bench("run", str(path), "--launcher", "slurm", "--wait")
    assert bench.states(path) == {"run": "done"}


# -- what SLURM does to jobs, and that they go on by themselves


def resumed(bench: Bench, path, folder: RunFolder, element: str, stopped: int, label: str = "run") -> None:
    """Back in the queue, and then every step done exactly once and in order."""
    row = bench.until_states(path, {label: "pending"})[label]
    assert row["requeued"] >= 1
    until(lambda: squeue_state(element) == "PENDING", "its return to the queue")
    release(element)
    bench.until_states(path, {label: "done"})
    assert steps_done(folder) == list(range(1, 121)) and stopped < 120
    assert folder.read_state().requeued >= 1 and folder.read_state().restarts >= 1


def test_the_signal_before_a_time_limit_saves_and_requeues(bench):
    path, job = launched(bench, {"*": "steps:120"}, seeds=[0])
    folder = bench.run_folder(path, "run")
    at_step(folder, 5)
    slurm("scancel", "--signal=USR2", job)
    until(lambda: folder.read_state().phase == "waiting", "its checkpoint")
    assert "near its time limit (SIGUSR2); continues from step" in folder.read_state().reason
    resumed(bench, path, folder, job, folder.read_state().step)


def test_an_element_that_an_administrator_requeues_continues(bench):
    path, array = launched(bench, {"*": "steps:120"}, seeds=[0, 1])
    folder = bench.run_folder(path, "seed=0")
    at_step(folder, 5)
    slurm("scontrol", "requeue", f"{array}_0")
    resumed(bench, path, folder, f"{array}_0", folder.read_state().step, "seed=0")
    assert bench.until_states(path, {"seed=1": "done"})["seed=1"]["requeued"] == 0


def test_a_preempted_run_saves_within_its_grace_and_continues(bench):
    (bench.folder / "config.yaml").write_text("slurm: {partition: low}")
    path, job = launched(bench, {"*": "steps:120"}, seeds=[0])
    folder = bench.run_folder(path, "run")
    at_step(folder, 5)
    high = submit("sleep 1", "--partition=high", "--nodes=2", "--exclusive")
    until(lambda: folder.read_state().phase == "waiting", "its checkpoint")
    assert "asked to end (SIGTERM)" in folder.read_state().reason
    until(lambda: squeue_state(high) == "COMPLETED", "the other job's end")
    resumed(bench, path, folder, job, folder.read_state().step)


def test_a_run_continues_after_its_node_failed(cluster, bench):
    path, job = launched(bench, {"*": "steps:120"}, seeds=[0])
    folder = bench.run_folder(path, "run")
    at_step(folder, 5)
    node = show(job)["NodeList"]
    cluster.fail_node(node)
    until(lambda: squeue_state(job) == "PENDING", "its return to the queue")
    row = bench.status(path)["run"]
    assert (row["state"], row["requeued"]) == ("pending", 1)
    release(job)
    bench.until_states(path, {"run": "done"})
    done = steps_done(folder)       # killed in mid-air: a step may be there that its state had not yet told
    assert sorted(set(done)) == list(range(1, 121)) and len(done) <= 121


# -- ends that somebody has to do something about


def test_a_cancelled_run_is_shown_as_cancelled_and_retry_continues_it(bench):
    path, job = launched(bench, {"*": "steps:120"}, seeds=[0])
    folder = bench.run_folder(path, "run")
    at_step(folder, 5)
    slurm("scancel", job)
    row = bench.until_states(path, {"run": "cancelled"})["run"]
    assert "cancelled" in row["note"] and "step" in row["note"]
    bench("retry", str(path), "--launcher", "slurm", "--wait", do={"*": "steps:120"})
    assert steps_done(folder) == list(range(1, 121))


def test_one_pending_element_that_is_cancelled_harms_no_other(bench):
    path, array = launched(bench, {"*": "sleep:2"}, "-j", "1", seeds=[0, 1, 2])
    until(lambda: squeue_state(f"{array}_0") == "RUNNING", "the first one")
    slurm("scancel", f"{array}_2")
    row = bench.until_states(path, {"seed=0": "done", "seed=1": "done", "seed=2": "cancelled"})["seed=2"]
    assert "left the queue before it began" in row["note"]
    said = bench("retry", str(path), "--launcher", "slurm", "--wait")
    assert "1 of 3 runs to do" in said and bench.states(path)["seed=2"] == "done"


def test_bench_cancel_ends_those_that_match_running_or_not(bench):
    path, _ = launched(bench, {"*": "steps:200"}, "-j", "2")
    at_step(bench.run_folder(path, "seed=0"), 3)
    assert "4 of 4 cancelled" in bench("cancel", str(path), "--only", "seed=[0245]")
    states = bench.states(path)
    assert {label for label, state in states.items() if state == "cancelled"} == {"seed=0", "seed=2", "seed=4", "seed=5"}
    assert "cancelled by `bench cancel`" in bench.status(path)["seed=0"]["note"]
    assert "2 of 2 cancelled" in bench("cancel", str(path))
    assert not queued()


def test_a_killed_process_is_a_failure_with_its_log_and_retry_continues_it(bench):
    path, job = launched(bench, {"*": "steps:120"}, seeds=[0])
    folder = bench.run_folder(path, "run")
    at_step(folder, 5)
    os.kill(folder.owner().pid, signal.SIGKILL)
    row = bench.until_states(path, {"run": "failed"})["run"]
    assert re.search(rf"job {job}: .*SIGKILL \(from outside, or out of memory\), at step \d+", row["note"])
    said = bench("status", str(path))
    assert f"starting {folder.train_id}" in said and "--launcher debug" in said
    bench("retry", str(path), "--launcher", "slurm", "--wait", do={"*": "steps:120"})
    assert sorted(set(steps_done(folder))) == list(range(1, 121)) and bench.states(path) == {"run": "done"}


def test_a_time_limit_that_nobody_answered_is_a_failure_that_says_so(bench):
    path, job = launched(bench, {"*": "hang"}, seeds=[0])
    folder = bench.run_folder(path, "run")
    until(lambda: folder.read_state() is not None, "its beginning")
    os.kill(folder.owner().pid, signal.SIGSTOP)             # it cannot save any more
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    row = bench.until_states(path, {"run": "failed"}, seconds=150)["run"]
    assert "it reached its time limit and could not be requeued in time" in row["note"]


def test_failures_are_told_once_for_each_kind(bench):
    path, _ = launched(bench, {"seed=0": "raise", "seed=1": "raise", "seed=2": "raise", "seed=3": "fail:9", "seed=4": "fail:12"})
    bench.until_states(path, {f"seed={i}": "failed" if i < 5 else "done" for i in range(6)})
    said = bench("status", str(path))
    assert len(re.findall(r"^failed", said, re.MULTILINE)) == 2
    assert "failed (3 runs) seed=0, seed=1, seed=2" in said and "SystemError: a fault of the harness itself" in said
    assert "failed (2 runs) seed=3, seed=4: the loss became NaN at step 9" in said


# -- a controller that is down


def test_a_controller_that_is_down_at_submission_is_said_at_once(cluster, bench):
    path = bench.write(suite(seeds=[0, 1]))
    cluster.stop_daemon("slurmctld", signal.SIGKILL)
    began = time.monotonic()
    said = bench("run", str(path), "--launcher", "slurm", code=2)
    assert "the controller does not answer" in said and time.monotonic() - began < 30
    assert "--launcher local to run here" in bench("run", str(path), code=2)        # nothing is started by mistake
    cluster.start_daemon("slurmctld")
    assert set(bench.states(path).values()) == {"new"}
    bench("run", str(path), "--launcher", "slurm", "--wait")
    assert set(bench.states(path).values()) == {"done"}


def test_without_a_controller_status_tells_what_the_folders_know(cluster, bench):
    path, _ = launched(bench, {"seed=0": "train", "*": "steps:400"}, "-j", "2", seeds=[0, 1, 2])
    folder = bench.run_folder(path, "seed=1")
    bench.until_states(path, {"seed=0": "done", "seed=1": "running"})
    bench("cancel", str(path), "--only", "seed=2")
    cluster.stop_daemon("slurmctld", signal.SIGKILL)
    rows = bench.status(path)
    assert (rows["seed=0"]["state"], rows["seed=1"]["state"]) == ("done", "running")
    # told to save while nobody can requeue it: it asks again until the controller is back
    os.kill(folder.owner().pid, signal.SIGUSR2)
    until(lambda: folder.read_state().phase == "waiting", "its checkpoint")
    assert bench.states(path)["seed=1"] == "unknown"
    cluster.start_daemon("slurmctld")
    bench.until_states(path, {"seed=1": "pending"}, seconds=90)


# -- many


def test_thirty_runs_are_submitted_followed_and_reported(bench):
    path = bench.write(suite(seeds=list(range(30))))
    bench("run", str(path), "--launcher", "slurm", "--wait", do={"seed=7": "fail", "seed=8": "die", "*": "train"}, code=1)
    states = list(bench.states(path).values())
    assert (states.count("done"), states.count("failed")) == (28, 2)
    assert (bench.folder / "reports" / "six" / "table.md").is_file()
    bench("retry", str(path), "--launcher", "slurm", "--wait")
    assert set(bench.states(path).values()) == {"done"}


def test_a_run_that_begins_with_anothers_weights_waits_for_its_job(bench):
    stages = [{"label": "two", "train.init_from": {"run": "one"}}, {"label": "one", "train.steps": 3}]
    path = bench.write(suite(seeds=[0], axes={"train.steps": [2]}, include=stages))
    bench("run", str(path), "--launcher", "slurm", do={"*": "sleep:3"})
    rows = bench.until_states(path, dict.fromkeys(("one", "two", "steps=2"), "done"), seconds=120)
    began, ended = {}, {}
    for label, row in rows.items():
        folder = bench.folder / "runs" / row["train_id"]
        began[label] = yaml.safe_load((folder / "environment.json").read_text())["started"]
        ended[label] = float((folder / "ended").read_text())
    assert began["two"] > ended["one"]


def test_a_job_whose_forerunner_was_cancelled_leaves_the_queue_and_both_are_run_again(bench):
    stages = [{"label": "two", "train.init_from": {"run": "one"}}, {"label": "one", "train.steps": 3}]
    path = bench.write(suite(seeds=[0], axes={"train.steps": [2]}, include=stages))
    bench("run", str(path), "--launcher", "slurm", do={"*": "sleep:60"})
    until(lambda: bench.states(path)["one"] == "running", "the first to run")
    bench("cancel", str(path), "--only", "one")
    bench.until_states(path, {"one": "cancelled", "two": "cancelled"}, seconds=90)
    bench("run", str(path), "--launcher", "slurm", do={"*": "train"})
    bench("retry", str(path), "--launcher", "slurm", do={"*": "train"})
    bench.until_states(path, {"one": "done", "two": "done"}, seconds=120)
