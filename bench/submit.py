"""Hand jobs over, and return: to SLURM, or to a local queue that goes on when this process ends. Torch-free.

Each run is claimed first by the next ticket in its folder (bench/submissions.py), so that of two launchers at once
one submits. The code as it is now is stored beside the jobs, for them to compare with what they run.

    python -m bench.submit FOLDER       the local queue itself; FOLDER/queue.json says what it runs
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import scheduler, slurm, submissions
from bench.errors import BadInput
from bench.files import write_atomic
from bench.jobs import Job, JobFolders
from bench.launch import STOP_WITHIN, launch
from bench.places import Places
from bench.provenance import provenance, save_code
from bench.resources import Resources
from bench.runs import BEAT_EVERY, RunFolder, machine, process_gone, process_start
from bench.submissions import Submission
from bench.task import TARGET


@dataclass(slots=True)
class Queue:
    """A local queue: a process of its own session, which Ctrl-C and a closed terminal do not reach."""

    pid: int
    started: str
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "queue.log"

    def alive(self) -> bool:
        return not process_gone(self.pid, self.started)

    def stop(self) -> None:
        """Ask it to stop its jobs (they save first) and wait until it is gone."""
        deadline = time.monotonic() + STOP_WITHIN + 10
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)


@dataclass(slots=True)
class Submitted:
    """What was handed over."""

    job_ids: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)       # train ids
    busy: list[str] = field(default_factory=list)       # train ids that another launcher has taken meanwhile
    queue: Queue | None = None


def refuse(resources: Iterable[Resources], how: str) -> None:
    """Raises BadInput for what a launcher cannot give, before anything is touched."""
    if how == "local" and (wide := [r.nodes for r in resources if r.nodes > 1]):
        raise BadInput(f"resources.nodes = {wide[0]}: several machines need --launcher slurm")


def submit(
    jobs: Sequence[Job], how: str, *, places: Places, before: Mapping[str, Submission | None], slots: int | None = None,
    target: str = TARGET,
) -> Submitted:
    """Claim the runs and hand their jobs to "slurm" or to a new "local" queue.

    before: the newest ticket of each run when it was decided to submit it. slots: local jobs, or array elements, at a
    time. Raises BadInput in SLURM's words where it refuses; tickets of jobs that it did not take are given back.
    """
    done = Submitted()
    tickets: dict[str, Submission] = {}
    try:
        free = []
        for job in jobs:
            for train_id in job.train_ids:
                folder = RunFolder(places.runs, train_id).create()
                if (ticket := submissions.claim(folder, how, before.get(train_id))) is None:
                    done.busy.append(train_id)
                else:
                    tickets[train_id] = ticket
            if (rest := _only(job, tickets)) is not None:
                free.append(rest)
        folder = JobFolders(places.runs).new()
        save_code(folder)
        code, facts = os.path.relpath(folder, places.runs), provenance()
        if how == "slurm":
            for job, spot in slurm.submit(free, places, slots, target, facts):
                done.job_ids.append(spot.job)
                for ticket in [tickets.pop(train_id) for train_id in job.train_ids]:
                    done.runs.append(ticket.folder.train_id)
                    with contextlib.suppress(OSError):      # SLURM has it: a ticket without its number is still one
                        ticket.update(**dataclasses.asdict(spot), runs=len(job.train_ids), code=code)
        elif free:
            done.queue = _start_queue(free, places, slots, target, facts, folder)
            done.job_ids.append(folder.name)
            done.runs, tickets = list(tickets), {}
    except BadInput as refused:
        if not done.job_ids:
            raise
        raise BadInput(f"{refused} (accepted before that, and going on: {', '.join(done.job_ids)})") from refused
    except OSError as error:
        raise BadInput(f"{error.filename or places.runs}: cannot be written ({error.strerror}); mend that, or choose another "
                       "folder of runs with --runs or BENCH_RUNS") from error
    finally:
        for ticket in tickets.values():
            ticket.withdraw()
    return done


def _only(job: Job, tickets: Mapping[str, Submission]) -> Job | None:
    """The runs of a job that we have tickets for, or None without any."""
    kept = [i for i, train_id in enumerate(job.train_ids) if train_id in tickets]
    if not kept:
        return None
    return Job(tuple(job.run_files[i] for i in kept), tuple(job.labels[i] for i in kept),
               tuple(job.train_ids[i] for i in kept), job.resources, job.after)


# -- the local queue ---------------------------------------------------------------------------------------------------


def _start_queue(
    jobs: Sequence[Job], places: Places, slots: int | None, target: str, facts: Mapping[str, Any], folder: Path,
) -> Queue:
    content = {
        "jobs": [dataclasses.asdict(job) | {"resources": job.resources.model_dump(mode="json")} for job in jobs],
        "places": {k: str(v) for k, v in dataclasses.asdict(places).items() if v is not None},
        "slots": slots, "target": target, "submitted": dict(facts),
    }
    write_atomic(folder / "queue.json", json.dumps(content), sync=False)
    with (folder / "queue.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "bench.submit", str(folder)], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)
    while not (folder / submissions.QUEUE_BEAT).exists():      # until then the tickets are ours
        if process.poll() is not None:
            raise BadInput(f"the local queue ended at once: {scheduler.last_line((folder / 'queue.log').read_text())}")
        time.sleep(0.02)
    return Queue(process.pid, process_start(process.pid) or "", folder)


def _beat(file: Path) -> None:
    """Say that the queue lives, to those who cannot see its process."""
    while True:
        time.sleep(BEAT_EVERY)
        with contextlib.suppress(OSError):
            os.utime(file)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    folder = Path(sys.argv[1])
    given = json.loads((folder / "queue.json").read_text())
    places = Places(**{f.name: Path(given["places"][f.name]) if f.name in given["places"] else None
                       for f in dataclasses.fields(Places)})
    jobs = [Job(tuple(j["run_files"]), tuple(j["labels"]), tuple(j["train_ids"]), Resources(**j["resources"]),
                tuple(j["after"])) for j in given["jobs"]]
    ours = {"pid": os.getpid(), "started": process_start(os.getpid()) or "", "machine": machine(), "job": folder.name,
            "code": os.path.relpath(folder, places.runs)}
    tickets = {i: ticket.update(**ours) for job in jobs for i in job.train_ids
               if (ticket := submissions.latest(RunFolder(places.runs, i))) is not None and ticket.ticket is not None}
    write_atomic(folder / submissions.QUEUE_BEAT, b"", sync=False)
    threading.Thread(target=_beat, args=(folder / submissions.QUEUE_BEAT,), name="beat", daemon=True).start()
    outcome = launch(jobs, "local", places=places, slots=given["slots"], target=given["target"], tickets=tickets,
                     submitted=given["submitted"])
    logging.info("%d done, %d failed, %d not finished", outcome.done, outcome.failed, outcome.cancelled + outcome.busy)
    sys.exit(outcome.exit_code)


if __name__ == "__main__":
    main()
