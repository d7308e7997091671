"""The test cluster does what the other tests here take for granted."""

from __future__ import annotations

import time

from waiting import release, sacct_state, show, slurm, squeue_state, submit, until


def test_a_job_runs_and_the_accounting_knows(cluster, tmp_path):
    job = submit("echo hello from $SLURMD_NODENAME", f"--output={tmp_path}/out")
    until(lambda: sacct_state(job) == "COMPLETED", "the accounting")
    assert squeue_state(job) == "COMPLETED"
    assert (tmp_path / "out").read_text() == "hello from 127.0.1.1\n"


def test_two_jobs_on_a_node_get_a_gpu_each_and_a_third_one_waits(cluster, tmp_path):
    script = f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/$SLURM_JOB_ID; sleep 600"
    first, second = (submit(script, "--gpus-per-node=1", "--nodelist=127.0.1.2") for _ in range(2))
    until(lambda: all((tmp_path / job).exists() and (tmp_path / job).read_text() for job in (first, second)), "both")
    third = submit(script, "--gpus-per-node=1", "--nodelist=127.0.1.2")
    assert {(tmp_path / job).read_text() for job in (first, second)} == {"0\n", "1\n"}
    slurm("scancel", first)
    until(lambda: (tmp_path / third).exists() and (tmp_path / third).read_text(), "the third")
    assert (tmp_path / third).read_text() == (tmp_path / first).read_text()


def test_an_array_with_a_limit_never_runs_more_at_once(cluster, tmp_path):
    script = f"echo + $(date +%s.%N) >> {tmp_path}/$SLURM_ARRAY_TASK_ID; sleep 0.5; echo - $(date +%s.%N) >> {tmp_path}/$SLURM_ARRAY_TASK_ID"
    job = submit(script, "--array=0-5%2")
    until(lambda: sacct_state(job) and not slurm("squeue", "-h", "-j", job), "the array")
    events = sorted((float(moment), 1 if sign == "+" else -1) for path in tmp_path.iterdir()
                    for sign, moment in map(str.split, path.read_text().splitlines()))
    running = [sum(step for _, step in events[: n + 1]) for n in range(len(events))]
    assert len(events) == 12 and max(running) == 2


def test_a_high_job_has_a_low_one_queued_again_after_sigterm(cluster, tmp_path):
    told = tmp_path / "told"
    (tmp_path / "script").write_text(f"""
        trap 'echo TERM >> {told}; scontrol requeue $SLURM_JOB_ID' TERM
        echo began $SLURM_RESTART_COUNT >> {told}
        while sleep 0.1; do :; done
    """)
    everything = "--nodes=2", "--exclusive"
    low = submit(f"srun -n1 -N1 bash {tmp_path}/script", "--partition=low", "--requeue", *everything)
    until(told.exists, "the low job")
    high = submit("sleep 600", "--partition=high", *everything)
    until(lambda: squeue_state(low) == "PENDING" and squeue_state(high) == "RUNNING", "the high job in its place")
    assert told.read_text().startswith("began\nTERM\n") and show(low)["Restarts"] == "1"
    slurm("scancel", high)
    release(low)
    until(lambda: told.read_text().endswith("began 1\n"), "the low job's second start")


def test_default_jobs_take_no_part_in_preemption(cluster):
    everything = "--nodes=2", "--exclusive"
    for running, waiting in (("test", "high"), ("low", "test")):
        first = submit("sleep 600", f"--partition={running}", *everything)
        until(lambda job=first: squeue_state(job) == "RUNNING", "the first job")
        second = submit("true", f"--partition={waiting}")
        time.sleep(3)
        assert squeue_state(first) == "RUNNING" and show(first).get("PreemptTime", "None") == "None"
        assert squeue_state(second) == "PENDING"
        cluster.cancel_all()


def test_jobs_outlive_their_controller(cluster, tmp_path):
    job = submit(f"sleep 2; echo ended > {tmp_path}/out")
    until(lambda: squeue_state(job) == "RUNNING", "the job")
    cluster.stop_daemon("slurmctld")
    until(lambda: (tmp_path / "out").exists(), "the job's end, without a controller")
    assert cluster.ask("scontrol", "ping").returncode
    cluster.start_daemon("slurmctld")
    until(lambda: sacct_state(job) == "COMPLETED", "the accounting")


def test_a_job_of_a_node_that_fails_is_queued_again(cluster):
    job = submit("sleep 600", "--requeue", "--nodelist=127.0.1.2")
    until(lambda: squeue_state(job) == "RUNNING", "the job")
    cluster.fail_node("127.0.1.2")
    until(lambda: squeue_state(job) == "PENDING" and show(job)["Restarts"] == "1", "the job's return to the queue")
    cluster.start_daemon("slurmd-127.0.1.2")
    release(job)
    until(lambda: squeue_state(job) == "RUNNING", "its second start")
