"""The life of a run: claim, build, resume, train, evaluate, record. The one function a job calls."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.build import autocast, build_state, compile_model, pick_device, wants_compile
from bench.checkpoint import newest_checkpoint, read_state, save_checkpoint, write_state
from bench.curves import Curves
from bench.data import CachedBatches, Order, StreamedBatches, fits_on_device
from bench.distributed import any_process, is_main, start, world_size
from bench.errors import BadInput, Incompatible, NonFinite
from bench.evaluate import measure
from bench.files import write_atomic
from bench.image_cache import decoded
from bench.places import Places
from bench.plan import run_digest
from bench.provenance import provenance, save_code
from bench.registry import include_from_environment, resolve, signature
from bench.results import Record, Value
from bench.run import Run, Wanted, data_key, open_images, streams
from bench.runs import RunFolder, State
from bench.train import TrainState, train
from bench.validate import validate

log = logging.getLogger(__name__)

EVALUATE_BATCH = 128        # images; changes no number, only memory
STATE_EVERY = 1.0           # seconds between two writes of state.json


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; it has saved and resumes with the same command."""


def execute_many(run_files: Sequence[str], places: Places) -> None:
    """Run after run in one process. A failed run is recorded as failed and never stops the others."""
    start()
    include_from_environment()
    for file in run_files:
        run = Run.model_validate_json(Path(file).read_text())
        try:
            execute(run, places)
        except Exception as error:              # recorded by execute; here it only must not stop the others
            log.error("%s: %s", run.label, error)


def execute(
    run: Run, places: Places, *, device: str | None = None, progress: Callable[[State], None] | None = None,
) -> Record | None:
    """Train what is not trained, measure what is not measured, write the record; None when somebody else owns it.

    It always continues from the newest valid checkpoint. Raises what ended a failed run, after recording it;
    Interrupted after a signal, after saving.
    """
    folder = RunFolder(places.runs, run.train_id)
    with _claim(folder) as lease:
        if lease is None:
            return None
        story = _Story(run, folder, lease, places, pick_device(device), progress)
        with story.signals():
            try:
                return story.tell()
            except Interrupted:
                story.say("waiting", step=story.step, reason="interrupted; the same command continues it")
                raise
            except Exception as error:
                story.fail(error)
                raise


class _claim:
    """The lease of a run, or None; only the main process claims."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def __enter__(self) -> Any:
        self.lease = self.folder.claim() if is_main() else _Follower()
        if not any_process(is_main() and self.lease is not None):
            return None
        return self.lease

    def __exit__(self, *_: object) -> None:
        if isinstance(self.lease, _Follower) or self.lease is None:
            return
        self.lease.release()


class _Follower:
    """What processes other than the main one hold."""

    def lost(self) -> bool:
        return False


class LeaseLost(RuntimeError):
    """Another process took this run over while we were silent; it goes on there."""


class _Story:
    """One run on one process."""

    def __init__(
        self, run: Run, folder: RunFolder, lease: Any, places: Places, device: torch.device,
        progress: Callable[[State], None] | None,
    ) -> None:
        self.run, self.folder, self.lease, self.places, self.device = run, folder, lease, places, device
        self.progress = progress
        self.stop = threading.Event()
        self.spec = run.train
        self.seconds = 0.0                      # of training, over all restarts
        self.evaluate_seconds = 0.0
        self.layout: dict[str, Any] = {}
        self.parameters: dict[str, int] = {}
        self.last_row: dict[str, float] = {}
        self.step = 0                           # steps done
        previous = folder.read_state()
        self.restarts = previous.restarts + 1 if previous is not None and previous.phase == "training" else (
            previous.restarts if previous is not None else 0)
        asked = [t for t in os.environ.get("BENCH_TRACK", "").split(",") if t]
        self.tracker_names = () if self.spec.debug else asked
        self.trackers: list[Any] = []
        self._told = 0.0
        self.per_step: float | None = None

    # -- the story -----------------------------------------------------------------------------------------------

    def tell(self) -> Record:
        folder, spec = self.folder, self.spec
        if is_main():
            folder.write_spec(spec.model_dump_json(indent=1))
            save_code(folder.code)
        earlier = self.earlier()
        if earlier is not None and earlier.state == "done" and not self.missing(folder.read_values()):
            self.say("done", step=spec.steps)
            return earlier
        self.tune()
        test = open_images(self.run, "test", self.places)
        test_images = decoded(test, data_key(spec.dataset), self.places)
        state = build_state(spec, self.run.loop, self.run.monitors, self.device)
        self.describe(state)
        final = read_state(folder.checkpoints / "final.pt", self.device)
        if final is None:
            self.train(state, test_images)
            earlier = None
        else:
            state.load_state_dict(final["train"], self.device)
            self.seconds, self.last_row, self.step = final["seconds"], final["row"], state.step
        record = earlier or self.record("trained", state.step)
        self.write(record)
        values = self.evaluate(state, test_images)
        record = self.measured(record, values)
        self.write(record)
        self.say("done", step=spec.steps)
        return record

    def train(self, state: TrainState, test_images: np.ndarray) -> None:
        spec, loop, folder = self.spec, self.run.loop, self.folder
        batches = self.batches()
        if (saved := newest_checkpoint(folder.checkpoints, self.device)) is not None:
            state.load_state_dict(saved["train"], self.device)
            self.seconds, self.last_row = saved["seconds"], saved["row"]
            self.step = state.step
            log.info("%s: continues at step %d", self.run.label, state.step)
        self.curves = Curves(folder.curves, state.step)
        _, precision = autocast(spec, self.device)
        compile_model(state.model, loop, self.device)
        self.trackers = [
            resolve("tracker", name)(folder.path / name, self.run.label, spec.model_dump(mode="json"))
            for name in self.tracker_names if is_main()
        ]
        began = time.monotonic()
        marks = {"saved": began, "since": began, "base": self.seconds, "at": began, "step": state.step}

        def watched(step: int) -> bool:
            return _due(step + 1, loop.log_every, spec.steps) or _due(step + 1, loop.watch_every, spec.steps)

        def after_step(state: TrainState) -> bool:
            self.step = step = state.step
            last = step == spec.steps
            logged = _due(step, loop.log_every, spec.steps)
            if _due(step, loop.watch_every, spec.steps) and is_main():
                self.write_arrays(state)
            if _due(step, loop.eval_every, spec.steps):
                row = validate(state, test_images[: loop.eval_images], self.device, precision, loop.channels_last)
                self.log(step, {f"test/{name}": value for name, value in row.items()})
            if logged:
                row = state.terms.read(state.monitors)
                row |= {f"lr/{player}": o.rate(step - 1) for player, o in state.optimizers.items()}
                self.log(step, row)
                self.last_row = row
                self.tell_progress(state, marks)
            # several processes agree on logged steps only: one that stops alone leaves the others waiting for it
            stop = (logged or world_size() == 1) and any_process(self.stop.is_set())
            timely = logged and any_process(time.monotonic() - marks["saved"] > loop.checkpoint_seconds)
            if last or timely or stop or _due(step, loop.checkpoint_every, None):
                self.seconds = marks["base"] + time.monotonic() - marks["since"]
                state.terms.check()             # nothing is saved before it is known to be finite
                self.save(state, last)
                marks["saved"] = time.monotonic()
            if stop and not last:
                raise Interrupted
            return last

        self.say("training", step=state.step)
        if state.step == spec.steps:            # stopped between the last checkpoint and final.pt
            self.save(state, last=True)
        train(state, batches, spec, after_step, watched=watched, precision=precision)
        if is_main():
            self.curves.compact()
        for tracker in self.trackers:
            tracker.close()

    def evaluate(self, state: TrainState, test_images: np.ndarray) -> dict[str, Value]:
        """Every value that is not there yet, in one pass per number of images; each is written as it is known."""
        there = self.folder.read_values()
        missing = self.missing(there)
        if not missing:
            return there
        self.say("measuring", step=self.spec.steps)
        began = time.monotonic()
        groups: dict[tuple[int | None, str], list[str]] = {}
        for value_id, wanted in missing.items():
            groups.setdefault((wanted.spec.images, wanted.spec.weights), []).append(value_id)
        for (limit, weights), ids in groups.items():
            if weights == "average" and state.average is None:
                raise BadInput("measure.weights = average, but train.average is not set; there are no averaged weights")
            if weights == "average":
                state.average.swap(state.model)
            metrics = {i: missing[i].spec.metric.partial()() for i in ids}
            found = measure(
                state.model, test_images[:limit], metrics, device=self.device, batch_size=EVALUATE_BATCH,
                grid=self.folder.images / "reconstructions.png", progress=self.measuring,
            )
            if weights == "average":
                state.average.swap(state.model)
            for value_id in ids:
                wanted, measured = missing[value_id], found[value_id]
                attributes = signature("metric", wanted.spec.metric.name).attributes
                value = Value(
                    name=wanted.name, metric=wanted.spec.metric.name, number=measured.number, unit=attributes["unit"],
                    direction=attributes["direction"], images=measured.images, protocol=wanted.protocol,
                    keywords=wanted.spec.metric.kwargs, settings=wanted.settings(), details=measured.details, reason=measured.reason,
                )
                there[value_id] = value
                if is_main():
                    if measured.per_image is not None:
                        self.write_per_image(value_id, measured.per_image)
                    self.folder.write_value(value_id, value)
        self.evaluate_seconds = time.monotonic() - began
        return there

    def measuring(self, done: int, total: int) -> None:
        """Between two batches of the evaluation: stop when asked; the values already written stay."""
        if self.stop.is_set():
            raise Interrupted
        if time.monotonic() - self._told > STATE_EVERY:
            self.say("measuring", step=self.spec.steps)

    # -- parts of it ---------------------------------------------------------------------------------------------

    def earlier(self) -> Record | None:
        """What is recorded of a finished training: its cost and provenance stay when more is measured."""
        record = self.folder.record()
        here = (self.folder.checkpoints / "final.pt").is_file()
        return record if record is not None and record.trained and here else None

    def missing(self, there: dict[str, Value]) -> dict[str, Wanted]:
        return {w.value_id: w for w in self.run.values if w.value_id not in there}

    def tune(self) -> None:
        loop = self.run.loop
        _forget_peak_memory()
        torch.set_float32_matmul_precision("high" if loop.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = loop.tf32
        torch.backends.cudnn.benchmark = True
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def batches(self) -> Callable[[int, int], Any]:
        spec, loop = self.spec, self.run.loop
        opened = open_images(self.run, "train", self.places)
        dataset = opened.dataset
        order = Order(len(dataset), seed=spec.seed, batch_size=spec.batch_size, accumulation=spec.accumulation,
                      flip=spec.flip)
        if streams(self.run, opened):
            return StreamedBatches(dataset, order, self.device, steps=spec.steps, accumulation=spec.accumulation,
                                   workers=loop.workers, channels_last=loop.channels_last)
        images = decoded(opened, data_key(spec.dataset), self.places)
        on_device = fits_on_device(images, self.device) if loop.data_on_device == "auto" else loop.data_on_device
        return CachedBatches(images, dataset.labels, order, self.device, channels_last=loop.channels_last,
                             on_device=on_device)

    def describe(self, state: TrainState) -> None:
        """What was derived, before step 0."""
        layout = state.model.layout
        books = [tuple(b.shape) for b in state.model.quantizer.codebooks()]
        self.layout = {
            "num_tokens": layout.num_tokens, "vocab_sizes": list(layout.vocab_sizes), "dims": [b[1] for b in books],
            "grids": [list(g) for g in layout.grids], "bits_per_image": layout.bits_per_image,
            "bits_per_pixel": None if layout.bits_per_image is None
            else layout.bits_per_image / self.spec.dataset.kwargs["image_size"] ** 2,
        }
        learned = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        tables = state.model.quantizer.tables()
        fixed = sum(b[0] * b[1] for b, t in zip(books, tables, strict=False) if t is None)
        self.parameters = {"total": learned + fixed, "learned": learned, "codebook": sum(b[0] * b[1] for b in books)}
        log.info("%s: %s on %s, %d parameters, %s tokens, %s bits per image", self.run.label, self.run.train_id,
                 self.device, self.parameters["total"], layout.num_tokens, layout.bits_per_image)

    def save(self, state: TrainState, last: bool) -> None:
        if any_process(self.lease.lost()):
            raise LeaseLost(f"{self.run.label} was taken over by another process")
        if not is_main():
            return
        self.curves.flush(state.step)
        content = {"train": state.state_dict(), "seconds": self.seconds, "row": self.last_row}
        save_checkpoint(self.folder.checkpoints, state.step, content)
        if last:
            write_state(self.folder.checkpoints / "final.pt", content)

    def log(self, step: int, row: dict[str, float]) -> None:
        if is_main():
            self.curves.add(step, row)
        for tracker in self.trackers:
            tracker.log(step, row)

    def write_arrays(self, state: TrainState) -> None:
        arrays = {name: a.cpu().numpy() for m in state.monitors for name, a in m.arrays().items()}
        if arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write_atomic(self.folder.arrays / f"{state.step:09d}.npz", buffer.getvalue())

    def write_per_image(self, value_id: str, values: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": np.arange(len(values)), "value": values}), buffer)
        write_atomic(self.folder.values / f"{value_id}.parquet", buffer.getvalue())

    # -- what others see -----------------------------------------------------------------------------------------

    def tell_progress(self, state: TrainState, marks: dict[str, float]) -> None:
        """At most once a second; the speed is that of the last seconds, so that the time left follows the machine."""
        now = time.monotonic()
        if now - self._told < STATE_EVERY or not is_main():
            return
        per_step = (now - marks["at"]) / max(1, state.step - marks["step"])
        self.per_step = per_step if self.per_step is None else 0.7 * self.per_step + 0.3 * per_step
        marks |= {"at": now, "step": state.step}
        self.say("training", step=state.step, images_per_second=self.spec.batch_size / self.per_step,
                 eta_seconds=self.per_step * (self.spec.steps - state.step))

    def say(self, phase: Any, **what: Any) -> None:
        if not is_main():
            return
        self._told = time.monotonic()
        state = State(phase=phase, steps=self.spec.steps, restarts=self.restarts, **what)
        self.folder.write_state(state)
        if self.progress is not None:
            self.progress(state)

    def record(self, phase: Any, step: int, *, reason: str | None = None) -> Record:
        """What training came to, with the conditions it ran under."""
        run, spec, loop = self.run, self.spec, self.run.loop
        cost = {
            "train_seconds": self.seconds, "evaluate_seconds": 0.0, "restarts": float(self.restarts),
            "peak_memory_bytes": float(_peak_memory(self.device)),
        }
        if self.seconds and step:
            cost["images_per_second"] = step * spec.batch_size / self.seconds
            cost["seconds_per_step"] = self.seconds / step
        facts = provenance() | {
            "sources": run_digest(run), "device": _device_name(self.device), "threads": torch.get_num_threads(),
            "processes": world_size(), "precision": autocast(spec, self.device)[0],
            "compiled": wants_compile(loop, self.device), "finished": _now(),
        }
        return Record(
            train_id=run.train_id, label=run.label, state=phase, reason=reason, debug=spec.debug,
            spec=json.loads(spec.model_dump_json()), fields=run.fields, components=run.components,
            layout=self.layout, parameters=self.parameters, values=self.folder.read_values(),
            data=run.data, monitors=self.last_row, cost=cost, provenance=facts,
        )

    def measured(self, record: Record, values: dict[str, Value]) -> Record:
        """The record of a training with all values; what measured them is named where it was other code."""
        here = provenance()
        facts = {**record.provenance, "finished": _now()}
        if {k: here.get(k) for k in ("commit", "dirty")} != {k: facts.get(k) for k in ("commit", "dirty")}:
            facts["measured_by"] = here
        cost = {**record.cost, "evaluate_seconds": (record.cost.get("evaluate_seconds") or 0.0) + self.evaluate_seconds}
        return record.model_copy(update={
            "state": "done", "reason": None, "values": values, "cost": cost, "provenance": facts,
        })

    def write(self, record: Record) -> None:
        if is_main():
            self.folder.write_record(record)

    def fail(self, error: BaseException) -> None:
        if isinstance(error, LeaseLost) or self.lease.lost():
            return                              # it goes on elsewhere, and what happened here is of no interest
        reason = _one_line(error)
        log.error("%s failed: %s", self.run.label, reason)
        if not is_main():
            return
        write_atomic(self.folder.logs / "failure.txt", traceback.format_exc())
        if (earlier := self.earlier()) is not None:     # a measurement failed: the training stays what it is
            self.write(earlier.model_copy(update={"state": "trained", "reason": reason, "values": self.folder.read_values()}))
        else:
            phase = "skipped" if isinstance(error, Incompatible) else "failed"
            self.write(self.record(phase, 0, reason=reason))
        self.say("failed", reason=reason, step=error.step if isinstance(error, NonFinite) else self.step)

    def signals(self) -> _Signals:
        return _Signals(self.stop)


class _Signals:
    """SIGINT and SIGTERM set a flag; the run saves at the next step boundary. Only in a main thread."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop, self.before = stop, {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._asked)

    def _asked(self, number: int, frame: Any) -> None:
        if self.stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt             # asked twice: now
        self.stop.set()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _due(step: int, every: int | None, last: int | None) -> bool:
    return every is not None and (step % every == 0 or step == last)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text and not isinstance(error, BadInput | NonFinite | Incompatible) else (
        text[0] if text else type(error).__name__)


def _forget_peak_memory() -> None:
    """A process may have run other runs before: start counting anew, where the system lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, else resident memory of this process at its highest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
            if line.startswith("model name"):
                return f"CPU ({line.partition(':')[2].strip()})"
    return device.type
