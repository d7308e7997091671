"""In a job's process: who it is, what stops it, and how it goes back into the queue. Torch-free.

A job runs `bench.execute.execute_many(run_files, places, stop, submitted)`: one run after another, each claimed. All
state is on disk, so that a job may start again any time. Signals only set a flag; the run saves at its next step and
raises Interrupted. What follows is the launcher's: on SLURM the job goes back into the queue, on a workstation it ends.

    python -m bench.task FILE       one of several processes of a local job; FILE holds a Task as JSON
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import scheduler
from bench.files import write_atomic
from bench.places import Places
from bench.runs import process_start
from bench.stopping import Interrupted, Stop, on_signals

log = logging.getLogger(__name__)

TARGET = "bench.execute:execute_many"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
REQUEUE_EVERY = 10.0            # seconds between two attempts while the controller is down
KILLED_WITHIN = 300.0           # seconds that SLURM may take to end a job that it has requeued (its KillWait is 30)
REQUEUE_WITHIN = 1800.0         # seconds; the scheduler ends the job long before
GRACE = 10.0                    # seconds the other processes of a run have when one of them has died
STOPPED = 130                   # exit code of a local job that was stopped and has saved


def function(target: str) -> Callable[..., None]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Task:
    """What travels to a job: names and folders."""

    target: str
    run_files: tuple[str, ...]
    places: Places
    launcher: str                               # "local" or "slurm"
    submitted: dict[str, Any] = dataclasses.field(default_factory=dict)     # bench.provenance at submission
    gpus: tuple[str, ...] = ()                  # local: what CUDA_VISIBLE_DEVICES says
    processes: int = 1                          # local: of each run, on this machine

    def __call__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
        if self.launcher == "slurm":
            self._on_slurm()
        else:
            self._locally()

    def work(self, stop: Stop) -> None:
        function(self.target)(list(self.run_files), self.places, stop, self.submitted or None)

    def checkpoint(self) -> Any:
        """submitit's hook for a time limit that comes before `__call__` has put its own handler in place."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    # -- on SLURM

    def _on_slurm(self) -> None:
        for name in THREADS:                    # torch would take every core of the node
            os.environ.setdefault(name, os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            from submitit.helpers import TorchDistributedEnvironment

            # Which GPU a process takes is decided by its local rank, in bench.distributed.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        # Installed after submitit's own: it would ignore SIGTERM, and requeue amid a step on SIGUSR2.
        with on_signals(signal.SIGTERM, signal.SIGUSR2) as stop:
            try:
                self.work(stop)
            except Interrupted:
                if os.environ.get("SLURM_PROCID", "0") == "0":
                    self._requeue(stop)
                    # Not to end by ourselves: a job that ends amid its requeue can be counted as failed.
                    time.sleep(KILLED_WITHIN)

    def _requeue(self, stop: Stop) -> None:
        """Back into the queue, unless SLURM has already decided what becomes of the job (cancelled, or requeued by itself)."""
        began, trouble = time.monotonic(), None
        while time.monotonic() - began < REQUEUE_WITHIN:
            state = scheduler.own_state()
            if state and state != "RUNNING":
                log.info("the job is %s already; not requeued by itself", state)
                return
            if (trouble := scheduler.requeue()) is None:
                log.info("saved (%s); back into the queue", stop.why)
                return
            log.warning("saved (%s), but SLURM does not requeue the job: %s", stop.why, trouble)
            if state:                           # it answers, and refuses
                break
            time.sleep(REQUEUE_EVERY)
        sys.exit(f"saved, but SLURM refuses to requeue the job ({trouble}); `bench retry` continues it")

    # -- on a workstation

    def _locally(self) -> None:
        # submitit would count GPUs from 0 whatever the launcher itself may see.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        folder = Path(os.environ["SUBMITIT_FOLDER"])
        write_processes(folder, [os.getpid()])
        # submitit ignores SIGTERM. Here it is how the launcher stops us.
        with on_signals(signal.SIGTERM) as stop:
            if self.processes > 1:
                self._several(folder, stop)
            else:
                try:
                    self.work(stop)
                except Interrupted:
                    sys.exit(STOPPED)

    def _several(self, folder: Path, stop: Stop) -> None:
        """One process per GPU, with torchrun's variables. When one dies the others are ended: they would wait for it."""
        file = folder / "task.json"
        write_atomic(file, json.dumps(self.to_json()), sync=False)
        together = {"WORLD_SIZE": self.processes, "LOCAL_WORLD_SIZE": self.processes, "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": _free_port()}
        group = [
            subprocess.Popen([sys.executable, "-m", "bench.task", str(file)],
                             env=os.environ | {k: str(v) for k, v in {**together, "RANK": rank, "LOCAL_RANK": rank}.items()})
            for rank in range(self.processes)
        ]
        write_processes(folder, [os.getpid(), *(process.pid for process in group)])
        asked = failed = math.inf               # when they were first asked to end; when the first one died
        while any(process.poll() is None for process in group):
            now = time.monotonic()
            if stop.is_set() and asked == math.inf:
                asked = now
                _signal(group, signal.SIGTERM)
            if failed == math.inf and any(process.returncode for process in group):
                failed = now
            if now - failed > GRACE:
                _signal(group, signal.SIGKILL)
            time.sleep(0.1)
        if stop.is_set():
            sys.exit(STOPPED)
        if codes := [process.returncode for process in group if process.returncode]:
            raise RuntimeError(f"{len(codes)} of {self.processes} processes failed ({exit_word(codes[0])}); see their output")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"places": {k: str(v) for k, v in dataclasses.asdict(self.places).items() if v}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        given = {f.name: data["places"].get(f.name) for f in dataclasses.fields(Places)}
        places = Places(**{k: None if v is None else Path(v) for k, v in given.items()})
        lists = {k: tuple(data[k]) for k in ("run_files", "gpus")}
        return cls(**data | lists | {"places": places})


def write_processes(folder: Path, pids: Sequence[int]) -> None:
    """Of a local job: which processes to kill where asking does not help."""
    write_atomic(folder / "processes", "".join(f"{pid} {process_start(pid)}\n" for pid in pids), sync=False)


def exit_word(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _signal(group: Sequence[subprocess.Popen], number: int) -> None:
    for process in group:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    task = Task.from_json(json.loads(Path(sys.argv[1]).read_text()))
    with on_signals(signal.SIGTERM) as stop:
        try:
            task.work(stop)
        except Interrupted:
            sys.exit(STOPPED)


if __name__ == "__main__":
    main()
