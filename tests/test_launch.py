"""Launching with torch-free stub runs: in process, and through submitit's real local jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from bench import launch as launching
from bench import scheduler
from bench.errors import BadInput
from bench.jobs import Job, pack
from bench.launch import gpus_listed, launch, pick_launcher, visible_gpus
from bench.places import Places
from bench.resources import Resources
from bench.runs import RunFolder, State
from bench.submissions import logs as job_logs

ROOT = Path(__file__).parents[1]
STUB = "stub_runs:execute_many"
WAIT = 60.0                     # seconds after which a test gives up; what it waits for takes a second or two


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in launching.THREADS:
        monkeypatch.delenv(name, raising=False)
    return Places(tmp_path / "results", tmp_path / "reports", tmp_path / "runs", tmp_path / "cache")


def plan(places: Places, runs: dict[str, str], **resources: object) -> list[Job]:
    """{train id: what it does} -> packed jobs."""
    files = places.results
    files.mkdir(parents=True, exist_ok=True)
    told = []
    for train_id, do in runs.items():
        path = files / f"{train_id}.json"
        path.write_text(json.dumps({"train_id": train_id, "do": do}))
        told.append((str(path), f"run {train_id}", train_id))
    return pack(told, Resources(**resources))


def environment(places: Places, train_id: str) -> dict:
    return json.loads((places.runs / train_id / "environment.json").read_text())


def until(true, what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline, f"waited {WAIT} s for {what}"
        time.sleep(0.05)


# -- packing and choosing


def test_runs_are_packed_in_order_and_the_rest_is_a_smaller_job():
    jobs = pack([(f"{n}.json", f"run {n}", str(n)) for n in range(5)], Resources(pack=2))
    assert [job.train_ids for job in jobs] == [("0", "1"), ("2", "3"), ("4",)]
    assert jobs[0].run_files == ("0.json", "1.json") and jobs[2].labels == ("run 4",)


def test_an_unknown_launcher_is_bad_input():
    with pytest.raises(BadInput, match="known: auto, debug, local, slurm"):
        pick_launcher("sbatch")


def test_auto_takes_local_and_says_why_where_no_controller_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pick_launcher("auto") == ("local", "there is no sbatch here")
    with pytest.raises(BadInput, match="no sbatch here; --launcher local"):
        pick_launcher("slurm")


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="SLURM is not installed here")
def test_auto_takes_local_where_sbatch_is_installed_and_its_controller_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nothing.conf"))
    monkeypatch.setattr(scheduler, "PING_WITHIN", 1.0)
    name, why = pick_launcher("auto")
    assert name == "local" and "controller" in why


@pytest.mark.parametrize("said, gpus", [
    ("0,1", ["0", "1"]), ("2", ["2"]), ("", []), ("-1", []), ("0,-1,1", ["0"]),
    ("GPU-8932f937,MIG-x", ["GPU-8932f937", "MIG-x"]),
])
def test_visible_gpus_are_those_cuda_would_take(monkeypatch, said, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_gpus() == gpus


def test_nvidia_smis_list_is_read_with_split_gpus_as_their_parts():
    listing = """GPU 0: NVIDIA H200 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-c6d4f1ef-42e4-6de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-3c2eb3dc)
  MIG 3g.20gb     Device  1: (UUID: MIG-2c2eb3dd)
"""
    assert gpus_listed(listing) == ["0", "MIG-3c2eb3dc", "MIG-2c2eb3dd"]


def test_launching_imports_neither_torch_nor_submitit():
    code = "import sys, bench.launch; print([m for m in ('torch', 'submitit') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


# -- slots


def local(places: Places, monkeypatch, cores: int, gpus: list[str], slots: int | None = None):
    monkeypatch.setattr(launching, "usable_cores", lambda: cores)
    monkeypatch.setattr(launching, "visible_gpus", lambda: gpus)
    return launching._Local(places, STUB, slots, {})


def test_cores_are_shared_out_and_so_are_threads(places, monkeypatch):
    launcher = local(places, monkeypatch, 8, [])
    assert launcher.room(Resources(cpus=3)) == ((), 4, Fraction(1, 2))
    launcher.used = Fraction(1)
    assert launcher.room(Resources(cpus=3)) is None
    launcher.used = Fraction(0)
    assert launcher.room(Resources(cpus=64)) == ((), 8, 1)         # more than there is: alone, with all
    assert launcher.room(Resources(gpus=1)) == ((), 1, Fraction(1, 8))


def test_each_gpu_job_has_a_gpu_of_its_own(places, monkeypatch):
    launcher = local(places, monkeypatch, 16, ["2", "5"])
    gpus, threads, share = launcher.room(Resources())
    assert (gpus, threads, share) == (("2",), 8, Fraction(1, 2))
    launcher.load["2"], launcher.used = 1, share
    assert launcher.room(Resources(gpus=1))[0] == ("5",)
    assert launcher.room(Resources(gpus=2)) is None
    launcher.load["2"], launcher.used = 0, Fraction(0)
    assert launcher.room(Resources(gpus=2))[0] == ("2", "5")
    assert launcher.room(Resources(gpus=0))[0] == ()


def test_more_slots_than_gpus_share_them_evenly(places, monkeypatch):
    launcher = local(places, monkeypatch, 16, ["0", "1"], slots=4)
    found = []
    while (room := launcher.room(Resources(gpus=1))) is not None:
        launcher.load[room[0][0]] += 1
        launcher.used += room[2]
        found.append((room[0][0], room[1]))
    assert found == [("0", 4), ("1", 4), ("0", 4), ("1", 4)]


# -- debug


def test_debug_runs_here_one_after_another_and_a_failed_run_stops_nobody(places):
    seen = []
    outcome = launch(
        plan(places, {"a": "train", "b": "fail", "c": "train"}, pack=3), "debug", places=places, target=STUB,
        on_progress=lambda rows: seen.append([(label, state and state.phase) for label, state in rows]),
    )
    assert (outcome.done, outcome.failed, outcome.exit_code) == (2, 1, 1)
    assert [(f.label, f.reason) for f in outcome.failures] == [("run b", "the loss became NaN")]
    assert environment(places, "a")["pid"] == os.getpid()
    assert seen[0] == [("run a", "done"), ("run b", "waiting"), ("run c", "waiting")]
    assert seen[-1] == [("run a", "done"), ("run b", "failed"), ("run c", "done")]


def test_debug_lets_a_fault_of_the_harness_through(places):
    with pytest.raises(SystemError):
        launch(plan(places, {"a": "raise"}), "debug", places=places, target=STUB)


def test_ctrl_c_in_debug_ends_with_130_and_the_rest_unfinished(places, monkeypatch):
    import stub_runs

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stub_runs, "_execute", interrupted)
    outcome = launch(plan(places, {"a": "train", "b": "train"}), "debug", places=places, target=STUB)
    assert (outcome.exit_code, outcome.cancelled) == (130, 2)
    assert RunFolder(places.runs, "a").owner() is None


# -- local


def test_local_jobs_run_apart_packed_and_with_their_share_of_the_cores(places, monkeypatch):
    monkeypatch.setattr(launching, "usable_cores", lambda: 6)
    runs = {"a": "train", "b": "fail", "c": "train", "d": "train"}
    seen = []
    outcome = launch(
        plan(places, runs, cpus=3, pack=2), "local", places=places, target=STUB,
        on_progress=lambda rows: seen.append([state.phase for _, state in rows]),
    )
    assert (outcome.done, outcome.failed, outcome.exit_code) == (3, 1, 1)
    pids = [environment(places, train_id)["pid"] for train_id in runs]
    assert pids[0] == pids[1] != pids[2] == pids[3] and os.getpid() not in pids
    assert {environment(places, train_id)["threads"] for train_id in runs} == {"3"}
    assert {environment(places, train_id)["gpus"] for train_id in runs} == {""}
    assert seen[0] == ["waiting"] * 4 and seen[-1] == ["done", "failed", "done", "done"]
    assert "OMP_NUM_THREADS" not in os.environ
    text = job_logs(RunFolder(places.runs, "b"))[0].read_text()
    assert "starting a train" in text and "starting b fail" in text and "starting c" not in text
    assert outcome.failures[0].log == job_logs(RunFolder(places.runs, "b"))[0]


def test_no_more_local_jobs_at_a_time_than_slots_and_each_gets_its_gpu(places, monkeypatch):
    monkeypatch.setattr(launching, "visible_gpus", lambda: ["4", "7"])
    runs = {name: "sleep:0.3" for name in "abc"}
    outcome = launch(plan(places, runs, gpus=1), "local", places=places, target=STUB)
    assert outcome.done == 3 and len(set(outcome.job_ids)) == 3
    found = sorted((environment(places, name)["started"], environment(places, name)["gpus"]) for name in runs)
    assert {gpu for _, gpu in found[:2]} == {"4", "7"}
    first_ended = min(float((places.runs / name / "ended").read_text()) for name in runs)
    assert found[2][0] > first_ended


def test_a_killed_job_keeps_what_it_finished_blames_the_run_in_progress_and_goes_on_with_the_rest(places):
    runs = {"a": "train", "b": "die", "c": "train", "d": "die"}
    outcome = launch(plan(places, runs, pack=4), "local", places=places, target=STUB)
    assert (outcome.done, outcome.failed, outcome.exit_code) == (2, 2, 1)
    assert [f.label for f in outcome.failures] == ["run b", "run d"]
    assert "died" in outcome.failures[0].reason and outcome.failures[0].tail[-1] == "starting b die"
    pids = {name: environment(places, name)["pid"] for name in runs}
    assert pids["a"] == pids["b"] and len(set(pids.values())) == 3      # c and d again, each alone
    state = RunFolder(places.runs, "b").read_state()
    assert (state.phase, state.step) == ("failed", 1) and RunFolder(places.runs, "b").record() is None


def test_a_job_that_raises_fails_all_its_runs_when_none_had_begun(places):
    runs = {"a": "train", "b": "train"}
    outcome = launch(plan(places, runs, pack=2), "local", places=places, target="stub_runs:fail_at_import")
    assert (outcome.failed, len(outcome.job_ids)) == (2, 1)
    assert outcome.failures[0].reason == "the job raised ImportError: no module named torch"
    assert any("no module named torch" in line for line in outcome.failures[1].tail)


def test_a_failure_of_an_earlier_day_is_not_taken_for_todays(places):
    folder = RunFolder(places.runs, "a").create()
    folder.write_state(State(phase="failed", reason="yesterday"))
    seen = []
    outcome = launch(
        plan(places, {"a": "train"}), "local", places=places, target=STUB,
        on_progress=lambda rows: seen.append(rows[0][1].phase),
    )
    assert outcome.done == 1 and seen[0] == "waiting" and "failed" not in seen


LAUNCH = """
import sys
from pathlib import Path
from bench.jobs import Job
from bench.launch import launch
from bench.places import Places
root = Path(sys.argv[1])
places = Places(root / "results", root / "reports", root / "runs", root / "cache")
jobs = [Job((str(places.results / f"{n}.json"),), (n,), (n,)) for n in sys.argv[2:]]
outcome = launch(jobs, "local", places=places, slots=2, target="stub_runs:execute_many")
print(f"done {outcome.done} cancelled {outcome.cancelled}", flush=True)
sys.exit(outcome.exit_code)
"""


def launcher_process(places: Places, *train_ids: str) -> subprocess.Popen:
    """`bench run` in a process group of its own, as a shell starts it on a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(places.runs.parent), *train_ids], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, start_new_session=True,
    )


def begun(places: Places, *train_ids: str) -> bool:
    return all((places.runs / train_id / "environment.json").exists() for train_id in train_ids)


def test_ctrl_c_stops_the_jobs_which_save_first_and_the_next_launch_continues(places):
    plan(places, {"a": "sleep:600", "b": "sleep:600", "c": "train"})
    process = launcher_process(places, "a", "b", "c")
    until(lambda: begun(places, "a", "b"), "both runs to begin")
    os.killpg(process.pid, signal.SIGINT)           # what a terminal does: launcher and jobs all get it
    out, _ = process.communicate(timeout=WAIT)
    assert (process.returncode, out) == (130, "done 0 cancelled 3\n")
    for train_id in "ab":
        folder = RunFolder(places.runs, train_id)
        state = folder.read_state()
        assert (state.phase, folder.owner()) == ("waiting", None) and "asked to end" in state.reason
        with pytest.raises(ProcessLookupError):
            os.kill(environment(places, train_id)["pid"], 0)
    jobs = plan(places, {"a": "train", "b": "train", "c": "train"}, pack=3)
    assert launch(jobs, "local", places=places, target=STUB).done == 3


def test_a_job_that_does_not_stop_is_killed_in_the_end(places, monkeypatch):
    monkeypatch.setattr(launching, "STOP_WITHIN", 1.0)
    timer = threading.Timer(0, lambda: None)

    def kill_me_once_it_runs(rows) -> None:
        if begun(places, "a") and not timer.is_alive() and not timer.finished.is_set():
            timer.start()
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = launch(
        plan(places, {"a": "hang"}), "local", places=places, target=STUB, on_progress=kill_me_once_it_runs,
    )
    assert (outcome.exit_code, outcome.cancelled) == (130, 1)
    pid = environment(places, "a")["pid"]
    until(lambda: RunFolder(places.runs, "a").owner() is None and not _there(pid), "the job to be gone")


def _there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_somebody_else_has_is_followed_and_not_run_twice(places):
    plan(places, {"a": "sleep:1.5"})
    process = launcher_process(places, "a")
    until(lambda: begun(places, "a"), "the run to begin")
    pid = environment(places, "a")["pid"]
    outcome = launch(plan(places, {"a": "train", "b": "train"}), "local", places=places, target=STUB)
    assert (outcome.done, outcome.busy) == (2, 0) and len(outcome.job_ids) == 1
    assert environment(places, "a")["pid"] == pid
    assert process.communicate(timeout=WAIT)[0] == "done 1 cancelled 0\n"


def test_a_run_that_somebody_else_has_is_left_alone_when_not_waiting(places):
    with RunFolder(places.runs, "a").claim():
        outcome = launch(plan(places, {"a": "train"}), "debug", places=places, target=STUB, wait=False)
    assert (outcome.busy, outcome.exit_code) == (1, 0) and not begun(places, "a")


def test_the_run_of_an_owner_that_dies_is_taken_over(places):
    code = (
        "import sys, time; from pathlib import Path; from bench.runs import RunFolder\n"
        "lease = RunFolder(Path(sys.argv[1]), 'a').claim(); print('claimed', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(places.runs)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )
    assert owner.stdout.readline() == "claimed\n"
    threading.Timer(0.7, owner.kill).start()
    outcome = launch(plan(places, {"a": "train"}), "debug", places=places, target=STUB)
    assert outcome.done == 1 and begun(places, "a")
    owner.communicate()


def test_jobs_go_on_when_their_launcher_is_killed_and_the_next_one_follows_them(places):
    plan(places, {"a": "sleep:2"})
    process = launcher_process(places, "a")
    until(lambda: begun(places, "a"), "the run to begin")
    process.kill()
    process.wait()
    pid = environment(places, "a")["pid"]
    outcome = launch(plan(places, {"a": "train"}), "local", places=places, target=STUB)
    assert outcome.done == 1 and not outcome.job_ids and environment(places, "a")["pid"] == pid
