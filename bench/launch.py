"""Run jobs to their end from this process: here, or as local jobs a few at a time. Torch-free.

What is finished is read from the run folders, not from exit codes: a job may die after its work is done, and
a run may be finished by somebody else. What is handed over instead (to SLURM, or to a local queue that goes on when
this process ends) is in bench/submit.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from bench import scheduler, submissions
from bench.errors import BadInput
from bench.jobs import Job, JobFolders
from bench.places import Places
from bench.resources import Resources
from bench.runs import RunFolder, State, process_gone, server_time
from bench.stopping import on_signals
from bench.submissions import Submission
from bench.task import TARGET, THREADS, Task, function

log = logging.getLogger(__name__)

LAUNCHERS = ("debug", "local", "slurm")
YEAR = 365 * 24 * 60            # minutes; a workstation has no time limit (submitit's default is 2 minutes)
STOP_WITHIN = 60.0              # seconds a local job has to save and end by itself after Ctrl-C

Progress = Callable[[list[tuple[str, State | None]]], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed, or whose process died."""

    label: str
    train_id: str
    reason: str                         # one line
    log: Path | None = None             # the job's output, where it had its own
    tail: tuple[str, ...] = ()          # its last lines, of a process that died


@dataclass(slots=True)
class Outcome:
    """What became of the runs; the counts add up to their number."""

    launcher: str
    done: int = 0
    failed: int = 0
    busy: int = 0                       # somebody else has them, and we were not to wait
    cancelled: int = 0                  # not finished when we were stopped; the same command continues them
    failures: list[Failure] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 complete (or somebody else's), 1 some failed, 130 stopped by Ctrl-C."""
        return 130 if self.interrupted else int(self.failed > 0)


# -- choosing ----------------------------------------------------------------------------------------------


def pick_launcher(name: str = "auto") -> tuple[str, str]:
    """(launcher, why). `auto` takes SLURM where a controller answers, and local where there is no cluster.

    Raises BadInput where SLURM is asked for and not there, and where a cluster's controller is down.
    """
    if name in ("debug", "local"):
        return name, "asked for"
    if name not in ("auto", "slurm"):
        raise BadInput(f"there is no launcher {name!r}; known: auto, {', '.join(LAUNCHERS)}")
    trouble = scheduler.trouble()
    if name == "slurm":
        if trouble:
            raise BadInput(f"--launcher slurm: {trouble}; --launcher local runs here")
        return "slurm", "asked for"
    if trouble and scheduler.configured():      # a login node is not where a suite should train by mistake
        raise BadInput(f"{trouble}; say --launcher slurm when it is back, or --launcher local to run here")
    return ("local", trouble) if trouble else ("slurm", "sbatch is here and the controller answers")


def visible_gpus() -> list[str]:
    """GPU ids as CUDA_VISIBLE_DEVICES takes them: what that variable says, else what nvidia-smi lists."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        found = []
        for gpu in (part.strip() for part in given.split(",")):
            if not gpu or gpu.startswith("-") or gpu == "NoDevFiles":
                break                                   # CUDA ignores all that follows an invalid id
            found.append(gpu)
        return found
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (subprocess.TimeoutExpired, OSError):
        return []
    return gpus_listed(listing.stdout) if listing.returncode == 0 else []


def gpus_listed(listing: str) -> list[str]:
    """Ids in the output of `nvidia-smi -L`; a GPU that is split counts as its parts."""
    found: list[str] = []
    whole = ""
    for line in listing.splitlines():
        words = line.split()
        if words[:1] == ["GPU"] and len(words) > 1:
            whole = words[1].rstrip(":")
            found.append(whole)
        elif words[:1] == ["MIG"] and "(UUID:" in words:
            if whole in found:
                found.remove(whole)
            found.append(words[words.index("(UUID:") + 1].rstrip(")"))
    return found


def usable_cores() -> int:
    """Cores this process may use: its affinity, and a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))         # "max" is no number: no limit
    return cores


# -- the launchers -----------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Run:
    """One run as the launcher sees it."""

    file: str
    label: str
    resources: Resources
    folder: RunFolder
    after: tuple[str, ...] = ()         # train ids that its job waits for, as long as they are in hand here
    status: Literal["waiting", "running", "following", "busy", "done", "failed", "cancelled"] = "waiting"
    before: State | None = None         # what lay there when we last started it
    lease: int = -1                     # the highest lease number then
    state: State | None = None          # the last one seen
    starts: int = 0
    failure: Failure | None = None

    def look(self) -> None:
        """Before it is started (again): what is there already is not our job's doing."""
        self.before = self.folder.read_state()
        last = self.folder.last_lease()
        self.lease = -1 if last is None else last.number

    def shown(self) -> State | None:
        if self.status == "waiting" or (self.status == "running" and self.state == self.before):
            if (b := self.before) is None:
                return State(phase="waiting")
            return State(phase="waiting", step=b.step, steps=b.steps, restarts=b.restarts)
        return self.state


@dataclass(slots=True, eq=False)
class _Started:
    """A job that was started."""

    runs: list[_Run]
    job: Any = None                     # submitit's; None in `debug`
    folder: Path = Path()
    gpus: tuple[str, ...] = ()
    share: Fraction = Fraction(0)       # of this machine


class _Launcher(Protocol):
    def start(self, waiting: deque[list[_Run]]) -> list[_Started]:
        """Start what there is room for, taking it from `waiting`."""

    def ended(self, started: _Started) -> bool: ...

    def stop(self, started: Sequence[_Started]) -> None:
        """After Ctrl-C; returns when the jobs are gone, or will go on without us."""


class _Debug:
    """In this process, one run after another, under the debugger: what the target raises is not caught."""

    def __init__(self, places: Places, target: str) -> None:
        self.places, self.function = places, function(target)

    def start(self, waiting: deque[list[_Run]]) -> list[_Started]:
        run = waiting[0].pop(0)
        if not waiting[0]:
            waiting.popleft()
        run.look()
        with on_signals(signal.SIGINT, signal.SIGTERM) as stop:
            self.function([run.file], self.places, stop, None)
        return [_Started([run])]

    def ended(self, started: _Started) -> bool:
        return True

    def stop(self, started: Sequence[_Started]) -> None:
        """The exception that brought us here has stopped it."""


class _Local:
    """submitit's local jobs, bounded: each gets its share of the cores, or GPUs of its own."""

    def __init__(self, places: Places, target: str, slots: int | None, submitted: dict[str, Any]) -> None:
        self.places, self.target, self.slots, self.submitted = places, target, slots, submitted
        self.cores, self.gpus = usable_cores(), visible_gpus()
        self.load = dict.fromkeys(self.gpus, 0)
        self.used = Fraction(0)
        self.folders = JobFolders(places.runs)

    def room(self, resources: Resources) -> tuple[tuple[str, ...], int, Fraction] | None:
        """(GPUs, threads, share of the machine) for one more job, or None while there is no room.

        Threads depend on the machine, the resources and `slots` only, not on how many jobs are left: a run
        that is continued tomorrow adds its floats in the same order.
        """
        asked = resources.per_node if resources.gpus is None else resources.gpus
        wanted = min(len(self.gpus), asked)
        if resources.processes and wanted < resources.processes:
            wanted = 0                          # two processes on one GPU are refused by nccl: all on the CPU
        fit = len(self.gpus) // wanted if wanted else self.cores // (resources.cpus * (resources.processes or 1))
        slots = self.slots or max(1, fit)
        share = Fraction(1, slots)
        if self.used + share > 1:
            return None
        gpus = tuple(sorted(self.gpus, key=lambda gpu: self.load[gpu])[:wanted])
        if self.slots is None and any(self.load[gpu] for gpu in gpus):
            return None
        return gpus, max(1, self.cores // slots), share

    def start(self, waiting: deque[list[_Run]]) -> list[_Started]:
        import submitit

        started = []
        while waiting and (room := self.room(waiting[0][0].resources)) is not None:
            runs, (gpus, threads, share) = waiting.popleft(), room
            resources = runs[0].resources
            folder = self.folders.new()
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
            processes = resources.processes or max(1, len(gpus))
            task = Task(self.target, tuple(run.file for run in runs), self.places, "local", self.submitted, gpus, processes)
            for run in runs:
                run.look()
            with _environment(max(1, threads // processes)), _deaf():
                job = executor.submit(task)
            for gpu in gpus:
                self.load[gpu] += 1
            self.used += share
            started.append(_Started(runs, job, folder, gpus, share))
        return started

    def ended(self, started: _Started) -> bool:
        if not started.job.done():
            return False
        for gpu in started.gpus:
            self.load[gpu] -= 1
        self.used -= started.share
        return True

    def stop(self, started: Sequence[_Started]) -> None:
        """Ask each job to end (SIGTERM, which its controller passes on), then kill; a second Ctrl-C kills."""
        deadline = time.monotonic() + STOP_WITHIN
        with contextlib.suppress(KeyboardInterrupt):
            asked = -math.inf
            while time.monotonic() < deadline and not all(s.job.done() for s in started):
                if time.monotonic() - asked > 2:        # again: one may come before there is a handler
                    asked = time.monotonic()
                    for s in started:
                        _kill(s, signal.SIGTERM)
                time.sleep(0.05)
        for s in started:
            _kill(s, signal.SIGKILL)


def _kill(started: _Started, number: int) -> None:
    """Signal a local job: its controller, whose number is the job's, and to kill also the task itself."""
    if started.job.done():
        return
    if number == signal.SIGKILL:
        with contextlib.suppress(OSError, ValueError):
            for line in (started.folder / "processes").read_text().splitlines():
                pid, _, begun = line.partition(" ")
                if not process_gone(int(pid), begun):
                    os.kill(int(pid), number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(started.job.job_id), number)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What a job inherits: its number of threads, unless the user has set one."""
    added = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, str(threads)))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started inside ignores the terminal's Ctrl-C and hang-up: it is the launcher that stops it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the loop ----------------------------------------------------------------------------------------------


def launch(
    jobs: Sequence[Job],
    how: str = "local",
    *,
    places: Places,
    wait: bool = True,
    slots: int | None = None,
    on_progress: Progress | None = None,
    target: str = TARGET,
    poll: float = 0.5,
    tickets: Mapping[str, Submission] | None = None,
    submitted: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run jobs to their end and say what became of each run.

    how: "debug" (in this process) or "local" (processes of this machine, a few at a time).
    wait: follow runs that somebody else has until they end, and take them over where their owner dies.
    slots: local jobs at a time; left out: as many as their GPUs, else their cores, have room for.
    on_progress: called every `poll` seconds with (label, state) of every run, in the order given.
    tickets: of the runs (by train id) that have been submitted by somebody else; others get one of their own.
    submitted: the code that was submitted (bench.provenance), for the jobs to compare with theirs.

    Ctrl-C stops local jobs (by SIGTERM: they save first); the outcome then says `interrupted`.
    """
    if how not in ("debug", "local"):
        raise ValueError(f"{how!r} is not run from here; see bench/submit.py")
    outcome = Outcome(how)
    packs = [
        [
            _Run(file, label, job.resources, RunFolder(places.runs, train_id).create(), job.after)
            for file, label, train_id in zip(job.run_files, job.labels, job.train_ids, strict=True)
        ]
        for job in jobs
    ]
    starter: _Launcher
    starter = _Debug(places, target) if how == "debug" else _Local(places, target, slots, dict(submitted or {}))
    loop = _Loop(packs, places, starter, outcome, wait, on_progress, poll, dict(tickets or {}))
    with _stoppable():
        try:
            loop.run()
        except KeyboardInterrupt:
            outcome.interrupted = True
            loop.stop()
        except BaseException:
            loop.stop()
            raise
    return loop.counted()


def _interrupt(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)       # once: what is being tidied up is not interrupted again
    raise KeyboardInterrupt


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Inside, `kill` (SIGTERM) is what Ctrl-C is, so that jobs are stopped and not left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Loop:
    """What waits, what runs, what others have; one look after another until nothing is left."""

    def __init__(
        self, packs: list[list[_Run]], places: Places, launcher: _Launcher, outcome: Outcome, wait: bool,
        on_progress: Progress | None, poll: float, tickets: dict[str, Submission],
    ) -> None:
        self.places, self.launcher, self.outcome, self.wait = places, launcher, outcome, wait
        self.on_progress, self.poll, self.tickets = on_progress, poll, tickets
        self.runs = [run for runs in packs for run in runs]
        self.waiting: deque[list[_Run]] = deque()
        self.started: list[_Started] = []
        self.following: list[_Run] = []
        now = server_time(places.runs)
        for runs in packs:
            free = []
            for run in runs:
                run.look()
                if (owner := run.folder.owner(now)) is not None:
                    log.info("%s: %s has it", run.label, owner)
                    self.busy(run)
                else:
                    free.append(run)
            if free:
                self.waiting.append(free)

    def run(self) -> None:
        due = -math.inf
        while self.waiting or self.started or self.following:
            self.start()
            ended = [started for started in self.started if self.launcher.ended(started)]
            for started in ended:
                self.started.remove(started)
                self.settle(started)
            if ended or time.monotonic() >= due:
                due = time.monotonic() + self.poll
                self.follow()
                self.report()
            if not ended:
                time.sleep(min(self.poll, 0.1))
        self.report()

    def start(self) -> None:
        for runs in list(self.waiting):
            for run in [run for run in runs if self.cancelled(run)]:
                runs.remove(run)
            if not runs:
                self.waiting.remove(runs)
        open_ones = {run.folder.train_id for runs in (*self.waiting, *(s.runs for s in self.started), self.following) for run in runs}
        held = [runs for runs in self.waiting if not open_ones.isdisjoint(runs[0].after)]
        ready = deque(runs for runs in self.waiting if runs not in held)
        begun = self.launcher.start(ready) if ready else ()
        self.waiting = deque((*ready, *held))
        for started in begun:
            self.started.append(started)
            for run in started.runs:
                run.starts += 1
                run.status = "running"
            if started.job is not None:
                self.outcome.job_ids.append(started.job.job_id)
                for run in started.runs:
                    self.point(run, started)

    def point(self, run: _Run, started: _Started) -> None:
        """Leave in the run's folder where the job's own output is."""
        folder = run.folder
        ticket = self.tickets.get(folder.train_id) or submissions.claim(folder, "local", submissions.latest(folder))
        if ticket is not None:
            self.tickets[folder.train_id] = ticket.update(
                job=started.folder.name, log=os.path.relpath(started.job.paths.stdout, folder.runs), runs=len(started.runs))

    def cancelled(self, run: _Run) -> bool:
        """Whether somebody has asked for its end (`bench cancel`); then it is marked so."""
        if not ((ticket := self.tickets.get(run.folder.train_id)) and ticket.asked_to_end()):
            return False
        run.status = "cancelled"
        state = run.folder.read_state()
        if state is None or not state.ended:
            _write_state(run, "cancelled", submissions.CANCELLED)
        return True

    def busy(self, run: _Run) -> None:
        """Somebody else alive has it: stay with it until it ends, if we are to wait."""
        run.status = "following" if self.wait else "busy"
        if self.wait:
            self.following.append(run)

    def look(self, run: _Run, *, ours: bool) -> bool:
        """Read a run's state; True once it has ended. One that lay there before counts only if `ours`."""
        run.state = run.folder.read_state()
        state = run.state
        if state is None and ours and (record := run.folder.record()) is not None:
            state = State(phase="failed" if record.state == "failed" else "done", reason=record.reason)
        if state is None or not state.ended or (state == run.before and not ours):
            return False
        if state.phase == "done":
            run.status = "done"
        else:
            self.fail(run, state.reason or "it failed without a reason")
        return True

    def settle(self, started: _Started) -> None:
        """A job has ended: what of its runs?

        A run that it had begun and not finished is blamed for the job's death. Those behind it are started
        once more, each in a job of its own; so are all if it died before anything had begun.
        """
        returned, reason = _result(started)
        now = server_time(self.places.runs)
        begun: list[_Run] = []
        untouched: list[_Run] = []
        for run in started.runs:
            if run.status != "running" or self.look(run, ours=False) or self.cancelled(run):
                continue
            if run.folder.owner(now) is not None:   # somebody was faster, or the task survived its controller
                self.busy(run)
            elif returned and self.look(run, ours=True):
                continue
            else:
                last = run.folder.last_lease()
                (begun if last is not None and last.number > run.lease else untouched).append(run)
        if returned:
            begun, untouched = [], begun + untouched
            reason = "its job ended without finishing it"
        for run in begun:
            self.fail(run, reason, started)
            _write_failed(run, reason)
        alone = len(started.runs) == 1 and not returned
        for run in untouched:
            if alone or run.starts > 1 or (reason.startswith("the job raised") and not begun):
                self.fail(run, reason, started)
                _write_failed(run, reason)
            else:
                run.status = "waiting"
                self.waiting.append([run])

    def fail(self, run: _Run, reason: str, started: _Started | None = None) -> None:
        run.status = "failed"
        logs = [started.job.paths.stdout] if started and started.job else submissions.logs(run.folder)[:1]
        tail = submissions.tail(logs[0]) if started and logs else ()
        run.failure = Failure(run.label, run.folder.train_id, reason, logs[0] if logs else None, tail)

    def follow(self) -> None:
        """Runs that others had: ended, or free to be taken."""
        now = server_time(self.places.runs) if self.following else 0.0
        for run in list(self.following):
            run.state = run.folder.read_state()
            if run.folder.owner(now) is not None:
                continue
            self.following.remove(run)
            last = run.folder.last_lease()
            if not (last and last.released and self.look(run, ours=True)):
                log.info("%s: its owner is gone; taking it", run.label)
                run.status = "waiting"
                self.waiting.append([run])

    def report(self) -> None:
        for started in self.started:
            for run in started.runs:
                if run.status == "running":
                    self.look(run, ours=False)
        if self.on_progress is not None:
            self.on_progress([(run.label, run.shown()) for run in self.runs])

    def stop(self) -> None:
        """After Ctrl-C: local jobs end; a run that could not say so itself is marked as cancelled."""
        self.launcher.stop(self.started)
        for run in (run for started in self.started for run in started.runs if run.status == "running"):
            last = run.folder.last_lease()
            ours = last is not None and last.number > run.lease
            if not self.look(run, ours=False) and ours and run.state and run.state.phase != "waiting":
                _write_state(run, "cancelled", "stopped by Ctrl-C; the same command continues it")

    def counted(self) -> Outcome:
        kinds = {"done": "done", "failed": "failed", "busy": "busy", "following": "busy"}
        for run in self.runs:
            kind = kinds.get(run.status, "cancelled")
            setattr(self.outcome, kind, getattr(self.outcome, kind) + 1)
            if run.failure is not None and run.status == "failed":
                self.outcome.failures.append(run.failure)
        return self.outcome


# -- what a job leaves -------------------------------------------------------------------------------------


def _result(started: _Started) -> tuple[bool, str]:
    """(it returned, else why not)."""
    if started.job is None:
        return True, ""
    if not started.job.paths.result_pickle.exists():
        return False, "its process died (killed, or out of memory?)"
    from submitit.core.utils import FailedJobError

    error = started.job.exception()
    if error is None:
        return True, ""
    if isinstance(error, FailedJobError):
        trace = str(error).split("-" * 22)[1]
        return False, f"the job raised {scheduler.last_line(trace)}"
    return False, f"its job ended as {started.job.state}"


def _write_failed(run: _Run, reason: str) -> None:
    """Its process could not say so itself. No record: the run continues from its checkpoint when retried."""
    _write_state(run, "failed", reason)


def _write_state(run: _Run, phase: Literal["failed", "cancelled"], reason: str) -> None:
    with contextlib.suppress(OSError):
        if (lease := run.folder.claim()) is not None:
            with lease:
                old = run.folder.read_state()
                kept = {} if old is None else old.model_dump(include={"step", "steps", "restarts", "requeued"})
                run.state = State(phase=phase, reason=reason, **kept)
                run.folder.write_state(run.state)
