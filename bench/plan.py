"""How each run of a suite stands: its folder first, the committed records second, the scheduler last. Torch-free."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.collect import records_file
from bench.places import Places
from bench.provenance import source_digest
from bench.registry import source_closure
from bench.results import Record, Value, read_records, union
from bench.run import Run
from bench.runs import SILENT, Owner, RunFolder, State, server_time
from bench.scheduler import JobStatus, ask, cluster_name
from bench.submissions import CANCELLED, Submission, Ticket, latest, user

Status = Literal["new", "resume", "measure", "pending", "running", "done", "stale", "failed", "cancelled", "skipped", "unknown"]
TO_RUN = ("new", "resume", "measure", "failed", "cancelled")
OPEN = ("pending", "running", "unknown")        # in somebody's hands, as far as is known
ANEW = "anew"               # a file in the folder of a run that is trained again, whatever is recorded of it
SETTLING = 60.0             # seconds that a network file system may take to show what a job wrote last
SUBMITTING = 120.0          # seconds that a launcher may take from the ticket to the scheduler's answer


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of a suite, as it stands."""

    run: Run
    status: Status
    note: str = ""
    record: Record | None = None
    state: State | None = None
    owner: Owner | None = None
    submission: Submission | None = None
    job: JobStatus | None = None                # what the scheduler says of it, where it was asked
    began: bool = False                         # its newest submission, if any, has come to write a state
    hours: float | None = None                  # estimate, from the speed of measured runs of the same model

    @property
    def requeued(self) -> int:
        """How often the scheduler has put its job back into the queue."""
        return max(self.state.requeued if self.state else 0, self.job.restarts if self.job else 0)


def plan(runs: Sequence[Run], places: Places, name: str) -> list[Planned]:
    """How each run stands: run folders first, the committed records second, the scheduler last.

    The scheduler is asked once for all, and only about runs that are not done; whatever it says, a run whose folder
    holds all that was asked for is done, and one whose owner's lease beats is running.
    """
    lines = {r.train_id: r for r in read_records(records_file(places, name))}
    collected = records_file(places, name).stat().st_mtime if lines else 0.0
    speeds = _speeds(lines.values())
    now = server_time(places.runs) if places.runs.is_dir() else 0.0
    found = [_Look(run, places, lines.get(run.train_id), speeds, now, collected) for run in runs]
    jobs = ask([job for look in found if (job := look.job_in_question()) is not None]) if any(
        look.job_in_question() for look in found) else {}
    # A job that has ended meanwhile may have finished its run since the folder was read.
    again = [_Look(look.run, places, lines.get(look.run.train_id), speeds, now, collected)
             if jobs and (job := jobs.get(look.job_in_question() or "")) is not None and job.ended else look for look in found]
    return [look.planned(jobs) for look in again]


class _Look:
    """What one run's folder says, read once."""

    def __init__(self, run: Run, places: Places, line: Record | None, speeds: dict[str, float], now: float,
                 collected: float) -> None:
        self.run, self.now = run, now
        self.folder = folder = RunFolder(places.runs, run.train_id)
        if line is not None and (folder.path / ANEW).exists():
            line = None                         # of the code before; the folder's own record will win over it
        self.record, self.lacking = line, _lacking(run, line.values if line is not None else {})
        if line is None or line.state != "done" or self.lacking or self._newer_than(collected):
            self.record = next(iter(union(*([r] for r in (line, folder.record()) if r is not None))), None)
            self.lacking = _lacking(run, {**(self.record.values if self.record else {}), **folder.read_values()})
        self.trained = self.record is not None and self.record.trained
        self.complete = self.trained and not self.lacking and (
            self.record.state != "trained" or not (folder.checkpoints / "final.pt").is_file())
        speed = speeds.get(_speed_key(run.fields))
        self.hours = None if speed is None else run.train.steps * run.train.batch_size / speed / 3600
        self.state = self.owner = self.submission = None
        if not self.complete:
            self.state, self.owner, self.submission = folder.read_state(), folder.owner(now), latest(folder)

    def _newer_than(self, collected: float) -> bool:
        """Whether the folder's record was written after the committed records, which hold all that is older."""
        try:
            return (self.folder.path / "record.json").stat().st_mtime >= collected
        except OSError:
            return False

    def job_in_question(self) -> str | None:
        """The SLURM job that the scheduler has to be asked about."""
        ticket = self.submission.ticket if self.submission is not None else None
        if ticket is None or ticket.launcher != "slurm" or ticket.job is None:
            return None
        return ticket.job if cluster_name() in ("", ticket.cluster) or not ticket.cluster else None

    def planned(self, jobs: Mapping[str, JobStatus] | None) -> Planned:
        status, note = self.standing(jobs)
        job = None if jobs is None or self.submission is None else jobs.get(self.submission.job or "")
        began = self.submission is not None and self._newer("state.json", self.submission)
        return Planned(self.run, status, note, self.record, self.state, self.owner, self.submission, job, began, self.hours)

    def standing(self, jobs: Mapping[str, JobStatus] | None) -> tuple[Status, str]:
        if self.complete:
            old = self.record.provenance.get("sources")
            if old and old != run_digest(self.run):
                return "stale", "trained with other source code of its parts"
            return "done", ""
        if self.owner is not None and not self._owner_is_gone(jobs):
            return "running", str(self.owner)
        if self.submission is not None and (found := self._submitted(self.submission, jobs)) is not None:
            return found
        return self._at_rest()

    def _owner_is_gone(self, jobs: Mapping[str, JobStatus] | None) -> bool:
        """Silent for a while, and its job has ended: no need to wait for the lease to go stale."""
        if self.owner.quiet < SILENT or self.owner.job_id is None or not jobs:
            return False
        job = jobs.get(self.owner.job_id.rpartition("/")[2])
        return job is not None and (job.ended or job.pending)

    def _submitted(self, submission: Submission, jobs: Mapping[str, JobStatus] | None) -> tuple[Status, str] | None:
        """What follows from the newest ticket; None where it says nothing any more."""
        ticket, state = submission.ticket, self.state
        if self._superseded(submission):
            return None
        told = state is not None and (state.ended or state.phase == "cancelled") and self._newer("state.json", submission)
        if told and state.phase == "done":
            return None                             # it came to its end; what is lacking was asked for later
        if ticket is None or (ticket.job is None and not submission.process_alive):
            return ("pending", "being submitted") if self.now - submission.claimed < SUBMITTING and not (
                ticket is not None and submission.process_alive is False) else None
        if ticket.job is None:
            return "pending", f"being submitted by process {ticket.pid} on {ticket.host}"
        if told and state.phase == "failed":
            return "failed", state.reason or ""
        # What SLURM has, or may have, is not cancelled by the wish alone: scancel may have failed.
        job = None if jobs is None or ticket.job is None else jobs.get(ticket.job)
        kept = ticket.launcher == "slurm" and (job is None or not job.ended)
        if (submission.cancelled and not kept) or (told and state.phase == "cancelled"):
            return "cancelled", _at_step(state, (state.reason if told and state.phase == "cancelled" else None) or CANCELLED)
        if ticket.launcher == "local":
            if submission.process_alive:
                return "pending", f"in the queue of process {ticket.pid}"
            if submission.process_alive is None:
                return "unknown", f"in the queue of process {ticket.pid} on {ticket.host}; look there"
            return None
        return self._on_slurm(submission, ticket, job)

    def _on_slurm(self, submission: Submission, ticket: Ticket, job: JobStatus | None) -> tuple[Status, str] | None:
        what = f"job {ticket.job}"
        if self.job_in_question() is None:
            return "unknown", f"{what} of the cluster {ticket.cluster}; ask there"
        if job is None:
            return "unknown", f"{what}; the scheduler does not answer"
        if job.pending:
            return "pending", f"{what}, {job.state.lower()}" + (f" ({job.reason})" if job.reason else "")
        if job.running:
            begun = "ending" if job.state == "COMPLETING" else "starting" if ticket.runs == 1 else "its other runs come first"
            return ("running" if ticket.runs == 1 else "pending"), f"{what}, {begun}"
        began = self._newer("state.json", submission)
        if not job.state and ticket.user not in ("", user()):
            return "unknown", f"{what} of {ticket.user}, which the scheduler does not show to others"
        if job.state == "CANCELLED":
            return "cancelled", _at_step(self.state if began else None, f"{what} was cancelled")
        if not job.state and not began:
            return "cancelled", f"{what} left the queue before it began: cancelled while it was pending"
        if job.state == "COMPLETED" and not began and ticket.runs > 1:
            return None
        if job.state == "COMPLETED" and self.trained:
            return None                             # measured as far as was asked then
        if job.state == "COMPLETED" and (job.over_since is None or time.time() - job.over_since < SETTLING):
            return "running", f"{what} has ended; its folder does not say so yet"
        return "failed", _at_step(self.state if began else None, f"{what}: {job.why()}")

    def _superseded(self, submission: Submission) -> bool:
        """Somebody who came without a ticket (`--launcher debug`, torchrun) has had the run since."""
        last = self.folder.last_lease()
        if last is None or last.signature is None or submission.ticket is None or last.beaten < submission.claimed:
            return False
        ticket, signature = submission.ticket, last.signature
        if ticket.launcher == "slurm" and ticket.job is not None:
            return (signature.job_id or "").rpartition("/")[2] != ticket.job
        return False

    def _newer(self, name: str, submission: Submission) -> bool:
        """Whether a file of the run was written after the ticket was taken, by the file server's clock."""
        try:
            return (self.folder.path / name).stat().st_mtime >= submission.claimed
        except OSError:
            return False

    def _at_rest(self) -> tuple[Status, str]:
        """Nobody has it."""
        folder, record, state = self.folder, self.record, self.state
        weights = (folder.checkpoints / "final.pt").is_file()
        if self.trained and not self.lacking:
            return "measure", "all is measured, but its record does not say so yet"
        if self.trained and weights:
            return "measure", f"without {', '.join(self.lacking)}"
        if self.trained:
            return "new", f"its weights are not here and it lacks {', '.join(self.lacking)}"
        if record is not None and record.state == "skipped":
            return "skipped", record.reason or ""
        if record is not None:
            return "failed", record.reason or ""
        if state is not None and state.phase in ("failed", "cancelled"):
            return state.phase, _at_step(state, state.reason or "")
        if weights or any(folder.checkpoints.glob("step-*.pt")):
            return "resume", _at_step(state, state.reason or "" if state is not None and state.phase == "waiting" else "")
        return ("stale", "its old run is aside; to be trained anew") if (folder.path / ANEW).exists() else ("new", "")


def _at_step(state: State | None, sentence: str) -> str:
    if state is None or not state.step or f"step {state.step}" in sentence:
        return sentence
    return f"{sentence}, at step {state.step:,}" if sentence else f"from step {state.step:,}"


def _speed_key(fields: dict[str, object]) -> str:
    kept = {k: v for k, v in fields.items() if k.startswith("tokenizer.") and "quantizer" not in k}
    return json.dumps({**kept, "size": fields.get("dataset.image_size")}, sort_keys=True, default=str)


def _speeds(records: Iterable[Record]) -> dict[str, float]:
    """Images per second of trained runs, by model and image size; the slowest counts."""
    speeds: dict[str, float] = {}
    for record in records:
        speed = record.cost.get("images_per_second")
        if record.trained and speed:
            key = _speed_key(record.fields)
            speeds[key] = min(speed, speeds.get(key, speed))
    return speeds


def _lacking(run: Run, known: Mapping[str, Value]) -> list[str]:
    if not known:
        return [w.name for w in run.values]
    return [w.name for w in run.values if w.value_id not in known or (known[w.value_id].number is None
            and known[w.value_id].reason is None)]


def run_digest(run: Run) -> str:
    """Digest of the source files of a run's components, with what they import from this project."""
    return _digest(frozenset(source for c in run.components.values() if (source := c.source) is not None))


@functools.cache
def _digest(sources: frozenset[str]) -> str:
    return source_digest(source_closure(map(Path, sources)))
