"""Start runs: in this process, as local jobs a few at a time, or on SLURM. Torch-free.

What is finished is read from the run folders, not from exit codes: a job may die after its work is done, and
a run may be finished by somebody else. A job runs `bench.execute.execute_many(run_files, places)`: one
run after another, each claimed; it writes states and records and never raises for a failed run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from bench.errors import BadInput
from bench.files import write_atomic
from bench.places import Places
from bench.resources import Resources
from bench.runs import RunFolder, State, process_gone, process_start, server_time

log = logging.getLogger(__name__)

TARGET = "bench.execute:execute_many"
LAUNCHERS = ("debug", "local", "slurm")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
YEAR = 365 * 24 * 60            # minutes; a workstation has no time limit (submitit's default is 2 minutes)
PING_WITHIN = 5.0               # seconds SLURM's controller has to answer
STOP_WITHIN = 30.0              # seconds a local job has to end by itself after Ctrl-C
TAIL = 12                       # log lines shown of a job that died

Progress = Callable[[list[tuple[str, State | None]]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """Runs that one process runs one after another, and what it gets."""

    run_files: tuple[str, ...]          # JSON files, each one resolved run
    labels: tuple[str, ...]
    train_ids: tuple[str, ...]
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if not len(self.run_files) == len(self.labels) == len(self.train_ids) > 0:
            raise ValueError("a job needs as many run files as labels and train ids, and at least one")


def pack(runs: Iterable[tuple[str, str, str]], resources: Resources) -> list[Job]:
    """(run file, label, train id) of runs with equal resources -> jobs of `resources.pack` runs each."""
    runs = list(runs)
    parts = [runs[i : i + resources.pack] for i in range(0, len(runs), resources.pack)]
    return [
        Job(tuple(r[0] for r in part), tuple(r[1] for r in part), tuple(r[2] for r in part), resources)
        for part in parts
    ]


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
    why: str                            # why this launcher
    done: int = 0
    failed: int = 0
    busy: int = 0                       # somebody else has them, and we were not to wait
    submitted: int = 0                  # in the scheduler's hands
    cancelled: int = 0                  # not finished when we were stopped; the same command continues them
    failures: list[Failure] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 complete (or submitted, or somebody else's), 1 some failed, 130 stopped by Ctrl-C."""
        return 130 if self.interrupted else int(self.failed > 0)


# -- choosing ----------------------------------------------------------------------------------------------


def pick_launcher(name: str = "auto") -> tuple[str, str]:
    """(launcher, why). `auto` takes SLURM only where a controller answers, else local."""
    if name in ("debug", "local"):
        return name, "asked for"
    if name not in ("auto", "slurm"):
        raise BadInput(f"there is no launcher {name!r}; known: auto, {', '.join(LAUNCHERS)}")
    trouble = _no_slurm()
    if name == "slurm":
        if trouble:
            raise BadInput(f"--launcher slurm: {trouble}; --launcher local runs here")
        return "slurm", "asked for"
    return ("local", trouble) if trouble else ("slurm", "sbatch is here and the controller answers")


def _no_slurm() -> str | None:
    """Why jobs cannot be submitted from here, or None if they can."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return "there is no sbatch here"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=PING_WITHIN)
    except subprocess.TimeoutExpired:
        return "sbatch is here, but the controller did not answer in time"
    except OSError as error:
        return f"scontrol cannot be run ({error.strerror})"
    if ping.returncode or "UP" not in ping.stdout.split():
        return f"sbatch is here, but the controller does not answer ({_last_line(ping.stdout + ping.stderr)})"
    return None


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


# -- in the job's process ----------------------------------------------------------------------------------


def _function(target: str) -> Callable[[list[str], Places], None]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _interrupt(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)       # once: what is being tidied up is not interrupted again
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Task:
    """What travels to a job: names and folders. All state is on disk, so that it may start again any time."""

    target: str
    run_files: tuple[str, ...]
    places: Places
    local: bool
    gpus: tuple[str, ...] = ()

    def __call__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
        if self.local:
            # submitit ignores SIGTERM. Here it is how the launcher stops us: as Ctrl-C would in `debug`.
            signal.signal(signal.SIGTERM, _interrupt)
            # submitit would count GPUs from 0 whatever the launcher itself may see.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            path = Path(os.environ["SUBMITIT_FOLDER"]) / "process"
            write_atomic(path, f"{os.getpid()} {process_start(os.getpid())}", sync=False)
        _function(self.target)(list(self.run_files), self.places)

    def checkpoint(self) -> Any:
        """submitit's hook at a time limit: requeue the same task; it continues from its newest checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# -- the launchers -----------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Run:
    """One run as the launcher sees it."""

    file: str
    label: str
    resources: Resources
    folder: RunFolder
    status: Literal["waiting", "running", "following", "busy", "done", "failed"] = "waiting"
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
        self.places, self.function = places, _function(target)

    def start(self, waiting: deque[list[_Run]]) -> list[_Started]:
        run = waiting[0].pop(0)
        if not waiting[0]:
            waiting.popleft()
        run.look()
        self.function([run.file], self.places)
        return [_Started([run])]

    def ended(self, started: _Started) -> bool:
        return True

    def stop(self, started: Sequence[_Started]) -> None:
        """The exception that brought us here has stopped it."""


class _JobFolders:
    """<runs>/_jobs/<time>-<process>-<n>, one for each job, so that no two share logs and pickles."""

    def __init__(self, runs: Path) -> None:
        self.root = runs / "_jobs"
        self.stamp, self.n = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", 0

    def new(self) -> Path:
        while True:
            folder = self.root / f"{self.stamp}-{self.n}"
            self.n += 1
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder


class _Local:
    """submitit's local jobs, bounded: each gets its share of the cores, or GPUs of its own."""

    def __init__(self, places: Places, target: str, slots: int | None) -> None:
        self.places, self.target, self.slots = places, target, slots
        self.cores, self.gpus = usable_cores(), visible_gpus()
        self.load = dict.fromkeys(self.gpus, 0)
        self.used = Fraction(0)
        self.folders = _JobFolders(places.runs)

    def room(self, resources: Resources) -> tuple[tuple[str, ...], int, Fraction] | None:
        """(GPUs, threads, share of the machine) for one more job, or None while there is no room.

        Threads depend on the machine, the resources and `slots` only, not on how many jobs are left: a run
        that is continued tomorrow adds its floats in the same order.
        """
        wanted = min(len(self.gpus), 1 if resources.gpus is None else resources.gpus)
        fit = len(self.gpus) // wanted if wanted else self.cores // resources.cpus
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
            folder = self.folders.new()
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
            task = Task(self.target, tuple(run.file for run in runs), self.places, True, gpus)
            for run in runs:
                run.look()
            with _environment(threads), _deaf():
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
            pid, _, begun = (started.folder / "process").read_text().partition(" ")
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


class _Slurm:
    """One job array per kind of resources, through submitit."""

    not_ended = ("READY", "PENDING", "RUNNING", "UNKNOWN", "REQUEUED", "REQUEUE_HOLD", "COMPLETING",
                 "CONFIGURING", "PREEMPTED", "SUSPENDED", "NODE_FAIL", "RESIZING")

    def __init__(self, places: Places, target: str, slots: int | None, options: Mapping[str, Any]) -> None:
        self.places, self.target, self.slots, self.options = places, target, slots, options
        self.folders = _JobFolders(places.runs)
        self.asked = time.monotonic()

    def parameters(self, resources: Resources) -> dict[str, Any]:
        """Of submitit.SlurmExecutor; `options` (the site's habits: partition, account, setup, ...) win."""
        wanted: dict[str, Any] = {
            "job_name": "bench", "time": max(1, math.ceil(resources.hours * 60)), "nodes": resources.nodes,
            "ntasks_per_node": 1, "cpus_per_task": resources.cpus, "array_parallelism": self.slots or 256,
            "signal_delay_s": 120, "stderr_to_stdout": True, "srun_args": ["--kill-on-bad-exit=1"],
        }
        if resources.gpus:
            wanted["gpus_per_node"] = resources.gpus
        if resources.memory_gb:
            wanted["mem"] = f"{math.ceil(resources.memory_gb * 1024)}M"
        return {**wanted, **self.options}

    def start(self, waiting: deque[list[_Run]]) -> list[_Started]:
        import submitit

        groups: dict[Resources, list[list[_Run]]] = {}
        while waiting:
            runs = waiting.popleft()
            groups.setdefault(runs[0].resources, []).append(runs)
        started: list[_Started] = []
        for resources, packs in groups.items():
            folder = self.folders.new()
            # To submitit every signal under a short limit is a time-out, and it gives up after this many.
            executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=10_000)
            for run in (run for runs in packs for run in runs):
                run.look()
            tasks = [Task(self.target, tuple(r.file for r in runs), self.places, False) for runs in packs]
            try:
                executor.update_parameters(**self.parameters(resources))
                jobs = executor.submit_array(tasks)
            except (submitit.core.utils.FailedJobError, ValueError) as error:
                submitted = ", ".join(s.job.job_id for s in started) or "nothing"
                raise BadInput(
                    f"sbatch refused: {_last_line(str(error))} (submitted before that: {submitted})"
                ) from error
            for runs, job in zip(packs, jobs, strict=True):
                started.append(_Started(runs, job, folder / job.job_id))
        return started

    def ended(self, started: _Started) -> bool:
        """The result file first; then, at most every 10 s, the scheduler, whose answer comes late."""
        if started.job.paths.result_pickle.exists():
            return True
        force = time.monotonic() - self.asked > 10
        if force:
            self.asked = time.monotonic()               # one call tells about all jobs
        state = started.job.get_info(mode="force" if force else "cache").get("State", "UNKNOWN")
        return state.partition(" ")[0] not in self.not_ended

    def stop(self, started: Sequence[_Started]) -> None:
        """They are the scheduler's and go on."""


# -- the loop ----------------------------------------------------------------------------------------------


def launch(
    jobs: Sequence[Job],
    how: str = "auto",
    *,
    places: Places,
    wait: bool = True,
    slots: int | None = None,
    on_progress: Progress | None = None,
    slurm: Mapping[str, Any] | None = None,
    target: str = TARGET,
    poll: float = 0.5,
) -> Outcome:
    """Run jobs and say what became of each run.

    how: "debug" (in this process), "local", "slurm" or "auto"; see `pick_launcher`.
    wait: with slurm, stay until all runs have ended (without: return once submitted); everywhere, follow runs
        that somebody else has until they end, and take them over where their owner dies.
    slots: local jobs at a time; left out: as many as their GPUs, else their cores, have room for. With slurm:
        array elements at a time.
    on_progress: called every `poll` seconds with (label, state) of every run, in the order given.
    slurm: parameters of submitit.SlurmExecutor that win over the resources: partition, account, setup, ...

    Raises BadInput where the launcher cannot be used or SLURM refuses. Ctrl-C stops local jobs (by SIGTERM, a
    KeyboardInterrupt in them) and leaves SLURM's alone; the outcome then says `interrupted`.
    """
    launcher, why = pick_launcher(how)
    outcome = Outcome(launcher, why)
    packs = [
        [
            _Run(file, label, job.resources, RunFolder(places.runs, train_id).create())
            for file, label, train_id in zip(job.run_files, job.labels, job.train_ids, strict=True)
        ]
        for job in jobs
    ]
    starter: _Launcher
    if launcher == "debug":
        starter = _Debug(places, target)
    elif launcher == "local":
        starter = _Local(places, target, slots)
    else:
        starter = _Slurm(places, target, slots, slurm or {})
    loop = _Loop(packs, places, starter, outcome, wait, on_progress, poll)
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
        on_progress: Progress | None, poll: float,
    ) -> None:
        self.places, self.launcher, self.outcome, self.wait = places, launcher, outcome, wait
        self.on_progress, self.poll = on_progress, poll
        self.leaving = outcome.launcher == "slurm" and not wait
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
            if self.leaving:
                break
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
        for started in self.launcher.start(self.waiting) if self.waiting else ():
            self.started.append(started)
            for run in started.runs:
                run.starts += 1
                run.status = "running"
            if started.job is not None:
                self.outcome.job_ids.append(started.job.job_id)
                for run in started.runs:
                    _point(run.folder, started, self.outcome.launcher)

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
            if run.status != "running" or self.look(run, ours=False):
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
        logs = [started.job.paths.stdout] if started and started.job else job_logs(run.folder)[:1]
        tail = _tail(logs[0]) if started and logs else ()
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
        if self.outcome.launcher == "slurm":
            return
        for run in (run for started in self.started for run in started.runs if run.status == "running"):
            last = run.folder.last_lease()
            ours = last is not None and last.number > run.lease
            if not self.look(run, ours=False) and ours and run.state and run.state.phase != "waiting":
                _write_state(run, "cancelled", "stopped by Ctrl-C; the same command continues it")

    def counted(self) -> Outcome:
        kinds = {"done": "done", "failed": "failed", "busy": "busy", "following": "busy"}
        slurm = self.outcome.launcher == "slurm"
        for run in self.runs:
            open_ones = "submitted" if slurm and run.status == "running" else "cancelled"
            kind = kinds.get(run.status, open_ones)
            setattr(self.outcome, kind, getattr(self.outcome, kind) + 1)
            if run.failure is not None and run.status == "failed":
                self.outcome.failures.append(run.failure)
        return self.outcome


# -- what a job leaves -------------------------------------------------------------------------------------


def _result(started: _Started) -> tuple[bool, str]:
    """(it returned, else why not)."""
    if started.job is None:
        return True, ""
    if not started.job.paths.result_pickle.exists() and not _is_slurm(started):
        return False, "its process died (killed, or out of memory?)"
    from submitit.core.utils import FailedJobError

    error = started.job.exception()
    if error is None:
        return True, ""
    if isinstance(error, FailedJobError):
        trace = str(error).split("-" * 22)[1]
        return False, f"the job raised {_last_line(trace)}"
    return False, f"its job ended as {started.job.state}"


def _is_slurm(started: _Started) -> bool:
    return type(started.job).__name__ == "SlurmJob"


def _write_failed(run: _Run, reason: str) -> None:
    """Its process could not say so itself. No record: the run continues from its checkpoint when retried."""
    _write_state(run, "failed", reason)


def _write_state(run: _Run, phase: Literal["failed", "cancelled"], reason: str) -> None:
    with contextlib.suppress(OSError):
        if (lease := run.folder.claim()) is not None:
            with lease:
                old = run.folder.read_state()
                kept = {"step": old.step, "steps": old.steps, "restarts": old.restarts} if old else {}
                run.state = State(phase=phase, reason=reason, **kept)
                run.folder.write_state(run.state)


def _point(folder: RunFolder, started: _Started, launcher: str) -> None:
    """Leave in the run's logs/ where the job's own output is; paths relative to the runs."""
    output = started.job.paths.stdout
    where = {"launcher": launcher, "job_id": started.job.job_id, "log": os.path.relpath(output, folder.runs)}
    name = f"{time.time_ns()}-{started.folder.name}.json"
    write_atomic(folder.logs / name, json.dumps(where) + "\n", sync=False)


def job_logs(folder: RunFolder) -> list[Path]:
    """The outputs of the jobs that were started for a run, newest first; of a whole pack each."""
    found = []
    for path in sorted(folder.logs.glob("[0-9]*.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(folder.runs / json.loads(path.read_text())["log"])
    return found


def _tail(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple([line for line in text.splitlines() if line.strip()][-TAIL:])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no answer"
