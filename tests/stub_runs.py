"""Stands in for `bench.execute` in the tests of launching: runs that follow a script and need no torch.

A run file is JSON: {"train_id", "do"}; `do` is "train", "fail", "die", "raise", "hang" or "sleep:SECONDS".
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from bench.places import Places
from bench.results import Record
from bench.runs import RunFolder, State


def execute_many(run_files: list[str], places: Places) -> None:
    for file in run_files:
        run = json.loads(Path(file).read_text())
        folder = RunFolder(places.runs, run["train_id"])
        lease = folder.claim()
        if lease is None:
            print(run["train_id"], "is somebody else's", flush=True)
            continue
        with lease:
            _execute(folder, run["do"])


def _execute(folder: RunFolder, do: str) -> None:
    print("starting", folder.train_id, do, flush=True)
    folder.write_state(State(phase="training", step=1, steps=2))
    (folder.path / "environment.json").write_text(json.dumps({
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS"),
        "pid": os.getpid(), "started": time.time(),
    }))
    kind, _, seconds = do.partition(":")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise SystemError("a fault of the harness itself")
    if kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if kind == "sleep":
        time.sleep(float(seconds))
    failed = kind == "fail"
    reason = "the loss became NaN" if failed else None
    state = "failed" if failed else "done"
    folder.write_record(Record(
        train_id=folder.train_id, label=folder.train_id, state=state, reason=reason, spec={}, fields={},
    ))
    (folder.path / "ended").write_text(str(time.time()))
    folder.write_state(State(phase=state, step=2, steps=2, reason=reason))


def fail_at_import(run_files: list[str], places: Places) -> None:
    raise ImportError("no module named torch")
