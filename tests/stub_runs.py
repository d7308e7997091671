"""Stands in for `bench.execute` in the tests of launching: runs that follow a script and need no torch.

A run file is JSON: {"train_id", "do"}; `do` is "train", "fail", "die", "raise", "hang", "sleep:SECONDS" (which stops
when asked) or "steps:N" (N steps of 50 ms, saved after each; it continues where it stopped). A real run's file does what
BENCH_STUB says: JSON of label -> what to do.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from bench.places import Places
from bench.results import Record, Value
from bench.run import Run, Wanted
from bench.runs import RunFolder, State, scheduler_job
from bench.stopping import Interrupted, Stop
from bench.submissions import latest


def execute_many(run_files: list[str], places: Places, stop: Stop | None = None, submitted: dict | None = None) -> None:
    for file in run_files:
        if stop is not None and stop.is_set():
            raise Interrupted
        run = json.loads(Path(file).read_text())
        train_id = run.get("train_id") or Run.model_validate(run, strict=False).train_id
        told = json.loads(os.environ.get("BENCH_STUB", "{}"))
        folder = RunFolder(places.runs, train_id)
        if submitted is not None and (ticket := latest(folder)) is not None and ticket.cancelled:
            continue
        if os.environ.get("RANK", "0") != "0":
            folder.create()
            (folder.path / f"rank-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}").touch()
            continue
        lease = folder.claim()
        if lease is None:
            print(train_id, "is somebody else's", flush=True)
            continue
        with lease:
            _execute(folder, run.get("do") or told.get(run["label"], told.get("*", "train")), run, stop or Stop())


def _execute(folder: RunFolder, do: str, run: dict, stop: Stop) -> None:
    print("starting", folder.train_id, do, flush=True)
    kind, _, count = do.partition(":")
    steps = int(count) if kind == "steps" else 2
    old = folder.read_state()
    at = old.step if old is not None and kind == "steps" else 0
    common = {"steps": steps, "requeued": scheduler_job()[1], "restarts": 0 if old is None else old.restarts + 1}
    folder.write_state(State(phase="training", step=at or 1, **common))
    (folder.path / "environment.json").write_text(json.dumps({
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS"),
        "rank": os.environ.get("RANK"), "world": os.environ.get("WORLD_SIZE"),
        "pid": os.getpid(), "started": time.time(), "requeued": scheduler_job()[1],
    }))
    if kind == "ranks":
        (folder.path / f"rank-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}").touch()
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise SystemError("a fault of the harness itself")
    if kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    end = time.monotonic() + (float(count) if kind == "sleep" else 0.0)
    while time.monotonic() < end or (kind == "steps" and at < steps):
        time.sleep(0.05)
        if kind == "steps":
            at += 1
            with (folder.path / "steps.txt").open("a") as file:
                file.write(f"{at}\n")
            folder.write_state(State(phase="training", step=at, images_per_second=20.0, eta_seconds=(steps - at) / 20, **common))
        if stop.is_set():
            (folder.checkpoints / f"step-{at:09d}.pt").touch()
            folder.write_state(State(phase="waiting", step=at, reason=f"{stop.why}; continues from step {at}", **common))
            raise Interrupted
    failed = kind == "fail"
    reason = "the loss became NaN" + (f" at step {count}" if count else "") if failed else None
    state = "failed" if failed else "done"
    given = {k: run[k] for k in ("fields", "components", "data") if k in run}
    values = {}
    for wanted in run.get("values", ()) if not failed else ():
        value = Wanted.model_validate(wanted, strict=False)
        values[value.value_id] = Value(name=value.name, metric=value.name, number=1.0, unit="", direction="higher", images=1,
                                       protocol=value.protocol, keywords={}, settings=value.settings())
    folder.write_record(Record(
        train_id=folder.train_id, label=run.get("label", folder.train_id), state=state, reason=reason, spec={},
        values=values, **{"fields": {}, **given},
    ))
    (folder.path / "ended").write_text(str(time.time()))
    folder.write_state(State(phase=state, step=steps, reason=reason, **common))


def fail_at_import(run_files: list[str], places: Places, stop: Stop, submitted: dict | None) -> None:
    raise ImportError("no module named torch")
