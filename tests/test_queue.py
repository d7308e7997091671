"""Local jobs as a user starts, leaves, finds and stops them: runs that need no torch, processes that are real."""

from __future__ import annotations

import json
import os
import signal

import pytest
from commands import Bench, at_step, steps_done, suite, until

from bench import drive, submissions
from bench.runs import RunFolder, process_gone, process_start


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path, cache) -> Bench:
    return Bench(tmp_path, cache, {"CUDA_VISIBLE_DEVICES": ""})


def local(path, *words: str) -> tuple[str, ...]:
    return "run", str(path), "--launcher", "local", *words


def test_a_queue_goes_on_by_itself_and_the_same_command_follows_it(bench):
    path = bench.write(suite(seeds=[0, 1, 2]))
    said = bench(*local(path, "--no-wait", "-j", "1"), do={"*": "steps:20"})
    assert "3 pending" in said and "`bench status six --watch` follows them" in said
    said = bench(*local(path))                              # takes nothing away, submits nothing, stays
    assert "seed=2: done" in said and set(bench.states(path).values()) == {"done"}
    folders = [bench.run_folder(path, f"seed={i}") for i in range(3)]
    assert all(steps_done(folder) == list(range(1, 21)) for folder in folders)
    assert len(list(folders[0].jobs.glob("*.claim"))) == 1
    began = sorted((f.path / "environment.json").stat().st_mtime for f in folders)
    ended = sorted(float((f.path / "ended").read_text()) for f in folders)
    assert all(began[i + 1] > ended[i] for i in range(2))


def test_closing_the_terminal_ends_the_command_and_not_its_runs(bench):
    path = bench.write(suite(seeds=[0, 1]))
    process = bench.start(*local(path, "-j", "1"), do={"*": "steps:30"})
    folder = bench.run_folder(path, "seed=0")
    at_step(folder, 1)
    os.killpg(process.pid, signal.SIGHUP)                   # what a terminal does to all that belong to it
    assert process.wait(20) == -signal.SIGHUP
    process.communicate()
    assert bench.states(path)["seed=1"] == "pending"        # the waiting one too
    bench.until_states(path, {"seed=0": "done", "seed=1": "done"})


def test_a_command_that_is_killed_leaves_its_queue_alone(bench):
    path = bench.write(suite(seeds=[0, 1]))
    process = bench.start(*local(path, "-j", "1"), do={"*": "steps:30"})
    at_step(bench.run_folder(path, "seed=0"), 1)
    process.kill()
    process.communicate()
    said = bench("status", str(path), "--watch")
    assert "2 done" in said


def test_ctrl_c_stops_the_runs_which_save_first_and_the_same_command_continues(bench):
    path = bench.write(suite(seeds=[0, 1]))
    process = bench.start(*local(path, "-j", "1"), do={"*": "steps:60"})
    folder = bench.run_folder(path, "seed=0")
    at_step(folder, 3)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    process.communicate()
    row = bench.status(path)["seed=0"]
    assert row["state"] == "resume" and "continues from step" in row["note"] and folder.owner() is None
    assert bench.states(path)["seed=1"] == "new"
    bench(*local(path), do={"*": "steps:60"})
    assert steps_done(folder) == list(range(1, 61)) and folder.read_state().restarts == 1


def test_ctrl_c_of_a_second_command_leaves_the_queue_of_the_first_alone(bench):
    path = bench.write(suite(seeds=[0]))
    bench(*local(path, "--no-wait"), do={"*": "steps:150"})
    folder = bench.run_folder(path, "run")
    at_step(folder, 1)
    second = bench.start(*local(path))
    until(lambda: folder.read_state().step > 60, "some steps")
    os.killpg(second.pid, signal.SIGINT)
    second.communicate(timeout=30)
    assert second.returncode == 130
    bench.until_states(path, {"run": "done"})
    assert folder.read_state().restarts == 0


@pytest.mark.parametrize("holder", ["queue", "task"])
def test_cancel_asks_the_task_of_a_run_to_end_and_never_the_queue(holder, tmp_path, monkeypatch):
    """A queue has a run for a moment, too: while it writes that the run was cancelled."""
    folder = RunFolder(tmp_path, "abc").create()
    ticket = submissions.claim(folder, "local", None)                   # of this process
    if holder == "task":
        ticket.update(pid=1)                                            # the queue is another one
    asked = []
    monkeypatch.setattr(drive.os, "kill", lambda pid, number: asked.append((pid, number)) if number else None)
    monkeypatch.setattr(drive, "CANCEL_WITHIN", 0.3)
    with folder.claim():
        drive._end_here([folder])
    assert asked == ([(os.getpid(), signal.SIGTERM)] if holder == "task" else [])


def test_cancel_ends_running_and_waiting_runs_and_retry_continues_them(bench):
    path = bench.write(suite(seeds=[0, 1, 2]))
    bench(*local(path, "--no-wait", "-j", "1"), do={"*": "steps:120"})
    folder = bench.run_folder(path, "seed=0")
    at_step(folder, 3)
    assert "2 of 2 cancelled" in bench("cancel", str(path), "--only", "seed=[01]")
    rows = bench.until_states(path, {"seed=0": "cancelled", "seed=1": "cancelled", "seed=2": "done"})
    assert "cancelled by `bench cancel`" in rows["seed=0"]["note"]
    said = bench("retry", str(path), "--launcher", "local", do={"*": "steps:120"})
    assert "2 of 3 runs to do" in said and steps_done(folder) == list(range(1, 121))
    assert set(bench.states(path).values()) == {"done"}


def test_cancelling_everything_at_once_lets_nothing_begin(bench):
    path = bench.write(suite())
    bench(*local(path, "--no-wait", "-j", "2"), do={"*": "steps:400"})
    assert "6 of 6 cancelled" in bench("cancel", str(path))
    assert set(bench.states(path).values()) == {"cancelled"}


def test_a_queue_that_is_killed_loses_what_waited_and_not_what_runs(bench):
    path = bench.write(suite(seeds=[0, 1]))
    bench(*local(path, "--no-wait", "-j", "1"), do={"*": "steps:60"})
    at_step(bench.run_folder(path, "seed=0"), 1)
    [folder] = {f.parent for f in (bench.folder / "runs" / "_jobs").glob("*/queue.json")}
    queue = int(bench.status(path)["seed=1"]["note"].rpartition(" ")[2])
    os.kill(queue, signal.SIGKILL)
    until(lambda: process_gone(queue, process_start(queue) or ""), "the queue's end")
    assert bench.states(path) == {"seed=0": "running", "seed=1": "new"} and folder.is_dir()
    bench(*local(path))
    assert set(bench.states(path).values()) == {"done"}


def test_logs_follow_a_run_to_its_end(bench):
    path = bench.write(suite(seeds=[0]))
    bench(*local(path, "--no-wait"), do={"*": "steps:40"})
    said = bench("logs", str(path), "run", "-f")
    assert "starting" in said and said.count("Exiting after successful completion") >= 1
    assert bench.states(path) == {"run": "done"}


def test_each_local_job_sees_one_gpu_and_no_more_run_than_there_are(bench):
    bench.environment["CUDA_VISIBLE_DEVICES"] = "3,5"
    path = bench.write(suite(seeds=[0, 1, 2], resources={"gpus": 1, "cpus": 1}))
    bench(*local(path), do={"*": "sleep:1"})
    folders = [bench.run_folder(path, f"seed={i}") for i in range(3)]
    seen = [json.loads((f.path / "environment.json").read_text())["gpus"] for f in folders]
    assert sorted(set(seen)) == ["3", "5"]


def test_several_processes_of_a_local_run_are_told_apart(bench):
    path = bench.write(suite(seeds=[0], resources={"gpus": 0, "cpus": 1, "processes": 2}))
    bench(*local(path), do={"*": "ranks"})
    folder = bench.run_folder(path, "run")
    assert sorted(p.name for p in folder.path.glob("rank-*")) == ["rank-0-of-2", "rank-1-of-2"]


def test_runs_of_failed_code_are_told_by_kind_with_a_command_that_shows_them(bench):
    path = bench.write(suite())
    said = bench(*local(path), do={"seed=0": "raise", "seed=1": "raise", "seed=2": "die", "*": "train"}, code=1)
    assert "failed (2 runs) seed=0, seed=1: the job raised SystemError: a fault of the harness itself" in said
    assert "failed seed=2: its process died" in said and "--only seed=2 --launcher debug" in said


def test_a_stale_run_is_trained_anew_and_the_old_one_is_kept(bench):
    path = bench.write(suite(seeds=[0]))
    bench(*local(path))
    folder = bench.run_folder(path, "run")
    record = folder.record()
    folder.write_record(record.model_copy(update={"provenance": {"sources": "000000000000"}}))
    assert bench.states(path) == {"run": "stale"}
    assert "nothing to do" in bench("retry", str(path), "--launcher", "local")
    bench("retry", str(path), "--stale", "--launcher", "local")
    assert bench.states(path) == {"run": "done"}
    [aside] = (bench.folder / "runs" / "_stale").iterdir()
    assert RunFolder(aside.parent, aside.name).record().provenance["sources"] == "000000000000"


def test_several_machines_are_refused_without_a_scheduler(bench):
    path = bench.write(suite(seeds=[0], resources={"gpus": 0, "nodes": 2}))
    assert "several machines need --launcher slurm" in bench(*local(path), code=2)
    assert bench.states(path) == {"run": "new"}


def test_a_report_after_a_run_is_the_same_when_it_is_rendered_again(bench):
    path = bench.write(suite(seeds=[0, 1]))
    bench(*local(path))
    folder = bench.folder / "reports" / "six"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    bench("report", str(path))
    assert "table.md" in before and {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_run_is_cancelled_also_while_its_job_is_busy_with_another_one(bench):
    path = bench.write(suite(seeds=[0, 1], resources={"gpus": 0, "cpus": 1, "pack": 2}))
    bench(*local(path, "--no-wait"), do={"*": "steps:40"})
    at_step(bench.run_folder(path, "seed=0"), 1)
    assert "1 of 1 cancelled" in bench("cancel", str(path), "--only", "seed=1")
    bench.until_states(path, {"seed=0": "done", "seed=1": "cancelled"})
    assert not steps_done(bench.run_folder(path, "seed=1"))


def test_a_second_command_that_waited_for_a_failure_says_so(bench):
    path = bench.write(suite(seeds=[0]))
    bench(*local(path, "--no-wait"), do={"*": "fail:3"})
    folder = bench.run_folder(path, "run")
    if folder.read_state() is None or not folder.read_state().ended:
        assert "the loss became NaN at step 3" in bench(*local(path), do={"*": "fail:3"}, code=1)


def test_a_stale_run_that_somebody_has_taken_up_is_left_alone(bench):
    path = bench.write(suite(seeds=[0]))
    bench(*local(path))
    folder = bench.run_folder(path, "run")
    folder.write_record(folder.record().model_copy(update={"provenance": {"sources": "000000000000"}}))
    both = [bench.start("retry", str(path), "--stale", "--launcher", "local", do={"*": "steps:10"}) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list((bench.folder / "runs" / "_stale").iterdir())) == 1 and steps_done(folder) == list(range(1, 11))


def test_more_processes_than_gpus_are_refused(bench):
    path = bench.write(suite(seeds=[0, 1], resources={"gpus": 0, "cpus": 1, "processes": 2}))
    assert "cannot share" in bench("check", str(path), "resources.gpus=1", code=2)
