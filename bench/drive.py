"""What `run`, `retry` and `eval` do once a suite is checked: submit what is missing, follow it, collect. Torch-free,
but for processes that torchrun has started.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import scheduler, submissions
from bench.collect import collect, remember_suite
from bench.errors import BadInput
from bench.files import write_atomic
from bench.follow import follow
from bench.jobs import packed
from bench.launch import launch, pick_launcher
from bench.places import Places
from bench.plan import ANEW, OPEN, TO_RUN, Planned, plan
from bench.preflight import preflight, writable
from bench.provenance import origins
from bench.results import Record
from bench.run import Run
from bench.runs import RunFolder
from bench.stopping import Interrupted, on_signals
from bench.submit import Queue, refuse, submit
from bench.suite import Suite
from bench.task import STOPPED, TARGET, function
from bench.terminal import Bars, HereProgress, Progress, notice

__all__ = ["Driven", "cancel", "drive", "is_first", "join", "leading", "pick", "preflight", "under_torchrun", "writable"]

ROUNDS = 3                  # how often runs that nobody has begun are submitted within one command
PLANNING_WITHIN = 86_400.0  # seconds that torchrun's other processes wait for the first one's plan
STARTING_WITHIN = 1.5       # seconds that a job which was being started may take to show itself
CANCEL_WITHIN = 60.0        # seconds that cancelled local runs have to save


def target() -> str:
    """The function that a job calls. Tests of launching put runs there that need no torch."""
    return os.environ.get("BENCH_TARGET", TARGET)


@dataclass(slots=True)
class Driven:
    """What became of the runs of a suite."""

    launcher: str
    planned: list[Planned]                      # of the whole suite, at the end
    chosen: list[str]                           # train ids that were taken up
    job_ids: list[str] = field(default_factory=list)
    left: bool = False                          # jobs go on, and were not waited for
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 complete (or handed over), 1 some failed, were cancelled or are not done, 130 stopped by Ctrl-C."""
        if self.interrupted:
            return 130
        return int(any(p.status in TO_RUN and p.run.train_id in self.chosen for p in self.planned) and not self.left)


def drive(
    suite: Suite, runs: Sequence[Run], places: Places, planned: Sequence[Planned], *, how: str, why: str,
    takes: Callable[[Planned], bool], chosen: Collection[str], skipped: dict[str, str], slots: int | None, wait: bool,
) -> Driven:
    """Take up those of the chosen runs that `takes` says with launcher `how`, and wait for them and for those that are in
    somebody else's hands already.
    """
    name = suite.name
    refuse([p.run.resources for p in planned if p.run.train_id in chosen and takes(p)], how)
    remember_suite(suite, places)
    for run in runs:
        if run.train_id in skipped:
            _record_skipped(run, skipped[run.train_id], places)
    concerned = [p for p in planned if p.run.train_id in chosen and p.run.train_id not in skipped]
    todo = [p for p in concerned if takes(p) and (p.status != "stale" or _set_aside(p, places, name))]
    theirs = [p for p in concerned if p.status in OPEN]
    done = Driven(how, list(planned), [p.run.train_id for p in (*todo, *(theirs if wait else ()))])
    if todo:
        notice.print(f"{name}: {len(todo)} of {len(runs)} runs to do, launcher {how} ({why})", markup=False)
    if how in ("debug", "torchrun"):
        _here(done, todo, name, places)
    elif todo or (theirs and wait):
        _elsewhere(done, todo, theirs, name, places, takes, slots, wait)
    done.planned = plan(runs, places, name)
    return done


def _here(done: Driven, todo: Sequence[Planned], name: str, places: Places) -> None:
    """In this process, and those that torchrun has started beside it."""
    files = _run_files(todo, name, places)
    if done.launcher == "torchrun":
        done.interrupted = _together([file for file, _ in files], places) == STOPPED
    elif todo:
        jobs = packed(files)
        done.interrupted = launch(jobs, "debug", places=places, on_progress=HereProgress(), target=target()).interrupted


def _elsewhere(
    done: Driven, todo: Sequence[Planned], theirs: Sequence[Planned], name: str, places: Places,
    takes: Callable[[Planned], bool], slots: int | None, wait: bool,
) -> None:
    concerned = [p.run for p in (*todo, *theirs)]
    progress, queues = _Collecting(Progress(name), name, places), []
    try:
        for _ in range(ROUNDS):
            if todo:
                before = {p.run.train_id: p.submission if p.status != "stale" else None for p in todo}
                with on_signals(signal.SIGINT) as stop:         # nobody comes between a ticket and its job
                    handed = submit(packed(_run_files(todo, name, places)), done.launcher, places=places, slots=slots,
                                    before=before, target=target())
                    done.job_ids += handed.job_ids
                    queues += [handed.queue] if handed.queue is not None else []
                if stop.is_set():
                    raise KeyboardInterrupt
                if handed.job_ids and done.launcher == "slurm":
                    notice.print(f"submitted {len(handed.runs)} runs in {len(handed.job_ids)} jobs", markup=False)
            if not wait:
                done.left = True
                return
            todo = [p for p in follow(concerned, places, name, progress) if _never_begun(p, takes)]
            if not todo:
                return
    except KeyboardInterrupt:
        done.interrupted = True
        progress.close()
        _detach(queues)
    finally:
        progress.close()


def _never_begun(p: Planned, takes: Callable[[Planned], bool]) -> bool:
    """Nobody has it and nobody has failed at it: its owner is gone, or the job that held it died at another run."""
    shared = p.submission is not None and p.submission.ticket is not None and p.submission.ticket.runs > 1
    return (p.status in ("new", "resume", "measure") and takes(p)) or (
        p.status == "failed" and shared and not p.began)


def _detach(queues: Sequence[Queue]) -> None:
    """After Ctrl-C: our local queues stop their jobs, which save first; SLURM's jobs and others' queues go on."""
    if any(queue.alive() for queue in queues):
        notice.print("stopping; the jobs save first")
    for queue in queues:
        queue.stop()


class _Collecting:
    """Shows progress, and joins the records of runs that have just ended to the suite's, so that nothing waits for the end."""

    def __init__(self, progress: Progress, name: str, places: Places) -> None:
        self.progress, self.name, self.places = progress, name, places
        self.ended: set[str] | None = None      # when the records were last joined
        self.due = 0.0

    def __call__(self, planned: list[Planned]) -> None:
        ended = {p.run.train_id for p in planned if p.status not in OPEN}
        began = time.monotonic()
        if self.ended is None:
            self.ended = ended
        elif ended - self.ended and began >= self.due:
            collect(self.name, [p.run for p in planned], self.places)
            self.ended = ended
            self.due = began + 10 * (time.monotonic() - began)      # of a thousand runs it takes a second
        self.progress(planned)

    def close(self) -> None:
        self.progress.close()


def _run_files(todo: Sequence[Planned], name: str, places: Places) -> list[tuple[str, Run]]:
    """Each run as JSON in its folder, for the job that executes it."""
    files = []
    for p in todo:
        file = RunFolder(places.runs, p.run.train_id).create().path / f"run-{name}.json"
        try:
            write_atomic(file, p.run.model_dump_json(), sync=False)
        except OSError as error:
            raise BadInput(f"{file}: cannot be written ({error.strerror}); mend that, or choose another folder of runs with "
                           "--runs or BENCH_RUNS") from error
        files.append((str(file), p.run))
    return files


def _record_skipped(run: Run, reason: str, places: Places) -> None:
    folder = RunFolder(places.runs, run.train_id)
    there = folder.record()
    if there is not None and (there.trained or (there.state == "skipped" and there.reason == reason)):
        return
    folder.create().write_record(Record(
        train_id=run.train_id, label=run.label, state="skipped", reason=reason, debug=run.train.debug,
        spec=run.train.model_dump(mode="json"), fields=run.fields, components=run.components, data=run.data,
        provenance=origins(run.train, run.start.label if run.start is not None else None),
    ))


def _set_aside(p: Planned, places: Places, name: str) -> bool:
    """A stale run is trained anew; what it came to with the old code stays, under `_stale`. False where somebody else has
    taken the run up since it was planned."""
    folder = RunFolder(places.runs, p.run.train_id)
    [now] = plan([p.run], places, name)
    if now.status != "stale" or folder.owner() is not None:
        notice.print(f"{p.run.label}: left alone, somebody has taken it up", markup=False)
        return False
    if folder.path.is_dir() and not (folder.path / ANEW).exists():
        aside = folder.runs / "_stale" / f"{folder.train_id}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder.path, aside)
        except FileNotFoundError:               # another `retry --stale` was faster
            return False
        notice.print(f"{folder.train_id}: the old run is kept in {aside}", markup=False)
    (folder.create().path / ANEW).touch()
    return True


def measure_baselines(
    name: str, runs: Sequence[Run], asked: Sequence[Any], places: Places, *, forget: bool = True,
) -> list[Record]:
    """A suite's sanity rows, on this machine; those that are measured already are not measured again. `forget`: rows
    that are not asked for leave."""
    from bench.sanity import measure_sanity

    with Bars("sanity row") as bars:
        return measure_sanity(name, runs, asked, places, progress=bars, forget=forget)


def measure_checkpoints(suite: Suite, places: Places, *, name: str | None = None, batch_size: int | None = None,
                        debug: bool = False) -> list[Record]:
    """The checkpoints of a suite that were trained elsewhere, on this machine; what is measured already is not measured
    again. name: under which records are kept."""
    from bench.checkpoint_records import BATCH
    from bench.checkpoint_records import measure_checkpoints as measure

    with Bars("measuring") as bars:
        return measure(name or suite.name, suite.checkpoints(), suite.measurements(places, debug=debug), places,
                       batch_size=batch_size or BATCH, progress=bars)


# -- cancelling --------------------------------------------------------------------------------------------------------


def cancel(planned: Sequence[Planned], places: Places) -> Iterator[str]:
    """End runs that are pending or running, whoever started them; sentences about what could not be done.

    The wish is written into each run's folder first, so that its end is shown as cancelled and never as failed.
    """
    slurm: list[str] = []
    local: list[RunFolder] = []
    for p in planned:
        folder, ticket = RunFolder(places.runs, p.run.train_id), p.submission.ticket if p.submission else None
        if ticket is not None and ticket.launcher == "slurm" and ticket.cluster not in ("", scheduler.cluster_name()):
            here = scheduler.cluster_name()
            yield f"{p.run.label}: job {ticket.job} is of the cluster {ticket.cluster}" + (
                "; cancel it there" if here else ", which does not answer; it was not cancelled")
            continue
        if p.submission is not None:
            try:
                p.submission.cancel()
            except OSError as error:
                yield f"{p.run.label}: cannot be cancelled ({error.strerror})"
                continue
        if ticket is not None and ticket.launcher == "slurm" and ticket.job is not None:
            slurm.append(ticket.job)
            if ticket.runs > 1:
                yield f"{p.run.label} shares job {ticket.job} with {ticket.runs - 1} other runs, which end with it"
        elif p.owner is not None and not p.owner.here:
            yield f"{p.run.label}: {p.owner} has it, which cannot be stopped from here"
        else:
            local.append(folder)
    if slurm and (trouble := scheduler.cancel(slurm)):
        yield f"SLURM did not cancel: {trouble}"
    _end_here(local)
    deadline = time.monotonic() + CANCEL_WITHIN
    while slurm and time.monotonic() < deadline and _queued(slurm):
        time.sleep(1.5)


def _end_here(folders: Sequence[RunFolder]) -> None:
    """Ask the processes that have these runs to end, also those that are just being started, and wait until they have.

    A local queue has a run for the moment in which it writes that it was cancelled: it is not asked, since it has other
    runs to start.
    """
    asked: set[int] = set()
    began = quiet = time.monotonic()
    while folders and time.monotonic() < began + CANCEL_WITHIN and time.monotonic() < quiet + STARTING_WITHIN:
        owners = [owner for folder in folders if (owner := folder.owner()) is not None and owner.here]
        tickets = [s.ticket for folder in folders if owners and (s := submissions.latest(folder)) is not None]
        queues = {ticket.pid for ticket in tickets if ticket is not None and ticket.launcher == "local"}
        for owner in owners:
            quiet = time.monotonic()
            if owner.pid not in asked | queues:
                asked.add(owner.pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(owner.pid, signal.SIGTERM)
        time.sleep(0.1)


def _queued(jobs: Sequence[str]) -> bool:
    told = scheduler.ask(jobs)
    return told is not None and any(not job.ended for job in told.values())


# -- torchrun ----------------------------------------------------------------------------------------------------------


def under_torchrun() -> bool:
    """Whether this is one of several processes that work on the same runs: torchrun --nproc-per-node N -m bench run ..."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def pick(launcher: str) -> tuple[str, str]:
    """(launcher, why): torchrun where it has started us, else bench.launch.pick_launcher."""
    if not under_torchrun():
        return pick_launcher(launcher)
    if launcher not in ("auto", "debug"):
        raise BadInput(f"--launcher {launcher}: torchrun has started these processes, and the runs stay in them; leave it out")
    return "torchrun", f"{os.environ['WORLD_SIZE']} processes"


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """The first of torchrun's processes plans for all; should it fail at that, the others are told to leave."""
    if not under_torchrun():
        yield
        return
    from bench.distributed import start

    start()
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            _tell(None)
        raise


def join() -> int:
    """What torchrun's other processes do: wait for the plan, work on its runs, and end with the same exit code."""
    from bench.distributed import start

    start()
    told = _tell(None)
    if told is None:
        return 2
    files, places = told
    return _work(files, places)


def _together(files: list[str], places: Places) -> int:
    _tell((files, places))
    return _work(files, places)


def _tell(what: object) -> object:
    """The first process's word, in all of them; it may have planned and decoded for hours before it says it."""
    from bench.distributed import from_main, meet

    meet(PLANNING_WITHIN)
    return from_main(lambda: what)


def _work(files: list[str], places: Places) -> int:
    from bench import distributed

    with on_signals(signal.SIGINT, signal.SIGTERM) as stop:
        try:
            function(target())(files, places, stop, None)
        except Interrupted:
            return STOPPED
        finally:
            distributed.stop()
    return 0
