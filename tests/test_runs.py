"""Run folders: atomic writes, leases with one winner, readers that survive crashes. Torch-free."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import runs
from bench.errors import BadInput
from bench.files import write_atomic
from bench.results import Record, Value
from bench.runs import RunFolder, State, run_folders, server_time

ROOT = Path(__file__).parents[1]
VALUE = Value(
    name="psnr", metric="psnr", number=1.5, unit="dB", direction="higher", images=3, protocol="ours-1",
)


def make_record(**fields) -> Record:
    given = {"train_id": "abc", "label": "a", "state": "done", "spec": {"seed": 1}, "fields": {}, **fields}
    return Record(**given)


def in_another_process(code: str, *args: object) -> subprocess.Popen:
    """A process that imports bench and prints a line when it is ready."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )


CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from bench.runs import RunFolder
lease = RunFolder(Path(sys.argv[1]), "abc").claim()
print("claimed" if lease else "busy", flush=True)
sys.stdin.readline()
"""


def compete(folder: Path, barriers, wins) -> None:
    for trial, barrier in enumerate(barriers):
        run = RunFolder(folder, f"run{trial}")
        barrier.wait()
        if (lease := run.claim()) is not None:
            wins.put((trial, lease.number))
        barrier.wait()


# -- files


def test_an_atomic_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_process_killed_while_writing_leaves_the_old_content(tmp_path):
    """The writer rewrites a 4 MB file for ever; killed at any time, what lies there is one whole version."""
    path = tmp_path / "checkpoints" / "file"
    path.parent.mkdir()
    writer = """
import sys
from pathlib import Path
from bench.files import write_atomic
for n in range(10**6):
    write_atomic(Path(sys.argv[1]), bytes([n % 256]) * 4_000_000)
    if n == 0: print("ready", flush=True)
"""
    for pause in (0.0, 0.013, 0.041):
        process = in_another_process(writer, path)
        process.stdout.readline()
        time.sleep(pause)
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert len(content) == 4_000_000 and len(set(content)) == 1


def test_files_can_be_read_by_the_group_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("content", [b"", b'{"phase": "trai', b"\xff\xfe\x00", b"[]", b'{"phase": "dance"}'])
def test_a_torn_file_is_taken_as_absent_with_a_warning(tmp_path, caplog, content):
    run = RunFolder(tmp_path, "abc").create()
    for path in (run.path / "state.json", run.path / "record.json", run.values / "v1.json"):
        path.write_bytes(content)
    run.write_value("v2", VALUE)
    assert run.read_state() is None and run.record() is None
    assert run.read_values() == {"v2": VALUE}
    assert sum("taken as absent" in message for message in caplog.messages) == 3


def test_nothing_there_is_absent_without_a_warning(tmp_path, caplog):
    run = RunFolder(tmp_path / "nowhere", "abc")
    assert (run.read_state(), run.record(), run.read_spec(), run.owner()) == (None, None, None, None)
    assert run.read_values() == {}
    assert list(run_folders(tmp_path / "nowhere")) == [] and not caplog.messages


def test_state_value_and_record_come_back_as_written(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    state, record = State(phase="training", step=3, steps=10, restarts=2), make_record(values={"v1": VALUE})
    run.write_state(state)
    run.write_value("v1", VALUE)
    run.write_record(record)
    assert (run.read_state(), run.record(), run.read_values()) == (state, record, {"v1": VALUE})
    assert not [name for name in os.listdir(run.path) if name.endswith(".tmp")]


def test_a_record_with_non_finite_numbers_is_written_and_can_be_read(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    value = VALUE.model_copy(update={"number": math.inf, "details": {"fill": math.nan, "ceiling": 0.5}})
    run.write_record(make_record(monitors={"loss": math.nan, "usage": 0.5}, values={"v1": value}))
    record = run.record()
    assert record.monitors == {"usage": 0.5}
    assert record.values["v1"].number is None and "inf" in record.values["v1"].reason
    assert record.values["v1"].details == {"ceiling": 0.5}


def test_a_run_folder_that_cannot_be_made_is_bad_input_that_names_the_way_out(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(BadInput, match="--runs"):
        RunFolder(tmp_path / "runs", "abc").create()


# -- spec


def test_the_same_spec_may_be_written_twice_whatever_its_formatting(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    run.write_spec('{"a": 1, "b": {"c": 2}}')
    run.write_spec(json.dumps({"b": {"c": 2}, "a": 1}, indent=2))
    assert (run.path / "spec.json").read_text() == '{"a": 1, "b": {"c": 2}}'
    assert [r.train_id for r in run_folders(tmp_path)] == ["abc"]


def test_another_spec_under_the_same_id_stops_and_shows_both(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    run.write_spec('{"a": 1, "b": {"c": 2}}')
    with pytest.raises(BadInput) as error:
        run.write_spec('{"a": 1, "b": {"c": 3}}')
    assert "b.c = 2 there, 3 here" in str(error.value)
    assert '{"a": 1, "b": {"c": 2}}' in str(error.value) and '{"a": 1, "b": {"c": 3}}' in str(error.value)


def test_a_torn_spec_is_replaced(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    (run.path / "spec.json").write_text('{"a"')
    run.write_spec('{"a": 1}')
    assert run.read_spec() == {"a": 1}


# -- claims


def test_of_twelve_processes_that_claim_at_once_one_wins_in_twenty_trials(tmp_path):
    """Half of the trials start with a stale lease, where taking over is what they compete for."""
    processes, trials = 12, 20
    for trial in range(0, trials, 2):
        run = RunFolder(tmp_path, f"run{trial}")
        run.claim().release()
    context = multiprocessing.get_context("fork")
    barriers, wins = [context.Barrier(processes) for _ in range(trials)], context.Queue()
    children = [context.Process(target=compete, args=(tmp_path, barriers, wins)) for _ in range(processes)]
    for child in children:
        child.start()
    found = sorted(wins.get(timeout=60) for _ in range(trials))
    for child in children:
        child.join(60)
    assert wins.empty()
    assert found == [(trial, 1 if trial % 2 == 0 else 0) for trial in range(trials)]


def test_a_living_owner_keeps_its_run_and_is_named(tmp_path):
    process = in_another_process(CLAIM_AND_WAIT, tmp_path)
    assert process.stdout.readline() == "claimed\n"
    run = RunFolder(tmp_path, "abc")
    owner = run.owner()
    assert run.claim() is None
    assert owner.pid == process.pid and owner.here and 0 <= owner.quiet < 60
    assert str(process.pid) in str(owner)
    process.communicate("\n")


def test_after_kill_9_the_run_can_be_claimed_at_once(tmp_path):
    process = in_another_process(CLAIM_AND_WAIT, tmp_path)
    assert process.stdout.readline() == "claimed\n"
    process.send_signal(signal.SIGKILL)
    run, deadline = RunFolder(tmp_path, "abc"), time.monotonic() + 5
    # Not waited for: it stays a zombie, as under a launcher that has not looked yet.
    while run.owner() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    lease = run.claim()
    assert lease is not None and lease.number == 1
    lease.release()
    process.communicate()


def test_a_process_number_given_to_another_process_does_not_keep_a_run(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, "abc")
    lease = run.claim()
    lease._stop.set()
    path = run.path / "lease.000000"
    signature = json.loads(path.read_text())
    path.write_text(json.dumps({**signature, "started": "1"}))
    assert run.owner() is None and run.claim().number == 1


def test_a_released_run_can_be_claimed_at_once_and_leases_are_neither_renamed_nor_deleted(tmp_path):
    run = RunFolder(tmp_path, "abc")
    for number in range(3):
        with run.claim() as lease:
            assert lease.number == number and not lease.lost() and run.claim() is None
        assert run.owner() is None
        lease.release()
    names = sorted(name for name in os.listdir(run.path) if name.startswith("lease"))
    assert names == [f"lease.{n:06d}{end}" for n in range(3) for end in ("", ".released")]


def foreign_lease(run: RunFolder, number: int = 0, **fields: object) -> Path:
    """A lease as another machine would have left it."""
    run.create()
    path = run.path / f"lease.{number:06d}"
    path.write_text(json.dumps({
        "host": "elsewhere", "machine": "elsewhere", "pid": 1, "started": "1", "since": 0.0, **fields,
    }))
    return path


def test_another_machines_lease_is_free_after_ten_minutes_without_a_beat(tmp_path):
    run = RunFolder(tmp_path, "abc")
    path = foreign_lease(run)
    now = server_time(tmp_path)
    os.utime(path, (now - 590, now - 590))
    assert run.claim() is None and not run.owner().here and run.owner().quiet > 500
    os.utime(path, (now - 610, now - 610))
    assert run.owner() is None and run.claim().number == 1


def test_silence_is_told_by_the_file_servers_clock_not_by_ours(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, "abc")
    foreign_lease(run)
    monkeypatch.setattr(time, "time", lambda: 4e9)      # our clock is a century ahead
    assert run.claim() is None and run.owner() is not None


def test_a_job_that_slurm_requeued_takes_its_run_back_at_once(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, "abc")
    foreign_lease(run, job_id="big/17_3", requeued=0)
    told = {"JOB_ID": "20", "ARRAY_JOB_ID": "17", "ARRAY_TASK_ID": "3", "CLUSTER_NAME": "big"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run.claim() is None                          # another process of the same job: it may be alive
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lease = run.claim()
    assert lease.number == 1 and run.owner().job_id == "big/17_3"
    lease.release()


def test_a_lease_whose_creator_died_before_signing_is_free_after_half_a_minute(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    path = run.path / "lease.000000"
    path.touch()
    assert run.claim() is None and run.owner() is None
    now = server_time(tmp_path)
    os.utime(path, (now - 31, now - 31))
    assert run.claim().number == 1


def test_an_owner_that_was_given_up_sees_that_it_lost_the_run(tmp_path):
    run = RunFolder(tmp_path, "abc")
    lease = run.claim()
    assert not lease.lost()
    foreign_lease(run, 1)
    assert lease.lost()
    lease.release()
    assert run.owner().host == "elsewhere"              # releasing a lost lease frees nobody else's


def test_an_owner_whose_folder_was_removed_has_lost_the_run(tmp_path):
    run = RunFolder(tmp_path, "abc")
    lease = run.claim()
    run.path.rename(tmp_path / "away")
    assert lease.lost()
    lease.beat()
    lease.release()


def test_a_lease_beats_by_itself_until_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BEAT_EVERY", 0.02)
    run = RunFolder(tmp_path, "abc")
    with run.claim() as lease:
        os.utime(lease.path, (0, 0))
        deadline = time.monotonic() + 5
        while lease.path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.owner().quiet < 60
    lease._thread.join(5)
    assert not lease._thread.is_alive()


def test_a_new_owner_removes_what_a_killed_one_was_writing_aside(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    (run.checkpoints / ".step-1.pt.4711.abcd.tmp").touch()
    (run.checkpoints / "step-0.pt").touch()
    with run.claim():
        assert os.listdir(run.checkpoints) == ["step-0.pt"]


def test_five_thousand_restarts_leave_claiming_and_asking_fast(tmp_path):
    run = RunFolder(tmp_path, "abc").create()
    for number in range(5000):
        (run.path / f"lease.{number:06d}").touch()
        (run.path / f"lease.{number:06d}.released").touch()
    started = time.perf_counter()
    with run.claim() as lease:
        assert lease.number == 5000
        for _ in range(10):
            assert not lease.lost() and run.owner() is not None
    assert time.perf_counter() - started < 2.0          # measured: 0.1 s
