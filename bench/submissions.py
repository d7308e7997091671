"""What was submitted for a run: one numbered ticket each time, in its folder's jobs/. Torch-free.

    000003.claim        exclusive create: whoever makes it submits, so that two launchers at once submit one job
    000003.json         where the job is, once the scheduler (or a local queue) has it
    000003.withdrawn    it was refused, or its launcher gave up
    000003.cancelled    somebody asked for its end
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.files import write_atomic
from bench.runs import STALE_AFTER, RunFolder, machine, process_gone, process_start, rebooted, server_time

QUEUE_BEAT = "ready"        # in a local queue's folder: there once it has its tickets, and touched while it lives
CANCELLED = "cancelled by `bench cancel`; `bench retry` continues it"


class Ticket(BaseModel):
    """Who took the ticket, and which job came of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    launcher: str                       # "slurm", "local"
    host: str
    machine: str
    user: str = ""
    pid: int                            # of the launcher; then of the local queue
    started: str
    cluster: str = ""
    job: str | None = None              # SLURM's `12` or `12_3`; of a local queue its name
    log: str | None = None              # the job's output, relative to the folder of runs
    runs: int = 1                       # how many runs share the job
    code: str | None = None             # the code at submission (provenance.json, changes.patch), relative to the folder of runs


@dataclass(frozen=True, slots=True)
class Submission:
    """The newest ticket of a run that was not withdrawn."""

    folder: RunFolder
    number: int
    claimed: float                      # mtime of the claim: the file server's clock
    ticket: Ticket | None               # None: claimed this moment, or its launcher died before it wrote
    cancelled: bool

    @property
    def job(self) -> str | None:
        return None if self.ticket is None else self.ticket.job

    @property
    def process_alive(self) -> bool | None:
        """Whether the process that stands behind it (the launcher, the local queue) lives; None: not to be seen from here.

        A queue of another machine, or of this one before it was started anew, has ended once it beats no more.
        """
        if self.ticket is None:
            return None
        if self.ticket.machine == machine():
            return not process_gone(self.ticket.pid, self.ticket.started)
        if rebooted(self.ticket.machine) or (self.ticket.job is not None and self._silence() > STALE_AFTER):
            return False
        return None

    def _silence(self) -> float:
        """Seconds since the local queue last beat, by the file server's clock; 0 where that cannot be seen."""
        try:
            beaten = (self.folder.runs / "_jobs" / str(self.job) / QUEUE_BEAT).stat().st_mtime
        except OSError:
            return 0.0
        return server_time(self.folder.path) - beaten

    def asked_to_end(self) -> bool:
        """Whether somebody has cancelled it, also since this was read."""
        return self.cancelled or self._path("cancelled").exists()

    def cancel(self) -> None:
        """Say that its end was asked for; who looks at the run then knows that it did not fail."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path("cancelled"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    def withdraw(self) -> None:
        """Nothing came of it."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._path("withdrawn"), os.O_CREAT | os.O_WRONLY, 0o666))

    def update(self, **changes: object) -> Submission:
        """Write where the job is now."""
        assert self.ticket is not None
        ticket = self.ticket.model_copy(update=changes)
        write_atomic(self._path("json"), ticket.model_dump_json() + "\n", sync=False)
        return Submission(self.folder, self.number, self.claimed, ticket, self.cancelled)

    def _path(self, kind: str) -> Path:
        return self.folder.jobs / f"{self.number:06d}.{kind}"


def user() -> str:
    """Whose tickets ours are; "" where nobody knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def claim(folder: RunFolder, launcher: str, after: Submission | None) -> Submission | None:
    """Take the next ticket of a run; None where somebody else has taken it since `after` was read."""
    number = 0 if after is None else after.number + 1
    ticket = Ticket(launcher=launcher, host=socket.gethostname(), machine=machine(), user=user(), pid=os.getpid(),
                    started=process_start(os.getpid()) or "")
    path = folder.jobs / f"{number:06d}.claim"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return _withdrawn_then_next(folder, launcher, number)
    with os.fdopen(descriptor, "w") as file:
        file.write(ticket.model_dump_json() + "\n")
        file.flush()
        return Submission(folder, number, os.fstat(descriptor).st_mtime, ticket, False)


def _withdrawn_then_next(folder: RunFolder, launcher: str, number: int) -> Submission | None:
    """Numbers of withdrawn tickets are not used again; a ticket that is taken and not withdrawn is somebody's."""
    if not (folder.jobs / f"{number:06d}.withdrawn").exists():
        return None
    return claim(folder, launcher, Submission(folder, number, 0.0, None, False))


def latest(folder: RunFolder) -> Submission | None:
    """The newest ticket that was not withdrawn, or None. One listing and one small file."""
    found = _listed(folder)
    return next((read for number in sorted(found, reverse=True) if "withdrawn" not in found[number]
                 and (read := _read(folder, number, found[number])) is not None), None)


def all_of(folder: RunFolder) -> list[Submission]:
    """Every ticket of a run that was not withdrawn, newest first."""
    found = _listed(folder)
    read = (_read(folder, n, found[n]) for n in sorted(found, reverse=True) if "withdrawn" not in found[n])
    return [s for s in read if s is not None]


def logs(folder: RunFolder) -> list[Path]:
    """The outputs of the jobs that were submitted for a run, newest first; of a whole pack each."""
    found = [folder.runs / s.ticket.log for s in all_of(folder) if s.ticket is not None and s.ticket.log]
    return [path for path in found if path.is_file()]


def tail(path: Path, lines: int = 12) -> tuple[str, ...]:
    """The last lines of a log that are not empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000 * lines))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple([line for line in text.splitlines() if line.strip()][-lines:])


def _listed(folder: RunFolder) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    try:
        names = os.listdir(folder.jobs)
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in names:
        number, _, kind = name.partition(".")
        if number.isdigit():
            found.setdefault(int(number), set()).add(kind)
    return found


def _read(folder: RunFolder, number: int, kinds: set[str]) -> Submission | None:
    base = folder.jobs / f"{number:06d}"
    ticket = None
    try:
        claimed = os.stat(f"{base}.claim").st_mtime
        text = Path(f"{base}.{'json' if 'json' in kinds else 'claim'}").read_text()
        with contextlib.suppress(ValidationError, json.JSONDecodeError):
            ticket = Ticket.model_validate_json(text)
    except OSError:
        return None
    return Submission(folder, number, claimed, ticket, "cancelled" in kinds)
