"""Everything on disk about a run: its folder, who owns it, its state, its record. Torch-free.

    <runs>/<train_id>/
      spec.json                    exclusive create; differing content under one id stops with both
      lease.000000, lease.000001   who owns the run: never renamed, never deleted; the highest number counts
      lease.000000.released        beside a lease that its owner has given back
      state.json                   where the run is, written by its owner
      jobs/                        what was submitted for it, see bench/submissions.py
      checkpoints/ curves/ arrays/ values/ images/ logs/ code/
      record.json                  exists exactly when training has ended, well or not

No locks, no database, no appending: exclusive create, or written aside and renamed. Readers take what they
cannot parse (left by a crash) as absent, with a warning.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import scheduler
from bench.errors import BadInput
from bench.files import sync_folder, write_aside, write_atomic
from bench.results import Record, Value

log = logging.getLogger(__name__)

BEAT_EVERY = 20.0           # seconds between two beats of a lease
STALE_AFTER = 600.0         # seconds without a beat after which a lease is free; 30 missed beats
SILENT = 30.0               # seconds without a beat after which a scheduler is believed that says the owner's job has ended
UNSIGNED_AFTER = 30.0       # seconds after which a lease without content is free: its creator died in between

M = TypeVar("M", bound=BaseModel)


class State(BaseModel):
    """Where a run is. Small: `status` of a thousand runs reads a thousand of them."""

    model_config = ConfigDict(frozen=True, extra="ignore")     # `ignore`: another version may have written it

    phase: Literal["waiting", "training", "measuring", "done", "failed", "cancelled"]
    step: int = 0
    steps: int = 0
    images_per_second: float | None = None
    eta_seconds: float | None = None
    restarts: int = 0                       # how often it began again after having begun
    requeued: int = 0                       # how often the scheduler has put its job back into the queue
    fruitless: int = 0                      # lives in a row that ended at the time limit without one step
    reason: str | None = None               # one line: why it failed, was cancelled, or waits
    updated: float = Field(default_factory=time.time)          # seconds since 1970, the writer's clock

    @property
    def ended(self) -> bool:
        return self.phase in ("done", "failed")


# -- files -------------------------------------------------------------------------------------------------


def server_time(folder: Path) -> float:
    """Now by the clock of the file server that holds `folder`; by our own clock where we may not write."""
    probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(probe, "xb") as file:
            file.write(b".")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    """The text of a file, or None where there is none; unreadable is as good as none, with a warning."""
    for attempt in (1, 2):
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            if attempt == 1 and getattr(error, "errno", None) == errno.ESTALE:
                continue                        # renamed over while we read it on NFS: read the new one
            log.warning("%s cannot be read (%s); taken as absent", path, error)
            return None
    return None


def _read_model(path: Path, model: type[M]) -> M | None:
    text = _read(path)
    if text is None:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        log.warning("%s cannot be understood (%s: %s); taken as absent", path, where, first["msg"])
        return None


# -- who is alive ------------------------------------------------------------------------------------------


def process_start(pid: int) -> str | None:
    """When a process of this machine started, as text to compare; None if there is none, or a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # The command's name may hold blanks and brackets: fields are counted from the last bracket.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZXx" else fields[19]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def process_gone(pid: int, started: str) -> bool:
    """True if that process of this machine has ended, also when its number has been given to another one."""
    if (found := process_start(pid)) is not None:
        return started != found
    try:
        os.kill(pid, 0)
    except PermissionError:         # there, but of another user and hidden from us: its beats decide
        return False
    except ProcessLookupError:
        return True
    return True                     # a zombie: ended, and its parent has not looked yet


def machine() -> str:
    """Where a process id means something: this boot of this machine and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def rebooted(before: str) -> bool:
    """Whether `before`, a `machine()`, is this one before it was last started: nothing of it runs any more."""
    then, now = before.split(" "), machine().split(" ")
    return len(then) == len(now) == 3 and then[0] == now[0] and then[1] != now[1]


def scheduler_job() -> tuple[str | None, int]:
    """This process's SLURM job, as `cluster/id` or `cluster/id_element`, and how often it was requeued."""
    env = os.environ
    if not (job := env.get("SLURM_JOB_ID")):
        return None, 0
    if (array := env.get("SLURM_ARRAY_JOB_ID")) and (element := env.get("SLURM_ARRAY_TASK_ID")):
        job = f"{array}_{element}"
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    return f"{env.get('SLURM_CLUSTER_NAME', 'slurm')}/{job}", int(restarts) if restarts.isdigit() else 0


class _Signature(BaseModel):
    """What a lease says about the process that created it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    machine: str
    pid: int
    started: str
    job_id: str | None = None
    requeued: int = 0
    since: float


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a run at present."""

    host: str
    pid: int
    job_id: str | None
    since: float            # seconds since 1970, its own clock
    quiet: float            # seconds since its last beat, by the file server's clock
    here: bool              # in this process's machine and container, so that `pid` can be looked up

    def __str__(self) -> str:
        return f"{'job ' + self.job_id + ', ' if self.job_id else ''}process {self.pid} on {self.host}"


@dataclass(frozen=True, slots=True)
class LastLease:
    """The lease with the highest number, as it lies there: alive, stale or released."""

    number: int
    released: bool
    signature: _Signature | None        # None: created this moment, or its creator died before signing
    beaten: float                       # mtime: the file server's clock


class Lease:
    """A claimed run. Beats by itself until released; use it as a context manager."""

    def __init__(self, folder: RunFolder, number: int) -> None:
        self.folder, self.number = folder, number
        self.path = folder.path / f"lease.{number:06d}"
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name=f"beat {self.path.name}", daemon=True)
        self._thread.start()

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_EVERY):
            self.beat()

    def beat(self) -> None:
        """Say that we are alive: the lease's mtime becomes the file server's now."""
        try:
            os.utime(self.path)         # without times: the server's clock, not ours
        except FileNotFoundError:
            self._lost = True           # somebody removed the run
        except OSError as error:
            log.warning("%s: no beat (%s)", self.path, error)

    def lost(self) -> bool:
        """True once somebody else has taken the run over (or removed it): write nothing and leave quietly."""
        if not self._lost:
            try:
                self._lost = self.folder.last_number() != self.number
            except FileNotFoundError:
                self._lost = True
            except OSError as error:
                log.warning("%s: cannot see whether it was taken over (%s)", self.path, error)
        return self._lost

    def release(self) -> None:
        """Give the run back, so that the next one may claim it at once. Never raises; twice is once."""
        if self._stop.is_set():
            return
        self._stop.set()
        try:
            os.close(os.open(f"{self.path}.released", os.O_CREAT | os.O_WRONLY, 0o666))
        except OSError as error:
            log.warning("%s: not marked as released (%s)", self.path, error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


# -- one run -----------------------------------------------------------------------------------------------


class RunFolder:
    """The folder of one run. Reading never writes, so that a read-only copy can be looked at."""

    def __init__(self, runs: Path, train_id: str) -> None:
        self.runs, self.train_id = runs, train_id
        self.path = runs / train_id
        self.checkpoints = self.path / "checkpoints"
        self.curves = self.path / "curves"
        self.arrays = self.path / "arrays"
        self.values = self.path / "values"
        self.images = self.path / "images"
        self.logs = self.path / "logs"
        self.jobs = self.path / "jobs"
        self.code = self.path / "code"

    @property
    def parts(self) -> tuple[Path, ...]:
        return self.checkpoints, self.curves, self.arrays, self.values, self.images, self.logs, self.jobs, self.code

    def create(self) -> RunFolder:
        """Make the folder and its parts. Raises BadInput where that is not allowed."""
        try:
            for part in self.parts:
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be created ({error.strerror}); "
                "choose another place with --runs or BENCH_RUNS"
            ) from error
        return self

    # spec, state, record, values

    def write_spec(self, text: str) -> None:
        """Say what the run is, once. Raises BadInput when the same id stands for something else already."""
        path, here = self.path / "spec.json", json.loads(text)
        aside = write_aside(path, text, sync=True)
        try:
            while (there := self.read_spec()) is None:
                try:
                    os.link(aside, path)            # exclusive and complete at once
                except FileExistsError:
                    if self.read_spec() is None:    # a crash of the machine tore it
                        os.replace(aside, path)
                except OSError:                     # a file system without hard links
                    os.replace(aside, path)
                sync_folder(self.path)
        finally:
            aside.unlink(missing_ok=True)
        if here != there:
            raise BadInput("\n".join([
                f"{path}: holds another spec under the same id; move that run away, or mend the id's content",
                *(f"  {key} = {json.dumps(a)} there, {json.dumps(b)} here"
                  for key, a, b in _differences(there, here)),
                f"there: {json.dumps(there, sort_keys=True)}",
                f"here:  {json.dumps(here, sort_keys=True)}",
            ]))

    def read_spec(self) -> Any:
        """The parsed spec.json, or None."""
        text = _read(self.path / "spec.json")
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            log.warning("%s cannot be understood (%s); taken as absent", self.path / "spec.json", error)
            return None

    def read_state(self) -> State | None:
        return _read_model(self.path / "state.json", State)

    def write_state(self, state: State) -> None:
        """Only the owner writes it. Fsynced only at the end: before, the next one comes in seconds."""
        write_atomic(self.path / "state.json", state.model_dump_json() + "\n", sync=state.ended)

    def record(self) -> Record | None:
        return _read_model(self.path / "record.json", Record)

    def write_record(self, record: Record) -> None:
        """Non-finite numbers have no JSON: left out of `monitors` and `cost`, None as a measured value."""
        data = _finite(record.model_dump(mode="python"))
        write_atomic(self.path / "record.json", Record.model_validate(data).model_dump_json(indent=1) + "\n")

    def write_value(self, value_id: str, value: Value) -> None:
        data = _finite_value(value.model_dump(mode="python"))
        write_atomic(self.values / f"{value_id}.json", Value.model_validate(data).model_dump_json() + "\n")

    def read_values(self) -> dict[str, Value]:
        """Every measured value of this run by its value id."""
        found = {}
        for path in sorted(self.values.glob("*.json")):
            if not path.name.startswith(".") and (value := _read_model(path, Value)) is not None:
                found[path.stem] = value
        return found

    # claims

    def last_number(self) -> int:
        """The highest lease number, -1 if there is none. 10,000 leases: some milliseconds."""
        highest = -1
        for name in os.listdir(self.path):
            if name.startswith("lease.") and (digits := name[6:]).isdigit():
                highest = max(highest, int(digits))
        return highest

    def last_lease(self) -> LastLease | None:
        try:
            number = self.last_number()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if number < 0:
            return None
        path = self.path / f"lease.{number:06d}"
        released = os.path.exists(f"{path}.released")
        try:
            with open(path, "rb") as file:              # opening asks the file server: mtime is fresh
                beaten = os.fstat(file.fileno()).st_mtime
                signature = _Signature.model_validate_json(file.read())
        except ValidationError:
            signature = None
        except OSError as error:
            log.warning("%s cannot be read (%s)", path, error)
            return LastLease(number, released, None, time.time())
        return LastLease(number, released, signature, beaten)

    def claim(self, job_id: str | None = None) -> Lease | None:
        """Own this run, or None while somebody alive does. Creates the folder where it is missing.

        Leases are numbered and created exclusively, so of many processes that claim at once one wins. A lease
        is free when it was released, when its process is gone (same machine), when its SLURM job has ended or has
        been requeued since, or without a beat for 10 minutes by the file server's clock. `job_id` defaults to our
        SLURM job.
        """
        self.create()
        ours, requeued = scheduler_job()
        while True:
            last = self.last_lease()
            if last is not None and self._alive(last, None):
                if self._job_ended(last):
                    time.sleep(1.0)                     # killed on another node; its last beat has still to grow old
                    continue
                return None
            number = 0 if last is None else last.number + 1
            signature = _Signature(
                host=socket.gethostname(), machine=machine(), pid=os.getpid(),
                started=process_start(os.getpid()) or "", job_id=job_id or ours, requeued=requeued,
                since=time.time(),
            )
            path = self.path / f"lease.{number:06d}"
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                continue                                # somebody was faster: look at theirs
            try:
                os.write(descriptor, signature.model_dump_json().encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            lease = Lease(self, number)
            if lease.lost():                            # we slept between create and write, and were given up
                lease.release()
                return None
            self._sweep()
            return lease

    def owner(self, now: float | None = None) -> Owner | None:
        """Who holds this run and is alive, or None.

        To ask for many runs without writing into each, give `now=server_time(runs)`.
        """
        last = self.last_lease()
        if last is None or last.released or last.signature is None:
            return None
        now = server_time(self.path) if now is None else now
        if not self._alive(last, now):
            return None
        s = last.signature
        return Owner(s.host, s.pid, s.job_id, s.since, max(0.0, now - last.beaten), s.machine == machine())

    def _alive(self, last: LastLease, now: float | None) -> bool:
        if last.released:
            return False
        signature = last.signature
        if signature is not None:
            if signature.machine == machine():
                if process_gone(signature.pid, signature.started):
                    return False
            else:
                job, requeued = scheduler_job()
                if job is not None and job == signature.job_id and requeued > signature.requeued:
                    return False                        # ourselves, before SLURM requeued us
        silence = (server_time(self.path) if now is None else now) - last.beaten
        if now is None and silence >= SILENT and self._job_ended(last):
            return False
        return silence < (UNSIGNED_AFTER if signature is None else STALE_AFTER)

    def _job_ended(self, last: LastLease) -> bool:
        """Whether the scheduler says that the job of an owner on another machine has ended."""
        s = last.signature
        if last.released or s is None or s.job_id is None or s.machine == machine() or s.job_id == scheduler_job()[0]:
            return False
        cluster, _, job = s.job_id.rpartition("/")
        if cluster != (os.environ.get("SLURM_CLUSTER_NAME") or scheduler.cluster_name() or "slurm"):
            return False
        told = scheduler.ask([job])
        # One that it does not know at all may be of somebody whose jobs it does not show.
        return bool(told) and job in told and told[job].ended and bool(told[job].state)

    def _sweep(self) -> None:
        """Remove what earlier owners were writing aside when they died; only owners write there."""
        asides = [aside for part in (self.checkpoints, self.curves, self.arrays, self.values, self.images)
                  for aside in part.glob(".*.tmp")]
        for name in ("spec", "state", "record"):            # beside them are files that others write
            asides += self.path.glob(f".{name}.json.*.tmp")
        for aside in asides:
            with contextlib.suppress(OSError):
                aside.unlink()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


def run_folders(runs: Path) -> Iterator[RunFolder]:
    """Every run that has a folder under `runs`, in order of their ids."""
    try:
        names = sorted(os.listdir(runs))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if re.match(r"[A-Za-z0-9]", name) and (runs / name / "spec.json").is_file():
            yield RunFolder(runs, name)


def _differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, in a, in b) of every leaf that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b:
        yield key or "all", a, b


def _bad(number: Any) -> bool:
    return isinstance(number, float) and not math.isfinite(number)


def _finite_value(data: dict[str, Any]) -> dict[str, Any]:
    if _bad(data["number"]):
        reason = data["reason"] or f"the measured number is {data['number']}"
        data = {**data, "number": None, "reason": reason}
    return {**data, "details": {k: v for k, v in data["details"].items() if not _bad(v)}}


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    left_out = [f"{part}.{k}" for part in ("monitors", "cost") for k, v in data[part].items() if _bad(v)]
    if left_out:
        log.warning("not finite, hence not in the record: %s", ", ".join(left_out))
    for part in ("monitors", "cost"):
        data = {**data, part: {k: v for k, v in data[part].items() if not _bad(v)}}
    return {**data, "values": {k: _finite_value(v) for k, v in data["values"].items()}}
