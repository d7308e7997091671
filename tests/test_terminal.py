"""What is printed while runs go on: what has happened, once, and no more."""

from __future__ import annotations

from types import SimpleNamespace

from bench import terminal
from bench.plan import Planned
from bench.runs import State
from bench.terminal import Progress, counts, describe


def run(label: str = "a", status: str = "pending", note: str = "", **state: object) -> Planned:
    return Planned(SimpleNamespace(label=label, train_id=label), status, note, state=State(**state) if state else None)


def said(capsys, *looks: list[Planned]) -> list[str]:
    progress = Progress("six")
    for look in looks:
        progress(look)
    return capsys.readouterr().err.splitlines()


def test_each_change_is_said_once_and_what_was_so_before_is_not(capsys):
    training = {"phase": "training", "step": 3, "steps": 20, "images_per_second": 1234.0, "eta_seconds": 61.0}
    assert said(capsys, [run(), run("b", "done")], [run(status="running", **training), run("b", "done")],
                [run(status="running", **training), run("b", "done")], [run(status="done"), run("b", "done")]) == [
        "a: training, step 3 of 20, 1,234 images/s, 61 s left", "a: done"]


def test_a_run_that_ends_between_two_looks_is_told(capsys):
    assert said(capsys, [run()], [run(status="done")]) == ["a: done"]


def test_a_failure_and_a_requeue_are_told_with_their_reasons(capsys):
    running = run(status="running", phase="training", step=5, steps=20)
    pending = run(note="job 12, pending (BeginTime)", phase="waiting", step=6, steps=20, requeued=2)
    failed = run(status="failed", note="job 12: its node failed")
    assert said(capsys, [running], [pending], [failed]) == [
        "a: training, step 5 of 20", "a: pending, job 12, pending (BeginTime), requeued 2 times",
        "a: failed, job 12: its node failed"]


def test_of_many_runs_the_counts_are_told_when_they_change(capsys):
    many = [run(f"{i}") for i in range(terminal.LIVE_ROWS + 1)]
    lines = said(capsys, many, many, [run("0", "done"), *many[1:]])
    assert lines == ["41 pending", "0: done", "1 done, 40 pending"]


def test_restarts_of_a_run_without_a_scheduler_are_told():
    p = run(status="running", phase="training", step=5, steps=20, restarts=1)
    assert describe(p) == "step 5 of 20, restarted once" and counts([p, run()]) == "1 running, 1 pending"
