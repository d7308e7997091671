"""What commands print about runs: tables, live progress, failures. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.text import Text

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from bench.failures import Group as Failures
    from bench.plan import Planned
    from bench.runs import State

console = Console(width=None if sys.stdout.isatty() else 160)
notice = Console(stderr=True, soft_wrap=True, highlight=False)

SAY_EVERY = 10.0            # seconds between two lines about a run, where there is no terminal to redraw
LIVE_ROWS = 40              # a terminal cannot redraw a thousand


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.2 h`, `2.1 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def times(count: int, what: str) -> str:
    return f"{what} once" if count == 1 else f"{what} {count} times"


def describe(p: Planned) -> str:
    """What a run is doing, in one line: step, speed and time left, or why it does not go on."""
    words, state = [], p.state
    if state is not None and p.status == "running":
        if state.phase == "training":
            words.append(f"step {state.step:,} of {state.steps:,}")
            if state.images_per_second:
                words.append(f"{state.images_per_second:,.0f} images/s")
            if state.eta_seconds:
                words.append(f"{duration(state.eta_seconds)} left")
        elif state.phase == "measuring":
            words.append("measuring")
    if p.note and (p.status != "running" or not words):
        words.append(p.note)
    if p.requeued:
        words.append(times(p.requeued, "requeued"))
    elif p.status in ("pending", "running") and state is not None and state.restarts:
        words.append(times(state.restarts, "restarted"))
    return ", ".join(words)


def counts(planned: Sequence[Planned]) -> str:
    return ", ".join(f"{sum(p.status == s for p in planned)} {s}" for s in dict.fromkeys(p.status for p in planned))


def status_table(title: str, planned: Sequence[Planned]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("run", "id", "state", "what"):
        table.add_column(column, no_wrap=column in ("id", "state"))
    for p in planned:
        table.add_row(Text(p.run.label), p.run.train_id, p.status, Text(describe(p)))
    return table


def print_status(title: str, planned: Sequence[Planned]) -> None:
    from bench.report.formats import Quick

    console.print(Quick(status_table(title, planned)))
    console.print(counts(planned), highlight=False)


def status_json(p: Planned) -> dict[str, Any]:
    state, ticket = p.state, p.submission.ticket if p.submission else None
    return {
        "label": p.run.label, "train_id": p.run.train_id, "state": p.status, "note": p.note, "steps": p.run.train.steps,
        "step": p.run.train.steps if p.status in ("done", "stale", "measure") else state.step if state else 0, "hours": p.hours,
        "values": {w.name: w.value_id for w in p.run.values},
        "images_per_second": state.images_per_second if state and p.status == "running" else None,
        "eta_seconds": state.eta_seconds if state and p.status == "running" else None,
        "requeued": p.requeued, "restarts": state.restarts if state else 0,
        "launcher": ticket.launcher if ticket else None, "job": ticket.job if ticket else None,
    }


def print_failures(groups: Sequence[Failures]) -> None:
    """Each kind of failure once: who, where, the log's end, and the command that shows it again."""
    for found in groups:
        names = [p.run.label for p in found.planned]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        many = f" ({len(names)} runs)" if len(names) > 1 else ""
        notice.print(f"[red]failed[/]{many} ", end="")
        notice.print(Text(f"{shown}: {found.reason}" + (f" [{found.where}]" if found.where else "")))
        for line in found.tail:
            notice.print(Text(f"    {line}"))
        if found.log is not None:
            notice.print(Text(f"    log: {found.log}"))
        notice.print(Text(f"    again: {found.command}"))


class Progress:
    """Shows runs as they go: a live table on a terminal, plain lines elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.said: dict[str, tuple[str, float]] = {}
        self.counted = ""
        self.live: Live | None = None

    def __call__(self, planned: Sequence[Planned]) -> None:
        if sys.stderr.isatty():
            if self.live is None:
                from rich.live import Live

                self.live = Live(console=notice, refresh_per_second=4, transient=True)
                self.live.start()
            self.live.update(Group(status_table(self.title, self._most_interesting(planned)), Text(counts(planned))))
            return
        for p in planned:
            self._say(p)
        if len(planned) > LIVE_ROWS and (now := counts(planned)) != self.counted:
            self.counted = now
            notice.print(now)

    def _most_interesting(self, planned: Sequence[Planned]) -> Sequence[Planned]:
        if len(planned) <= LIVE_ROWS:
            return planned
        order = ("running", "failed", "unknown", "cancelled", "pending")
        ranked = sorted(planned, key=lambda p: order.index(p.status) if p.status in order else len(order))
        return ranked[:LIVE_ROWS]

    def _say(self, p: Planned) -> None:
        before, when = self.said.get(p.run.train_id, ("", 0.0))
        phase = p.state.phase if p.status == "running" and p.state else p.status
        changed = phase != before
        if not changed and (phase != "training" or time.monotonic() - when < SAY_EVERY):
            return
        self.said[p.run.train_id] = (phase, time.monotonic())
        if phase in ("new", "resume") or (not before and phase in ("pending", "done")):
            return                              # nothing has happened to it yet, or nothing any more
        what = describe(p)
        notice.print(Text(f"{p.run.label}: {phase}" + (f", {what}" if what not in ("", phase) else "")))

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


class HereProgress:
    """Says what becomes of runs in this process, one after another."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def __call__(self, rows: Sequence[tuple[str, State | None]]) -> None:
        for label, state in rows:
            if state is not None and state.ended and self.said.get(label) != state.phase:
                self.said[label] = state.phase
                notice.print(Text(f"{label}: {state.phase}" + (f", {state.reason}" if state.reason else "")))


class Bars:
    """A bar for each thing that is being worked on; nothing where nobody watches."""

    def __init__(self, what: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.what, self.tasks = what, {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = RichProgress(*columns, console=notice, transient=True, disable=not sys.stderr.isatty())

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(f"{self.what} {label}", total=total)
        self.bars.update(self.tasks[label], completed=done, total=total)
