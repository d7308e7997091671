"""What is understood of SLURM's words, of tickets, of a site's habits and of failures; a real SLURM is in tests/slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import suite
from hypothesis import given
from hypothesis import strategies as st
from stub_runs import execute_many

from bench import plan as planning
from bench import runs, slurm, submissions
from bench.errors import BadInput
from bench.failures import _last_traceback, normalised
from bench.jobs import pack
from bench.places import Places
from bench.resources import Resources
from bench.runs import RunFolder, State, process_start
from bench.scheduler import FINAL, PENDING, RUNNING, JobStatus, _elements
from bench.site import SlurmSite, slurm_site
from bench.suite import Suite
from bench.terminal import duration

ROOT = Path(__file__).resolve().parents[1]


# -- the scheduler's words


def test_no_state_is_both_alive_and_over():
    assert not set(PENDING) & set(RUNNING) and not set(RUNNING) & set(FINAL)
    # a node's failure or a preemption is an end only in the accounting: in the queue it comes before the requeue
    assert set(PENDING) & set(FINAL) == {"PREEMPTED", "NODE_FAIL"}
    assert JobStatus("NODE_FAIL", queued=True).pending and JobStatus("NODE_FAIL", queued=False).ended


@pytest.mark.parametrize("status, words", [
    (JobStatus("FAILED", False, exit_code="0:9"), "SIGKILL (from outside, or out of memory)"),
    (JobStatus("FAILED", False, exit_code="137:0"), "SIGKILL (from outside, or out of memory)"),
    (JobStatus("FAILED", False, exit_code="0:11"), "ended by SIGSEGV"),
    (JobStatus("FAILED", False, exit_code="3:0"), "it ended as FAILED with exit code 3"),
    (JobStatus("OUT_OF_MEMORY", False, exit_code="0:125"), "raise resources.memory_gb"),
    (JobStatus("TIMEOUT", False), "time limit"),
    (JobStatus("", False), "no longer knows it"),
])
def test_an_end_is_told_in_words(status, words):
    assert words in status.why()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=5), st.booleans())
def test_elements_listed_together_are_told_apart(ranges, limited):
    parts = [f"{first}-{first + more}" if more else str(first) for first, more in ranges]
    expected = [f"77_{i}" for first, more in ranges for i in range(first, first + more + 1)]
    assert _elements(f"77_[{','.join(parts)}{'%3' if limited else ''}]") == expected


def test_one_job_and_one_element_are_themselves():
    assert _elements("12") == ["12"] and _elements("12_3") == ["12_3"]


# -- a site's habits and the script


def test_options_of_a_site_reach_the_script_and_resources_do_too(tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text("""
slurm:
  partition: gpu
  gpu_type: a100
  extra: [--reservation=paper, --exclusive, "#SBATCH --mail-user=me@here"]
  setup: [module load cuda]
  max_jobs: 5
""")
    monkeypatch.setenv("BENCH_CONFIG", str(config))
    places = Places(tmp_path, tmp_path, tmp_path / "runs", tmp_path)
    resources = Resources(gpus=4, nodes=2, cpus=6, memory_gb=1.5, hours=0.51)
    [script] = slurm.scripts(pack([(f"{i}.json", f"{i}", f"{i}") for i in range(9)], resources), places, None)
    for line in ("--array=0-8%5", "--partition=gpu", "--gpus-per-node=a100:4", "--nodes=2", "--ntasks-per-node=4",
                 "--cpus-per-task=6", "--mem=1536M", "--time=31", "--reservation=paper", "--exclusive", "--requeue",
                 "--mail-user=me@here", "--signal=USR2@120", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in script, line
    assert "\nmodule load cuda\n" in script and "--kill-on-bad-exit=1 --cpus-per-task=6 " in script
    [one] = slurm.scripts(pack([("0.json", "0", "0")], Resources(hours=1)), places, None)
    assert "--array" not in one and "--gpus" not in one and "--mem=" not in one


@pytest.mark.parametrize("content, sentence", [
    ("slurm: {partitoin: gpu}", "slurm.partitoin: no such key; did you mean partition"),
    ("slurm: [gpu]", "slurm = ['gpu']: expected a mapping with partition, account"),
    ("slurm: {max_jobs: 0}", "slurm.max_jobs = 0: input should be greater than or equal to 1"),
    ("slurm: {extra: [--time=4]}", "--time cannot be set here: it is the suite's resources.hours"),
    ("slurm: {extra: [-p gpu]}", "'-p gpu' is not an sbatch option; write --name=value or --name"),
    ("slurn: {}", "slurn = {}: expected one of"),
])
def test_a_faulty_habit_is_one_sentence_that_names_file_key_and_value(tmp_path, monkeypatch, content, sentence):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    monkeypatch.setenv("BENCH_CONFIG", str(config))
    with pytest.raises(BadInput) as raised:
        slurm_site()
    assert str(raised.value).startswith(f"{config}: ") and sentence in str(raised.value)


def test_without_a_users_file_a_site_has_no_habits(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CONFIG", str(tmp_path / "none.yaml"))
    assert slurm_site() == SlurmSite()


# -- tickets


def test_of_many_that_claim_at_once_one_gets_the_ticket(tmp_path):
    folder = RunFolder(tmp_path, "a").create()
    children = []
    for _ in range(12):
        if (child := os.fork()) == 0:
            os._exit(0 if submissions.claim(folder, "slurm", None) is not None else 1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0] + [1] * 11


def test_a_ticket_that_was_given_back_is_taken_again_and_an_older_view_loses(tmp_path):
    folder = RunFolder(tmp_path, "a").create()
    first = submissions.claim(folder, "slurm", None)
    assert submissions.claim(folder, "slurm", None) is None
    first.withdraw()
    assert submissions.latest(folder) is None
    second = submissions.claim(folder, "slurm", None).update(job="12_3", cluster="c")
    assert submissions.latest(folder).job == "12_3" and submissions.latest(folder).number == 1
    assert submissions.claim(folder, "slurm", first) is None            # who decided before the second one was there
    assert submissions.claim(folder, "slurm", second).number == 2


def test_a_ticket_knows_whether_its_process_lives(tmp_path):
    folder = RunFolder(tmp_path, "a").create()
    ticket = submissions.claim(folder, "local", None)
    assert ticket.process_alive is True
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ticket = ticket.update(pid=sleeper.pid, started=process_start(sleeper.pid))
    assert submissions.latest(folder).process_alive is True
    sleeper.kill()
    sleeper.wait()
    assert submissions.latest(folder).process_alive is False
    assert ticket.update(machine="another").process_alive is None


def test_a_ticket_that_a_crash_tore_is_as_good_as_unwritten(tmp_path):
    folder = RunFolder(tmp_path, "a").create()
    submissions.claim(folder, "slurm", None)
    (folder.jobs / "000000.claim").write_text('{"launcher": "sl')
    assert submissions.latest(folder).ticket is None


# -- whom a plan believes: what is asked of the scheduler is real in tests/slurm; here its answers are late or wrong


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """(run, its folder, plan with an answer): one run that job 12 was submitted for, and that has begun."""
    path = tmp_path / "six.yaml"
    path.write_text(yaml.safe_dump(suite(seeds=[0])))
    places = Places(tmp_path / "results", tmp_path / "reports", tmp_path / "runs", tmp_path / "cache")
    [run] = Suite.load(path).expand(places)
    folder = RunFolder(places.runs, run.train_id).create()
    submissions.claim(folder, "slurm", None).update(job="12", cluster="here")
    folder.write_state(State(phase="training", step=3, steps=20))
    monkeypatch.setattr(planning, "cluster_name", lambda: "here")

    def plan(answer, meanwhile=lambda: None):
        def ask(jobs):
            assert list(jobs) == ["12"]
            meanwhile()
            return answer if answer is None else {"12": answer}

        monkeypatch.setattr(planning, "ask", ask)
        [found] = planning.plan([run], places, "six")
        return found

    return run, folder, plan


def finish(run, folder) -> None:
    """As a stub run does."""
    (folder.path / "run.json").write_text(run.model_dump_json())
    execute_many([str(folder.path / "run.json")], Places(*[folder.runs.parent / n for n in ("results", "reports", "runs", "cache")]))


@pytest.mark.parametrize("answer", [JobStatus("FAILED", False, exit_code="1:0"), JobStatus("CANCELLED", False), JobStatus("", False),
                                    JobStatus("RUNNING", True), JobStatus("PENDING", True), None])
def test_no_answer_makes_a_finished_run_anything_but_done(submitted, answer):
    run, folder, plan = submitted
    finish(run, folder)
    assert plan(answer).status == "done"


@pytest.mark.parametrize("answer", [JobStatus("FAILED", False, exit_code="1:0"), JobStatus("", False), None])
def test_a_lease_that_beats_is_running_whatever_the_scheduler_says(submitted, answer):
    _, folder, plan = submitted
    with folder.claim(job_id="here/12"):
        assert plan(answer).status == "running"


@pytest.mark.parametrize("answer", [JobStatus("COMPLETED", False), JobStatus("FAILED", False, exit_code="1:0")])
def test_a_run_that_ends_between_reading_its_folder_and_asking_is_done(submitted, answer):
    run, folder, plan = submitted
    assert plan(answer, meanwhile=lambda: finish(run, folder)).status == "done"


@pytest.mark.parametrize("answer, status, note", [
    (JobStatus("PENDING", True, "BeginTime", restarts=2), "pending", "job 12, pending (BeginTime)"),
    (JobStatus("NODE_FAIL", True), "pending", "job 12, node_fail"),
    (JobStatus("RUNNING", True), "running", "job 12, starting"),
    (JobStatus("COMPLETED", False), "running", "job 12 has ended; its folder does not say so yet"),
    (JobStatus("COMPLETED", False, over_since=1.0), "failed", "job 12: it ended as COMPLETED, at step 3"),
    (JobStatus("NODE_FAIL", False), "failed", "job 12: its node failed, at step 3"),
    (JobStatus("CANCELLED", False), "cancelled", "job 12 was cancelled, at step 3"),
    (JobStatus("", False), "failed", "job 12: the scheduler no longer knows it, at step 3"),
    (None, "unknown", "job 12; the scheduler does not answer"),
])
def test_where_nobody_works_on_it_the_scheduler_is_believed(submitted, answer, status, note):
    _, _, plan = submitted
    found = plan(answer)
    assert (found.status, found.note) == (status, note)
    assert found.requeued == (answer.restarts if answer else 0)


@pytest.mark.parametrize("answer", [JobStatus("FAILED", False), JobStatus("CANCELLED", False), JobStatus("", False),
                                    JobStatus("RUNNING", True), None])
def test_one_more_metric_of_a_finished_run_is_to_be_measured_whatever_became_of_its_job(submitted, answer):
    run, folder, plan = submitted
    finish(run, folder)
    record = folder.record()
    folder.write_record(record.model_copy(update={"values": dict(list(record.values.items())[:1])}))
    (folder.checkpoints / "final.pt").touch()
    found = plan(answer)
    assert (found.status, found.note.split()[0]) == ("measure", "without")


def test_a_wish_to_cancel_that_slurm_did_not_carry_out_is_not_shown_as_an_end(submitted):
    _, folder, plan = submitted
    submissions.latest(folder).cancel()
    assert plan(JobStatus("PENDING", True)).status == "pending" and plan(None).status == "unknown"
    assert plan(JobStatus("CANCELLED", False)).note == f"{submissions.CANCELLED}, at step 3"


@pytest.mark.parametrize("answer, status", [(JobStatus("PENDING", True), "pending"), (JobStatus("RUNNING", True), "running")])
def test_a_silent_owner_on_another_machine_is_gone_once_its_job_is_queued_again(submitted, monkeypatch, answer, status):
    _, folder, plan = submitted
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(runs, "machine", lambda: "another")
        lease = folder.claim(job_id="here/12")
    lease._stop.set()
    assert plan(answer).status == "running"
    os.utime(lease.path, (time.time() - 60, time.time() - 60))
    assert plan(answer).status == status


def test_what_the_scheduler_hides_of_others_is_not_taken_for_ended(submitted):
    _, folder, plan = submitted
    submissions.latest(folder).update(user="somebody")
    assert plan(JobStatus("", False)).status == "unknown" and plan(JobStatus("CANCELLED", False)).status == "cancelled"


def test_a_queue_of_before_a_reboot_or_long_silent_elsewhere_has_ended(tmp_path):
    folder = RunFolder(tmp_path, "a").create()
    ticket = submissions.claim(folder, "local", None)
    host, _, space = runs.machine().split(" ")
    assert ticket.update(machine=f"{host} another-boot {space}").process_alive is False
    there = ticket.update(machine="host boot space", job="queue-1")
    beat = tmp_path / "_jobs" / "queue-1" / submissions.QUEUE_BEAT
    beat.parent.mkdir(parents=True)
    beat.touch()
    assert there.process_alive is None
    os.utime(beat, (1, 1))
    assert there.process_alive is False


def test_a_job_of_another_cluster_is_not_asked_about_here(submitted, monkeypatch):
    _, folder, plan = submitted
    submissions.latest(folder).update(cluster="there")
    monkeypatch.setattr(planning, "ask", None)
    found = plan(JobStatus("", False))
    assert (found.status, found.note) == ("unknown", "job 12 of the cluster there; ask there")


def test_a_failure_after_the_ticket_is_told_and_an_older_one_is_not(submitted):
    _, folder, plan = submitted
    folder.write_state(State(phase="failed", step=5, steps=20, reason="the disk is full"))
    assert (plan(JobStatus("COMPLETED", False)).status, plan(JobStatus("COMPLETED", False)).note) == ("failed", "the disk is full")
    os.utime(folder.path / "state.json", (1, 1))
    assert plan(JobStatus("PENDING", True)).status == "pending"


# -- failures


TRACE = '''Traceback (most recent call last):
  File "/home/a/bench/train.py", line 12, in train
    step(x)
  File "/home/a/implementations/vq.py", line 7, in forward
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB at 0x7f00")
RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB at 0x7f00
'''


def test_tracebacks_are_alike_whatever_the_line_size_or_machine():
    other = TRACE.replace("/home/a", "/scratch/b").replace("line 12", "line 15").replace("2.00", "512.5").replace("7f00", "1a")
    assert normalised(TRACE) == normalised(other)
    assert normalised(TRACE) != normalised(TRACE.replace("in forward", "in backward"))
    assert normalised(TRACE) != normalised(TRACE.replace("out of memory", "unknown error"))


def test_the_last_traceback_of_a_log_is_found_without_what_the_scheduler_adds():
    log = ["starting", *TRACE.splitlines(), "going on", *TRACE.replace("RuntimeError", "ValueError").splitlines(),
           "srun: error: node1: task 0: Exited with exit code 1"]
    found = _last_traceback(log)
    assert found.endswith("ValueError: CUDA out of memory. Tried to allocate 2.00 GiB at 0x7f00")
    assert _last_traceback(["starting", "killed"]) == ""


@pytest.mark.parametrize("seconds, words", [(5, "5 s"), (99, "99 s"), (100, "2 min"), (3599, "60 min"), (7200, "2.0 h"),
                                            (86400 * 3, "3.0 days")])
def test_durations_are_short(seconds, words):
    assert duration(seconds) == words


def test_what_plans_and_asks_loads_neither_torch_nor_submitit():
    code = ("import sys, bench.plan, bench.submit, bench.drive, bench.failures, bench.follow, bench.task; "
            "print([m for m in ('torch', 'submitit') if m in sys.modules])")
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"
