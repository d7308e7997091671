"""The life of a run: claim, build, resume, train, evaluate, record. The one function a job calls."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import logging
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from bench import distributed
from bench.build import autocast, build_state, compile_model, pick_device, wants_compile
from bench.checkpoint import checkpoints, read_state, save_checkpoint, saved_step, write_state
from bench.curves import Curves
from bench.data import CachedBatches, Order, StreamedBatches, fits_on_device
from bench.distributed import Agreement, MainFailed, PeerLost, any_process, from_main, is_main, meet, world_size
from bench.errors import BadInput, Incompatible, NonFinite
from bench.evaluate import measure, write_grid, write_samples
from bench.files import write_atomic
from bench.image_cache import OpenSplit, decoded
from bench.init_from import NotThere, begin
from bench.levels import write_levels
from bench.load import described
from bench.places import Places
from bench.plan import run_digest
from bench.provenance import changed, changes_told, origins, provenance, save_code
from bench.registry import include_from_environment, resolve
from bench.results import Record, Value
from bench.run import Run, Wanted, data_key, open_images, streams
from bench.runs import RunFolder, State, scheduler_job
from bench.stopping import Interrupted, Stop
from bench.submissions import latest
from bench.together import asked_to_stop, claimed, end, stopping, together
from bench.train import TrainState, train
from bench.validate import validate

log = logging.getLogger(__name__)

EVALUATE_BATCH = 128        # images; changes numbers only where codes depend on the batch
STATE_EVERY = 1.0           # seconds between two writes of state.json
PREPARE_WITHIN = 86_400.0   # seconds that one machine may decode images longer than another
FRUITLESS = 3               # lives in a row without a step after which more of them are no use
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

T = TypeVar("T")


class LeaseLost(RuntimeError):
    """Another process took this run over while we were silent; it goes on there."""


class NotSaved(RuntimeError):
    """The disk does not take what the run has to write. Nothing is half written; the same command continues."""


#: errors whose message is a sentence for the user, not a programmer's
TOLD = (BadInput, NonFinite, Incompatible, NotSaved, NotThere, PeerLost, MainFailed)
#: errors of the machines, not of the run: no record, so that the same command continues
OUTSIDE = (NotSaved, NotThere, PeerLost, MainFailed)


def execute_many(
    run_files: Sequence[str], places: Places, stop: Stop | None = None, submitted: Mapping[str, Any] | None = None,
) -> None:
    """Run after run in one process, or in each process of the group that torchrun's variables describe.

    A failed run is recorded as failed and never stops the others. Raises Interrupted once `stop` is set (on any
    process; without one, by SIGINT and SIGTERM). What one process alone runs into ends all of them. `submitted` is
    the provenance of the code that was submitted.
    """
    leave = distributed.stop if distributed.start() else (lambda: None)
    include_from_environment()
    unread: list[Exception] = []
    try:
        with stopping(stop) as stop:
            for file in run_files:
                if asked_to_stop(stop):
                    raise Interrupted(stop.why)
                try:
                    run = Run.model_validate_json(Path(file).read_text())
                except (OSError, ValueError) as error:      # its folder was removed, or other code wrote it
                    log.error("%s cannot be executed: %s", file, error)
                    unread.append(error)
                    continue
                if submitted is not None and _cancelled(run, places):
                    log.info("%s: cancelled before it began", run.label)
                    continue
                try:
                    execute(run, places, stop=stop, submitted=submitted)
                except Exception as error:      # recorded by execute; here it only must not stop the others
                    log.error("%s: %s", run.label, error)
    except PeerLost as error:
        end(str(error))
    except Interrupted:
        leave()
        raise
    leave()
    if unread:
        raise unread[0]


def _cancelled(run: Run, places: Places) -> bool:
    """Whether somebody has asked for the end of a run while its job was busy with others."""
    ticket = from_main(lambda: latest(RunFolder(places.runs, run.train_id)))
    return ticket is not None and ticket.cancelled


def execute(
    run: Run, places: Places, *, device: str | None = None, progress: Callable[[State], None] | None = None,
    stop: Stop | None = None, submitted: Mapping[str, Any] | None = None,
) -> Record | None:
    """Train what is not trained, measure what is not measured, write the record; None when somebody else owns it.

    It always continues from the newest valid checkpoint. Raises what ended a failed run, after recording it;
    Interrupted once `stop` is set (without one, by SIGINT and SIGTERM), after saving.
    """
    folder = RunFolder(places.runs, run.train_id)
    try:
        with stopping(stop) as stop, claimed(folder) as lease:
            if lease is None:
                return None
            story = _Story(run, folder, lease, places, pick_device(device), progress, stop, submitted)
            try:
                try:
                    return story.tell()
                except Interrupted:
                    story.pause()
                    raise
            except Exception as error:
                story.fail(error)
                raise
    except Exception as error:
        together(folder, error)
        raise


class _Story:
    """One run on one process."""

    def __init__(
        self, run: Run, folder: RunFolder, lease: Any, places: Places, device: torch.device,
        progress: Callable[[State], None] | None, stop: Stop, submitted: Mapping[str, Any] | None,
    ) -> None:
        self.run, self.folder, self.lease, self.places, self.device = run, folder, lease, places, device
        self.progress, self.stop = progress, stop
        self.agreed = Agreement()
        self.spec = run.train
        self.code = provenance()
        self.submitted = changed(submitted, self.code) if submitted else {}
        self.lives: list[dict[str, Any]] = []   # the code of earlier lives that are in the weights
        self.began: dict[str, Any] = {}         # whose weights it began with
        self.seconds = 0.0                      # of training, over all restarts
        self.evaluate_seconds = 0.0
        self.layout: dict[str, Any] = {}
        self.parameters: dict[str, int] = {}
        self.last_row: dict[str, float] = {}
        # steps that are safe, steps done; what lay there, as the main process found it
        previous, self.saved = from_main(lambda: (folder.read_state(), saved_step(folder.checkpoints)))
        self.step = self.saved
        self.fruitful = False                   # whether this life has finished a step or a value
        self.fruitless = previous.fruitless if previous is not None and previous.phase == "waiting" else 0
        self.restarts = 0 if previous is None else previous.restarts + _had_begun(previous)
        self.requeued = scheduler_job()[1]
        asked = [t for t in os.environ.get("BENCH_TRACK", "").split(",") if t]
        self.tracker_names = () if self.spec.debug else asked
        self.trackers: list[Any] = []
        self._told = 0.0
        self.per_step: float | None = None
        if submitted and self.submitted and is_main():
            log.warning("%s: this is not the code that was submitted: %s", run.label,
                        changes_told(submitted, self.code))

    # -- the story -----------------------------------------------------------------------------------------------

    def tell(self) -> Record:
        spec = self.spec
        self.on_main("spec.json and code", self.introduce)
        earlier, there = from_main(lambda: (self.earlier(), self.folder.read_values()))
        if earlier is not None and earlier.state == "done" and not self.missing(there):
            self.say("done", step=spec.steps)
            return earlier
        self.tune()
        final = self.restore(lambda: [self.folder.checkpoints / "final.pt"])
        if final is None:
            self.refuse_uneven_shares()
        test_images = self.images(open_images(self.run, "test", self.places))
        state = build_state(spec, self.run.loop, self.run.monitors, self.device)
        self.describe(state)
        if final is None:
            self.train(state, test_images)
            earlier = None
        else:
            self.take(state, final)
        record = earlier or self.record("trained", state.step)
        self.write(record)
        values = self.evaluate(state, test_images, there)
        record = self.measured(record, values)
        self.write(record)
        self.say("done", step=spec.steps)
        return record

    def train(self, state: TrainState, test_images: np.ndarray) -> None:
        spec, loop, folder = self.spec, self.run.loop, self.folder
        batches = self.batches()
        if (saved := self.restore(lambda: checkpoints(folder.checkpoints))) is not None:
            self.take(state, saved)
            log.info("%s: continues at step %d", self.run.label, state.step)
        elif spec.init_from is not None:
            self.began = begin(state.model, self.run, self.places)
            if state.average is not None:
                state.average.reset(state.model)
        self.saved = self.step = state.step
        meet(PREPARE_WITHIN)                    # from here on nobody is far behind the others
        if asked_to_stop(self.stop):
            raise Interrupted(self.stop.why)
        self.curves = Curves(folder.curves, state.step)
        _, precision = autocast(spec, self.device)
        compile_model(state.model, loop, self.device)
        self.on_main("the trackers' files", self.open_trackers)
        began = time.monotonic()
        marks = {"saved": began, "since": began, "base": self.seconds, "at": began, "step": state.step}

        def watched(step: int) -> bool:
            return _due(step + 1, loop.log_every, spec.steps) or _due(step + 1, loop.watch_every, spec.steps)

        def wishes() -> tuple[bool, bool]:
            """To stop; to save, as it is long since we did."""
            return self.stop.is_set(), time.monotonic() - marks["saved"] > loop.checkpoint_seconds

        def after_step(state: TrainState) -> bool:
            self.step = step = state.step
            self.fruitful = True
            last = step == spec.steps
            stop, timely = self.agreed.answer(*wishes())
            if _due(step, loop.watch_every, spec.steps):
                self.write_arrays(state)
            if _due(step, loop.eval_every, spec.steps):
                row = validate(state, test_images[: loop.eval_images], self.device, precision, loop.channels_last)
                self.log(step, {f"test/{name}": value for name, value in row.items()})
            if _due(step, loop.log_every, spec.steps):
                row = state.terms.read(state.monitors)
                row |= {f"lr/{player}": o.rate(step - 1) for player, o in state.optimizers.items()}
                self.log(step, row)
                self.last_row = row
                self.tell_progress(state, marks)
            if last or timely or stop or _due(step, loop.checkpoint_every, None):
                self.seconds = marks["base"] + time.monotonic() - marks["since"]
                state.terms.check()             # nothing is saved before it is known to be finite
                self.save(state, last)
                marks["saved"] = time.monotonic()
            if stop and not last:
                self.leave()
            if not last:
                self.agreed.ask(*wishes())      # after the save, which may just have granted the second one
            return last

        self.say("training", step=state.step)
        if state.step == spec.steps:            # stopped between the last checkpoint and final.pt
            self.save(state, last=True)
        train(state, batches, spec, after_step, watched=watched, precision=precision)
        self.on_main("its curves", self.curves.compact)
        for tracker in self.trackers:
            tracker.close()

    def evaluate(self, state: TrainState, test_images: np.ndarray, there: dict[str, Value]) -> dict[str, Value]:
        """Every value that is not `there` yet, in one pass per number of images; each is written as it is known."""
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
                prepare={i: missing[i].spec.prepare for i in ids}, cache=self.places.cache,
                grid=self.write_grid, samples=functools.partial(self.write_samples, state), progress=self.measuring,
            )
            if weights == "average":
                state.average.swap(state.model)
            new = {i: (missing[i].value(found[i]), found[i].per_image) for i in ids}
            self.on_main("measured values", lambda new=new: self.write_values(new))
            there |= {value_id: value for value_id, (value, _) in new.items()}
            self.fruitful = True
        self.evaluate_seconds = time.monotonic() - began
        return there

    def measuring(self, done: int, total: int) -> None:
        """Between two batches of the evaluation: stop when asked; the values already written stay."""
        stop, = self.agreed.answer(self.stop.is_set())
        if stop:
            self.leave()
        self.agreed.ask(self.stop.is_set())
        if time.monotonic() - self._told > STATE_EVERY:
            self.say("measuring", step=self.spec.steps)

    # -- stopping ------------------------------------------------------------------------------------------------

    def leave(self) -> NoReturn:
        """On all processes at the same place, once all know that one was asked to stop."""
        asked_to_stop(self.stop)
        raise Interrupted(self.stop.why)

    def pause(self) -> None:
        """Say that the run waits, and why. Raises BadInput where beginning once more would be no use."""
        at_limit = from_main(lambda: self.stop.signal == signal.SIGUSR2 and scheduler_job()[0] is not None)
        fruitless = self.fruitless + 1 if at_limit and not self.fruitful else 0
        if fruitless >= FRUITLESS:
            raise BadInput("three times in a row no step was finished between start and time limit; ask for more hours")
        then = f"continues from step {self.saved}" if self.saved < self.spec.steps else "what is not measured yet comes next"
        self.say("waiting", step=self.saved, fruitless=fruitless, reason=f"{self.stop.why}; {then}")

    def images(self, opened: OpenSplit) -> np.ndarray:
        """Decoded images. One process decodes while the others wait; who is asked to stop leaves between two images."""
        found: np.ndarray | None = None

        def waiting(done: int, total: int) -> None:
            if self.stop.is_set():
                raise Interrupted(self.stop.why)

        with contextlib.suppress(Interrupted):
            found = decoded(opened, data_key(self.spec.dataset), self.places, progress=waiting)
        meet(PREPARE_WITHIN)                    # machines with a cache of their own decode for themselves
        if any_process(found is None):
            self.leave()
        return found

    # -- what the main process does for all ----------------------------------------------------------------------

    def on_main(self, what: str, do: Callable[[], T]) -> T:
        """Write something, on the main process only. Where the disk does not take it, all processes end the run."""

        def written() -> T:
            with self.writing(what):
                return do()

        return from_main(written)

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            trouble = error.strerror or str(error)
            cure = "free some space" if error.errno in FULL else "mend that"
            then = f"continues from step {self.saved}" if self.saved else "begins again"
            raise NotSaved(f"{self.folder.path}: {trouble[:1].lower()}{trouble[1:]} while writing {what}; "
                           f"{cure}, then the same command {then}") from error

    def introduce(self) -> None:
        """Which run this is, and with which code; what is left of an earlier life's failure goes."""
        self.folder.write_spec(self.spec.model_dump_json(indent=1))
        save_code(self.folder.code)
        for old in self.folder.logs.glob("failure*.txt"):
            old.unlink(missing_ok=True)

    def restore(self, find: Callable[[], Sequence[Path]]) -> dict[str, Any] | None:
        """The first of these files that is whole, as the main process finds them; read by every process."""
        mine: list[dict[str, Any]] = []

        def choose() -> Path | None:
            for path in find():
                if (state := read_state(path, self.device)) is not None:
                    mine.append(state)
                    return path
            return None

        path = from_main(choose)
        if path is None or mine:
            return mine[0] if mine else None
        if (state := read_state(path, self.device)) is None:
            raise OSError(errno.EIO, f"{path} cannot be read here, though the main process has read it")
        return state

    def take(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        state.load_state_dict(saved["train"], self.device)
        self.seconds, self.last_row, self.step = saved["seconds"], saved["row"], state.step
        self.lives, self.began = saved.get("code", []), saved.get("began", {})

    def lived(self) -> list[dict[str, Any]]:
        """The code of all lives that are in the weights, each once; the last one's, that is ours, at the end."""
        ours = {key: self.code[key] for key in ("commit", "dirty", "diff", "versions", "python")}
        return [life for life in self.lives if changed(life, self.code)] + [ours]

    # -- parts of it ---------------------------------------------------------------------------------------------

    def refuse_uneven_shares(self) -> None:
        """Raises BadInput where the processes cannot get equally many images of each micro-batch."""
        spec, processes = self.spec, world_size()
        if (spec.batch_size // spec.accumulation) % processes:
            raise BadInput(
                f"train.batch_size = {spec.batch_size} with accumulation = {spec.accumulation} cannot be shared evenly by "
                f"{processes} processes; make it a multiple of {spec.accumulation * processes}, or ask for another "
                f"number of GPUs"
            )

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
        images = self.images(opened)
        on_device = fits_on_device(images, self.device) if loop.data_on_device == "auto" else loop.data_on_device
        return CachedBatches(images, dataset.labels, order, self.device, channels_last=loop.channels_last,
                             on_device=on_device)

    def describe(self, state: TrainState) -> None:
        """What was derived, before step 0."""
        self.layout, _ = described(state.model, self.spec.dataset.kwargs["image_size"])
        if state.model.layout.separate:
            self.layout["separate"] = True
        learned = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        fixed = state.model.quantizer.fixed_codes()
        held = sum(p.numel() for name, p in state.model.named_parameters() if name.startswith(self.spec.freeze))
        self.parameters = {"total": learned + held + fixed, "learned": learned, "codebook": sum(b.numel() for b in state.model.quantizer.codebooks())}
        log.info("%s: %s on %s, %d parameters, %s tokens, %s bits per image", self.run.label, self.run.train_id,
                 self.device, self.parameters["total"], self.layout["num_tokens"], self.layout["bits_per_image"])

    def save(self, state: TrainState, last: bool) -> None:
        content = {"train": state.state_dict(), "seconds": self.seconds, "row": self.last_row, "code": self.lived(),
                   "began": self.began}

        def write() -> None:
            if self.lease.lost():
                if not self.folder.path.is_dir():
                    raise NotSaved(f"{self.folder.path}: the folder is gone; bring it back, or the same command begins again")
                raise LeaseLost(f"{self.run.label} was taken over by another process")
            self.curves.flush(state.step)
            save_checkpoint(self.folder.checkpoints, state.step, content)
            self.saved = state.step
            if last:
                write_state(self.folder.checkpoints / "final.pt", content)

        self.on_main(f"step-{state.step:09d}.pt", write)
        self.saved = state.step

    def open_trackers(self) -> None:
        self.trackers = [
            resolve("tracker", name)(self.folder.path / name, self.run.label, self.spec.model_dump(mode="json"))
            for name in self.tracker_names
        ]

    def log(self, step: int, row: dict[str, float]) -> None:
        if is_main():
            self.curves.add(step, row)
        for tracker in self.trackers:
            tracker.log(step, row)

    def write_arrays(self, state: TrainState) -> None:
        arrays = {name: a for m in state.monitors for name, a in m.arrays().items()}

        def write() -> None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **{name: a.cpu().numpy() for name, a in arrays.items()})
            write_atomic(self.folder.arrays / f"{state.step:09d}.npz", buffer.getvalue())

        if arrays:
            self.on_main(f"arrays/{state.step:09d}.npz", write)

    def write_grid(self, originals: torch.Tensor, reconstructions: torch.Tensor) -> None:
        with self.writing("reconstructions.png"):
            write_grid(self.folder.images / "reconstructions.png", originals, reconstructions)

    def write_samples(
        self, state: TrainState, originals: torch.Tensor, reconstructions: torch.Tensor, codes: torch.Tensor | None,
    ) -> None:
        with self.writing("samples.npz"):
            write_samples(self.folder.images / "samples.npz", originals, reconstructions, codes)
        stages = state.model.quantizer.stages
        if codes is not None and stages is not None and stages.count > 1:
            with self.writing("levels.png"):
                write_levels(self.folder.images / "levels.png", state.model, originals, codes)

    def write_values(self, new: dict[str, tuple[Value, np.ndarray | None]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for value_id, (value, per_image) in new.items():
            if per_image is not None:
                buffer = io.BytesIO()
                pq.write_table(pa.table({"image": np.arange(len(per_image)), "value": per_image}), buffer)
                write_atomic(self.folder.values / f"{value_id}.parquet", buffer.getvalue())
            self.folder.write_value(value_id, value)

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
        state = State(phase=phase, steps=self.spec.steps, restarts=self.restarts, requeued=self.requeued, **what)
        try:
            self.folder.write_state(state)
        except OSError as error:                # what matters is saved elsewhere, or fails there
            log.warning("%s: its state (%s) cannot be written (%s)", self.run.label, phase, error)
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
        facts = self.code | origins(spec, run.start.label if run.start is not None else None) | {
            "sources": run_digest(run), "device": _device_name(self.device), "threads": torch.get_num_threads(),
            "processes": world_size(), "precision": autocast(spec, self.device)[0],
            "compiled": wants_compile(loop, self.device), "finished": _now(),
        }
        if self.began:
            facts["init_from"] = self.began
        if self.submitted:
            facts["submitted"] = self.submitted
        if earlier := [was for life in self.lives if (was := changed(life, self.code))]:
            facts["earlier"] = earlier
        return Record(
            train_id=run.train_id, label=run.label, state=phase, reason=reason, debug=spec.debug,
            spec=json.loads(spec.model_dump_json()), fields=run.fields, components=run.components,
            layout=self.layout, parameters=self.parameters, values=self.folder.read_values(),
            data=run.data, monitors=self.last_row, cost=cost, provenance=facts,
        )

    def measured(self, record: Record, values: dict[str, Value]) -> Record:
        """The record of a training with all values; what measured them is named where it was other code."""
        here = self.code
        facts = {**record.provenance, "finished": _now()}
        if any(here[k] != facts.get(k) for k in ("commit", "dirty", "diff")):
            facts["measured_by"] = here
        cost = {**record.cost, "evaluate_seconds": (record.cost.get("evaluate_seconds") or 0.0) + self.evaluate_seconds}
        return record.model_copy(update={
            "state": "done", "reason": None, "values": values, "cost": cost, "provenance": facts,
        })

    def write(self, record: Record) -> None:
        self.on_main("record.json", lambda: self.folder.write_record(record))

    def fail(self, error: Exception) -> None:
        """Record what ended the run, as far as the disk lets us."""
        if isinstance(error, LeaseLost) or (self.lease.lost() and not isinstance(error, NotSaved)):
            return                              # it goes on elsewhere, and what happened here is of no interest
        reason = _one_line(error)
        if isinstance(error, PeerLost):
            others = sorted(path.name for path in self.folder.logs.glob("failure-rank*.txt"))
            reason += f"; see logs/{others[0]}" if others else ""
        log.error("%s failed: %s", self.run.label, reason)
        if not is_main():
            return
        try:
            write_atomic(self.folder.logs / "failure.txt", traceback.format_exc())
            if not isinstance(error, OUTSIDE):
                self.write_failure(error, reason)
        except OSError as trouble:
            log.warning("%s: its failure cannot be written (%s)", self.run.label, trouble)
        self.say("failed", reason=reason, step=error.step if isinstance(error, NonFinite) else self.step)

    def write_failure(self, error: Exception, reason: str) -> None:
        if (earlier := self.earlier()) is not None:     # a measurement failed: the training stays what it is
            values = self.folder.read_values()
            self.folder.write_record(earlier.model_copy(update={"state": "trained", "reason": reason, "values": values}))
        else:
            phase = "skipped" if isinstance(error, Incompatible) else "failed"
            self.folder.write_record(self.record(phase, 0, reason=reason))


def _had_begun(previous: State) -> bool:
    """Whether a life that ended so had begun the work, and beginning again is a restart."""
    return previous.phase in ("training", "measuring", "failed") or (previous.phase != "done" and previous.step > 0)


def _due(step: int, every: int | None, last: int | None) -> bool:
    return every is not None and (step % every == 0 or step == last)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    if not text:
        return type(error).__name__
    return text[0] if isinstance(error, TOLD) else f"{type(error).__name__}: {text[0]}"


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
