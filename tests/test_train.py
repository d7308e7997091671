"""The training loop by its properties: resuming, monitors, accumulation, processes, order, schedules."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, MONITORS, ROOT, batches, images, new_state, places, same, train_spec
from torch import Tensor, nn

import bench.data
import bench.distributed
import bench.execute
from bench.checkpoint import newest_checkpoint, read_state, save_checkpoint
from bench.curves import Curves, read_curves, thinned
from bench.data import Order, StreamedBatches
from bench.distributed import start, stop
from bench.errors import BadInput, NonFinite
from bench.evaluate import measure
from bench.execute import NotSaved, execute, execute_many
from bench.image_dataset import ImageDataset
from bench.metrics.psnr import PSNR
from bench.metrics.usage import Usage
from bench.monitors.codebook_usage import CodebookUsage
from bench.optim import PlayerOptimizer, WeightAverage
from bench.places import Places
from bench.run import Run
from bench.runs import RunFolder, State
from bench.spec import OptimizerSpec, TrainSpec
from bench.stopping import SIGNALS, Interrupted, Stop
from bench.suite import Suite
from bench.train import Terms, TrainState, train
from bench.types import TokenizerOutput

VQ = {"name": "vq", "codebook_size": 16, "codebook_dim": 4}
EMA = {"name": "ema_vq", "codebook_size": 16, "codebook_dim": 4, "init": "samples"}
both = pytest.mark.parametrize("quantizer", [VQ, EMA], ids=["vq", "ema_vq"])


def run(state: TrainState, spec: TrainSpec, *, until: int | None = None, log_every: int = 5) -> list[dict]:
    """Train, reading the terms every few steps; the rows that were read."""
    rows: list[dict] = []

    def after_step(state: TrainState) -> bool:
        if state.step % log_every == 0:
            rows.append(state.terms.read(state.monitors))
        return state.step == until

    train(state, batches(spec), spec, after_step, watched=lambda step: (step + 1) % log_every == 0)
    return rows


def on_disk(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds, written and read back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- resuming ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("stop_at", [1, 5, 7])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(quantizer: dict, stop_at: int) -> None:
    spec = train_spec(quantizer, flip=True, average=0.9, accumulation=2)
    straight = new_state(spec)
    wanted = run(straight, spec)
    first = new_state(spec)
    rows = run(first, spec, until=stop_at)
    saved = on_disk(first.state_dict())
    torch.manual_seed(12345)                        # another process: other global random state
    second = new_state(spec)
    second.load_state_dict(saved, CPU)
    assert second.step == stop_at
    rows += run(second, spec)
    assert not same(second.state_dict(), straight.state_dict())
    assert not same(rows, wanted)


def noisy(spec: TrainSpec) -> TrainState:
    """A model that draws random numbers in each forward, as one with dropout does."""
    state = new_state(spec)
    state.model.encoder.register_forward_hook(lambda module, given, out: out + 0.1 * torch.randn_like(out))
    return state


def test_randomness_is_a_function_of_the_seed_and_the_step() -> None:
    spec = train_spec(VQ, steps=6)
    straight, disturbed, resumed, other = (noisy(s) for s in (spec, spec, spec, train_spec(VQ, steps=6)))
    run(straight, spec)
    train(disturbed, batches(spec), spec, lambda state: bool(torch.rand(7).sum() < 0))  # draws too
    run(resumed, spec, until=4)
    again = noisy(spec)
    again.load_state_dict(on_disk(resumed.state_dict()), CPU)
    run(again, spec)
    for state in (disturbed, again):
        assert not same(state.model.state_dict(), straight.model.state_dict())
    seeded = spec.model_copy(update={"seed": spec.seed + 1})
    train(other, batches(spec), seeded, lambda state: False)                # the same images, other noise
    assert same(other.model.state_dict(), straight.model.state_dict())


def test_processes_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for rank, step in ((0, 0), (1, 0), (0, 1), (0, 0)):
        monkeypatch.setattr(bench.distributed, "rank", lambda rank=rank: rank)
        bench.distributed.seed_step(5, step)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3


@both
def test_monitors_change_no_bit_of_the_weights(quantizer: dict) -> None:
    spec = train_spec(quantizer)
    with_all, with_none = new_state(spec, MONITORS), new_state(spec, ())
    run(with_all, spec, log_every=3)
    run(with_none, spec, log_every=4)
    a, b = with_all.state_dict(), with_none.state_dict()
    for part in ("model", "objective", "optimizers", "random"):
        assert not same(a[part], b[part])
    start = new_state(spec).state_dict()
    assert same(a["model"], start["model"])         # it did learn


def test_monitors_of_another_size_start_empty_on_resuming() -> None:
    spec = train_spec(VQ)
    first = new_state(spec, ("codebook_usage",))
    run(first, spec, until=2)
    second = new_state(spec, ("codebook_usage",))
    smaller = CodebookUsage(window=10)
    smaller.begin(second.model, CPU)
    second.monitors = [smaller]
    second.load_state_dict(first.state_dict(), CPU)
    assert smaller.seen == 0 and second.step == 2


# -- accumulation ------------------------------------------------------------------------------------------


class Gradients(CodebookUsage):
    """Keeps a copy of the gradients that the optimizer is about to use."""

    def observe_gradients(self, tokenizer: Any, step: int) -> None:
        self.found = {n: p.grad.clone() for n, p in tokenizer.named_parameters() if p.grad is not None}


def train_watched(spec: TrainSpec) -> tuple[TrainState, dict[str, Tensor]]:
    state = new_state(spec, ())
    watcher = Gradients()
    watcher.begin(state.model, CPU)
    state.monitors = [watcher]
    train(state, batches(spec), spec, lambda state: False, watched=lambda step: True)
    return state, watcher.found


@both
def test_one_and_four_micro_batches_give_the_same_gradients(quantizer: dict) -> None:
    quantizer = {**quantizer, "init": "normal"}
    # a large eps keeps Adam smooth: at 1e-8 it turns the rounding of gradients near zero into whole steps
    smooth = {"optimizers": {"tokenizer": OptimizerSpec(lr=1e-3, eps=1e-2)}, "steps": 3}
    one, gradients = train_watched(train_spec(quantizer, **smooth))
    four, others = train_watched(train_spec(quantizer, accumulation=4, **smooth))
    assert gradients.keys() == others.keys() and gradients
    for name, gradient in gradients.items():
        assert (gradient - others[name]).abs().max() <= 2e-6, name
    for (name, a), b in zip(one.model.named_parameters(), four.model.parameters(), strict=True):
        assert (a - b).abs().max() <= 2e-6, name
    rows = [state.terms.read(state.monitors) for state in (one, four)]
    assert rows[0].keys() == rows[1].keys()
    for name, value in rows[0].items():
        assert rows[1][name] == pytest.approx(value, abs=2e-6), name


# -- terms that are not finite -----------------------------------------------------------------------------


def test_terms_name_the_one_that_broke_first_and_its_step() -> None:
    terms = Terms()
    for step in range(6):
        terms.add({"a": torch.tensor(1.0), "b": torch.tensor(float("inf") if step >= 3 else 2.0),
                   "c": torch.tensor(float("nan") if step >= 2 else 0.0)}, step, 1.0)
    for look in (terms.check, lambda: terms.read([])):
        with pytest.raises(NonFinite) as error:
            look()
        assert (error.value.step, error.value.term) == (2, "c")
        assert "'c'" in str(error.value) and "step 2" in str(error.value)


def test_terms_are_means_over_the_steps_that_had_them() -> None:
    terms = Terms()
    values = [3.0, 5.0, 1.0, 7.0]
    for step, value in enumerate(values):
        for part in range(2):                       # two micro-batches
            terms.add({"always": torch.tensor(value + part)}, step, 0.5)
        if step % 2:
            terms.add({"odd": torch.tensor(value)}, step, 1.0)
    assert terms.read([]) == {"always": pytest.approx(4.5), "odd": pytest.approx(6.0)}
    assert terms.read([]) == {}


BREAKING = """
name: breaking
question: Is a step that is not finite named?
base:
  dataset: {{name: photos, image_size: 16}}
  tokenizer: {{name: vqvae, hidden: 8, quantizer: {{name: vq, codebook_size: 16, codebook_dim: 4}}}}
  objective: {{name: "toy_objective:Breaking", at: {at}}}
  optimizers: {{tokenizer: {{lr: 1e-3}}}}
  train: {{steps: 12, batch_size: 4, log_every: 6, checkpoint_every: {checkpoint_every}}}
  measure: {{values: [psnr], images: 8}}
"""


@pytest.mark.parametrize("at, checkpoint_every, kept", [(7, 5, ["step-000000005.pt"]),
                                                        (7, 4, ["step-000000004.pt"]),
                                                        (8, 4, ["step-000000004.pt", "step-000000008.pt"]),
                                                        (1, 5, [])])
def test_a_term_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    at: int, checkpoint_every: int, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "toy_objective.py").write_text(TOY_OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("toy_objective", None)
    file = tmp_path / "breaking.yaml"
    file.write_text(BREAKING.format(at=at, checkpoint_every=checkpoint_every))
    where = places(tmp_path)
    found, = Suite.load(file).expand(where)
    for _ in range(2):                              # again, from the checkpoint: it ends the same way
        with pytest.raises(NonFinite, match=f"'pixel' was not finite at step {at}"):
            execute(found, where, device="cpu")
        folder = RunFolder(where.runs, found.train_id)
        assert sorted(p.name for p in folder.checkpoints.iterdir()) == kept
        record, state = folder.record(), folder.read_state()
        assert record.state == "failed" and record.reason == f"loss term 'pixel' was not finite at step {at}"
        assert state.phase == "failed" and state.step == at
    assert state.restarts == 1
    if kept:
        saved = newest_checkpoint(folder.checkpoints, CPU)["train"]
        assert all(v.isfinite().all() for v in saved["model"].values() if isinstance(v, Tensor))


TOY_OBJECTIVE = '''
from bench.objectives.reconstruction import Reconstruction


class Breaking(Reconstruction):
    """Its pixel loss becomes NaN at one step."""

    def __init__(self, *, at: int) -> None:
        super().__init__()
        self.at = at

    def updates(self, model, batch, step):
        if step == self.at:
            batch.images.fill_(float("nan"))
        yield from super().updates(model, batch, step)
'''


# -- a signal ----------------------------------------------------------------------------------------------


WHOLE = """
name: whole
question: Does a run end the same way by other roads?
base:
  dataset: {name: photos, image_size: 16, train_images: 64, test_images: 24}
  tokenizer: {name: vqvae, hidden: 8, quantizer: {name: ema_vq, codebook_size: 16, codebook_dim: 4}}
  objective: {name: reconstruction}
  optimizers: {tokenizer: {lr: 1e-3, eps: 1e-2}}
  train: {steps: 12, batch_size: 8, flip: true, average: 0.9, log_every: 3, eval_every: 6, eval_images: 8,
          watch_every: 6, checkpoint_every: 5}
  measure: {values: [psnr, ssim, usage, perplexity], weights: average}
  monitors: [codebook_usage, codebook_norms, quantization_error]
"""


def whole_run(folder: Path) -> tuple[Run, Places]:
    where = places(folder)
    (folder / "whole.yaml").write_text(WHOLE)
    found, = Suite.load(folder / "whole.yaml").expand(where)
    return found, where


def test_a_signal_saves_at_the_next_step_and_the_same_command_continues(tmp_path: Path) -> None:
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight, where = whole_run(tmp_path / "straight")
    wanted = execute(straight, where, device="cpu")
    run, elsewhere = whole_run(tmp_path / "stopped")
    folder = RunFolder(elsewhere.runs, run.train_id)

    def told(state: State) -> None:
        if state.phase == "training":
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    for step in (1, 2):
        with pytest.raises(Interrupted):
            execute(run, elsewhere, device="cpu", progress=told)
        state = folder.read_state()
        assert (state.phase, state.step) == ("waiting", step) and folder.owner() is None
        assert newest_checkpoint(folder.checkpoints, CPU)["train"]["step"] == step
        assert folder.record() is None and signal.getsignal(signal.SIGTERM) == before
    found = execute(run, elsewhere, device="cpu")
    assert found.state == "done" and found.values == wanted.values and found.monitors == wanted.monitors
    assert not same(*finals((where, run), (elsewhere, run)))
    assert read_curves(folder.curves) == read_curves(RunFolder(where.runs, run.train_id).curves)


def finals(*places_and_runs: tuple[Places, Run]) -> list[dict[str, Any]]:
    return [read_state(RunFolder(p.runs, r.train_id).checkpoints / "final.pt", CPU)["train"] for p, r in places_and_runs]


def test_who_calls_may_stop_a_run_and_its_state_says_why(tmp_path: Path) -> None:
    run, where = whole_run(tmp_path)
    folder, stop = RunFolder(where.runs, run.train_id), Stop()
    told: list[State] = []

    def progress(state: State) -> None:
        told.append(state)
        stop.ask("its owner went home")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="its owner went home"):
        execute(run, where, device="cpu", progress=progress, stop=stop)
    state = folder.read_state()
    assert (state.phase, state.reason) == ("waiting", "its owner went home; continues from step 1") and told
    assert folder.owner() is None and signal.getsignal(signal.SIGTERM) == before
    file = tmp_path / "run.json"
    file.write_text(run.model_dump_json())
    with pytest.raises(Interrupted, match="its owner went home"):               # before a run begins, too
        execute_many([str(file)], where, stop)
    assert folder.read_state() == state
    execute_many([str(file)], where, Stop())
    assert folder.read_state().phase == "done" and folder.read_state().restarts == 1


def test_lives_that_end_at_the_time_limit_without_a_step_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, where = whole_run(tmp_path)
    folder = RunFolder(where.runs, run.train_id)

    def live(*, number: int = signal.SIGUSR2, steps: int = 0) -> State:
        """One that is asked to stop after so many steps; 0: before its first one."""
        stop = Stop()
        if not steps:
            stop.ask(SIGNALS[number], number)
        with pytest.raises(Interrupted):
            execute(run, where, device="cpu", stop=stop, progress=lambda state: stop.ask(SIGNALS[number], number))
        return folder.read_state()

    assert [live().fruitless for _ in range(4)] == [0] * 4      # no scheduler's limit
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    state = live()
    assert (state.fruitless, state.requeued, state.restarts) == (1, 2, 0)
    assert state.reason == "near its time limit (SIGUSR2); continues from step 0"
    assert live(number=signal.SIGTERM).fruitless == 0
    assert [live().fruitless, live().fruitless, live(steps=1).fruitless] == [1, 2, 0]
    assert [live().fruitless, live().fruitless] == [1, 2]
    sentence = "three times in a row no step was finished between start and time limit; ask for more hours"
    stop = Stop()
    stop.ask(SIGNALS[signal.SIGUSR2], signal.SIGUSR2)
    with pytest.raises(BadInput, match=sentence):
        execute(run, where, device="cpu", stop=stop)
    assert folder.read_state().phase == "failed" and folder.record().reason == sentence
    assert live().fruitless == 1                                # asked to try again: counted anew


# -- a disk that takes no more -----------------------------------------------------------------------------


def disturbed(folder: Path, do: Callable[[RunFolder], None], monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, str]:
    """A run that something happens to at step 6; the sentence with which it ends at the next checkpoint, step 10."""
    monkeypatch.setattr(bench.execute, "STATE_EVERY", 0.0)
    run, where = whole_run(folder)
    mine, happened = RunFolder(where.runs, run.train_id), []

    def progress(state: State) -> None:
        if state.phase == "training" and state.step >= 6 and not happened:
            do(mine)
            happened.append(state.step)

    with pytest.raises(NotSaved) as error:
        execute(run, where, device="cpu", progress=progress)
    assert happened == [6] and mine.record() is None
    return mine, str(error.value)


def ends_as_if_nothing_had_happened(folder: Path, straight: Path) -> None:
    straight.mkdir()
    (run, where), (_, elsewhere) = whole_run(folder), whole_run(straight)
    found, wanted = (execute(run, p, device="cpu") for p in (where, elsewhere))
    assert found.state == "done" and found.values == wanted.values
    assert not same(*finals((where, run), (elsewhere, run)))


def test_a_full_disk_ends_the_run_and_the_same_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "full" / "runs"
    runs.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(runs)], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system to fill")
    try:
        ballast = runs / "ballast"

        def fill(folder: RunFolder) -> None:
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while file.write(bytes(4096)) == 4096:
                    pass

        folder, sentence = disturbed(tmp_path / "full", fill, monkeypatch)
        assert sentence == (f"{folder.path}: no space left on device while writing step-000000010.pt; free some space, "
                            f"then the same command continues from step 5")
        assert [p.name for p in folder.checkpoints.iterdir()] == ["step-000000005.pt"]      # nothing half written
        assert not list(folder.path.rglob("*.tmp"))
        assert newest_checkpoint(folder.checkpoints, CPU)["train"]["step"] == 5
        assert folder.owner() is None and folder.read_state().phase == "training"           # no room to say it
        ballast.unlink()
        ends_as_if_nothing_had_happened(tmp_path / "full", tmp_path / "straight")
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_a_checkpoint_folder_that_went_away_is_named_and_the_state_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "gone").mkdir()

    def move(folder: RunFolder) -> None:
        folder.checkpoints.rename(folder.path / "elsewhere")
        folder.checkpoints.write_text("")

    folder, sentence = disturbed(tmp_path / "gone", move, monkeypatch)
    assert sentence == (f"{folder.path}: not a directory while writing step-000000010.pt; mend that, then the same "
                        f"command continues from step 5")
    assert (folder.read_state().phase, folder.read_state().reason) == ("failed", sentence)
    folder.checkpoints.unlink()
    (folder.path / "elsewhere").rename(folder.checkpoints)
    ends_as_if_nothing_had_happened(tmp_path / "gone", tmp_path / "straight")


def test_a_run_folder_that_went_away_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sentence = disturbed(tmp_path, lambda folder: shutil.rmtree(folder.path), monkeypatch)
    assert sentence == f"{folder.path}: the folder is gone; bring it back, or the same command begins again"
    assert not folder.path.exists()


# -- several processes -------------------------------------------------------------------------------------


SHARED = {"optimizers": {"tokenizer": OptimizerSpec(lr=1e-3, eps=1e-2, clip_norm=0.5)},
          "steps": 4, "flip": True, "accumulation": 2}
ENTROPY = VQ | {"entropy": True, "entropy_temperature": 1.0}
CASES = {"vq": ENTROPY, "ema_vq": EMA, "ema_laplace": EMA | {"zero_count": "laplace", "init": "normal"}}


def trained_and_measured(case: str) -> dict[str, Any]:
    spec = train_spec(CASES[case], **SHARED)
    state = new_state(spec)
    rows = run(state, spec, log_every=2)
    metrics = {"psnr": PSNR(), "usage": Usage()}
    found = measure(state.model, images(21, seed=5), metrics, device=CPU, batch_size=8)
    return {"model": state.model.state_dict(), "rows": rows, "usage": state.monitors[0].state_dict(),
            "measured": {name: m.number for name, m in found.items()}}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found, by case."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                              "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    for rank in range(2):                           # not the exit code: gloo may abort after its work is done
        assert (folder / f"{rank}.pt").is_file(), said[rank]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, two_processes: list[dict[str, Any]]) -> None:
    wanted = trained_and_measured(case)
    for found in (process[case] for process in two_processes):
        assert not same(found["usage"], wanted["usage"])        # the same codes in the same order
        for name, value in wanted["model"].items():
            if not isinstance(value, Tensor):
                assert found["model"][name] == value
            elif value.is_floating_point() and not name.endswith("counts"):
                scale = max(1.0, float(value.abs().max()))
                assert (found["model"][name] - value).abs().max() <= 1e-6 * scale, name
            else:
                assert torch.equal(found["model"][name], value), name
        for row, one in zip(found["rows"], wanted["rows"], strict=True):
            assert row == pytest.approx(one, rel=1e-5, abs=1e-6)
        assert found["measured"] == pytest.approx(wanted["measured"], rel=1e-6)


def test_a_term_that_breaks_on_one_process_stops_all_of_them(two_processes: list[dict[str, Any]]) -> None:
    for process in two_processes:
        assert process["broken"] == ["loss term 'a' was not finite at step 4"] * 2


def test_a_whole_run_on_two_processes_equals_one(two_processes: list[dict[str, Any]], tmp_path: Path) -> None:
    run, where = whole_run(tmp_path)
    wanted = execute(run, where, device="cpu")
    one = RunFolder(where.runs, run.train_id)
    two = RunFolder(Path(two_processes[0]["folder"]) / "runs", run.train_id)
    found = two.record()
    assert found.state == "done" and found.provenance["processes"] == 2
    for value_id, value in wanted.values.items():
        other = found.values[value_id]
        assert other.number == pytest.approx(value.number, rel=1e-6) and other.images == value.images
    pairs = list(zip(read_curves(one.curves), read_curves(two.curves), strict=True))
    assert pairs and all(a[:2] == b[:2] for a, b in pairs)
    assert [b[2] for _, b in pairs] == pytest.approx([a[2] for a, _ in pairs], rel=1e-5, abs=1e-6)
    kinds = (".pt", ".parquet", ".npz", ".json", ".png")
    names = [sorted(p.name for p in f.path.rglob("*") if p.suffix in kinds) for f in (one, two)]
    assert names[0] == names[1]


def one_of_two(folder: Path) -> None:
    torch.set_num_threads(1)
    start()
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {case: trained_and_measured(case) for case in CASES}
    terms = Terms()
    terms.add({"b": torch.tensor(0.0), "a": torch.tensor(float("nan") if rank else 1.0)}, 4, 1.0)
    found["broken"], found["folder"] = [], str(folder)
    for look in (terms.check, lambda: terms.read([])):
        try:
            look()
        except NonFinite as error:
            found["broken"].append(str(error))
    executed, where = whole_run(folder)
    file = folder / f"run-{rank}.json"
    file.write_text(executed.model_dump_json())
    execute_many([str(file)], where)
    torch.save(found, folder / f"{rank}.pt")
    stop()


# -- the usage monitor -------------------------------------------------------------------------------------


@st.composite
def streams_of_codes(draw: st.DrawFn) -> tuple[list[int], int, list[list[list[list[int]]]]]:
    """(codes per level, window, steps of micro-batches of rows of one code per level)."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    row = st.tuples(*(st.integers(0, k - 1) for k in sizes))
    part = st.lists(row, min_size=1, max_size=9)
    return sizes, draw(st.integers(1, 20)), draw(st.lists(st.lists(part, min_size=1, max_size=3), max_size=8))


def naive_perplexity(codes: list[int]) -> float:
    shares = [n / len(codes) for n in Counter(codes).values()]
    return math.exp(-sum(p * math.log(p) for p in shares))


@settings(max_examples=80, deadline=None)
@given(streams_of_codes())
def test_usage_equals_a_deque_at_every_step(stream: tuple) -> None:
    sizes, window, steps = stream
    monitor = CodebookUsage(window=window)
    monitor.begin(SimpleNamespace(layout=SimpleNamespace(vocab_sizes=tuple(sizes))), CPU)
    last: deque = deque(maxlen=window)
    for step, parts in enumerate(steps):
        for part in parts:
            codes = torch.tensor(part)[None]                                # [1, n, L]
            nothing = torch.zeros(0)
            monitor.observe(TokenizerOutput(nothing, nothing, nothing, codes), step)
            last.extend(part)
        found = {name: float(value) for name, value in monitor.scalars().items()}
        arrays = monitor.arrays()
        for level, k in enumerate(sizes):
            suffix = "" if len(sizes) == 1 else f"/level{level}"
            held, now = [row[level] for row in last], [row[level] for part in parts for row in part]
            assert found[f"used_codes{suffix}"] == len(set(held))
            assert found[f"usage{suffix}"] == pytest.approx(len(set(held)) / k, rel=1e-6)
            assert found[f"perplexity{suffix}"] == pytest.approx(naive_perplexity(held), rel=1e-5)
            assert found[f"batch_perplexity{suffix}"] == pytest.approx(naive_perplexity(now), rel=1e-5)
            assert found[f"window_fill{suffix}"] == len(held) / window
            assert found[f"ceiling{suffix}"] == pytest.approx(1 - (1 - 1 / k) ** len(held), abs=1e-12)
            assert arrays[f"counts{suffix}"].tolist() == [held.count(i) for i in range(k)]


def test_a_continuous_tokenizer_has_no_usage() -> None:
    monitor = CodebookUsage(window=5)
    monitor.begin(SimpleNamespace(layout=SimpleNamespace(vocab_sizes=())), CPU)
    nothing = torch.zeros(0)
    monitor.observe(TokenizerOutput(nothing, nothing, nothing, None), 0)
    assert monitor.scalars() == {} and monitor.arrays() == {}


def test_code_gradients_and_norms_are_those_of_the_table() -> None:
    spec = train_spec(VQ, steps=1)
    state = new_state(spec, ("codebook_gradients", "codebook_norms", "quantization_error"))
    tables: list[Tensor] = []
    kept: list[Tensor] = []

    class Spy(Gradients):
        def observe(self, output: TokenizerOutput, step: int) -> None:
            kept.append((output.latents - output.quantized).detach().double().square().mean())

        def observe_gradients(self, tokenizer: Any, step: int) -> None:
            tables.append(tokenizer.quantizer.codebook.grad.clone())

    spy = Spy(window=4)
    spy.begin(state.model, CPU)
    state.monitors.append(spy)
    train(state, batches(spec), spec, lambda state: False, watched=lambda step: True)
    row = state.terms.read(state.monitors[:3])
    norms = tables[0].double().square().sum(1).sqrt()
    assert 0 < row["codes_with_gradient"] < 1
    assert row["codes_with_gradient"] == float((norms > 0).double().mean())
    assert row["code_gradient_max"] == pytest.approx(float(norms.max()), rel=1e-5)
    book = state.model.quantizer.codebook.detach().double().square().sum(1).sqrt()
    assert row["code_norm_mean"] == pytest.approx(float(book.mean()), rel=1e-5)
    assert row["code_norm_std"] == pytest.approx(float(book.numpy().std()), rel=1e-4)
    assert row["quantization_error"] == pytest.approx(float(kept[0]), rel=1e-5)


# -- the order of images -----------------------------------------------------------------------------------


def stream(order: Order, steps: int, accumulation: int) -> tuple[Tensor, Tensor]:
    slices = [order.slice(step, part) for step in range(steps) for part in range(accumulation)]
    return torch.cat([s.indices for s in slices]), torch.cat([s.flips for s in slices])


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), share=st.integers(1, 12), accumulation=st.integers(1, 3),
       seed=st.integers(0, 99))
def test_every_image_comes_once_per_epoch(count: int, share: int, accumulation: int, seed: int) -> None:
    batch = share * accumulation
    order = Order(count, seed=seed, batch_size=batch, accumulation=accumulation, flip=True)
    indices, flips = stream(order, steps=3 * count // batch + 2, accumulation=accumulation)
    assert len(indices) >= 3 * count
    for epoch in range(3):
        assert sorted(indices[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))
    whole = Order(count, seed=seed, batch_size=batch, accumulation=1, flip=True)
    again, flips_again = stream(whole, steps=3 * count // batch + 2, accumulation=1)
    assert torch.equal(indices, again) and torch.equal(flips, flips_again)
    late = Order(count, seed=seed, batch_size=batch, accumulation=accumulation, flip=True)
    last = late.slice(3 * count // batch + 1, accumulation - 1)         # asked for alone, as after a resume
    assert torch.equal(last.indices, indices[-share:]) and torch.equal(last.flips, flips[-share:])


@pytest.mark.parametrize("world", [2, 4])
def test_slices_of_several_processes_are_those_of_one(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"seed": 1, "batch_size": 24, "accumulation": 3, "flip": True}
    one = Order(50, **given)
    monkeypatch.setattr(bench.data, "world_size", lambda: world)
    many = []
    for rank in range(world):
        monkeypatch.setattr(bench.data, "rank", lambda rank=rank: rank)
        many.append(Order(50, **given))
    for step in range(6):
        for part in range(3):
            whole, shares = one.slice(step, part), [order.slice(step, part) for order in many]
            assert torch.equal(torch.cat([s.indices for s in shares]), whole.indices)
            assert torch.equal(torch.cat([s.flips for s in shares]), whole.flips)
    with pytest.raises(ValueError, match="cannot be shared"):
        Order(50, seed=1, batch_size=9, accumulation=3, flip=False)


def test_epochs_and_seeds_are_shuffled_differently_and_half_is_flipped() -> None:
    def make(seed: int) -> tuple[Tensor, Tensor]:
        return stream(Order(500, seed=seed, batch_size=100, accumulation=1, flip=True), 10, 1)

    indices, flips = make(1)
    assert not torch.equal(indices[:500], indices[500:])
    assert not torch.equal(indices, make(2)[0]) and not torch.equal(flips, make(2)[1])
    assert torch.equal(indices, make(1)[0]) and torch.equal(flips, make(1)[1])
    assert 0.45 < float(flips.double().mean()) < 0.55
    assert not stream(Order(500, seed=1, batch_size=100, accumulation=1, flip=False), 10, 1)[1].any()


def test_a_batch_holds_the_images_in_the_models_range_and_flipped_left_to_right() -> None:
    spec = train_spec(VQ, flip=True)
    pixels = images()
    make = batches(spec, pixels)
    batch, piece = make(3, 0).images, make.order.slice(3, 0)
    assert piece.flips.any() and not piece.flips.all()
    for image, index, flip in zip(batch, piece.indices, piece.flips, strict=True):
        plain = pixels[int(index)].astype(np.float64) / 127.5 - 1
        np.testing.assert_allclose(image.numpy(), plain[:, :, ::-1] if flip else plain, atol=1e-6)


class Drawn(ImageDataset):
    """Images that are a function of the index and, with `random`, of the generator."""

    image_size, random = 4, True

    def listing(self) -> list[tuple[str, int]]:
        return [(str(i), 1) for i in range(11)]

    def without(self, names: frozenset[str]) -> Drawn:
        return self

    def load(self, index: int, generator: np.random.Generator | None = None) -> np.ndarray:
        return np.full((3, 4, 4), 10 * index + generator.integers(0, 10), np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_resume_anywhere_and_leave_the_random_state_alone(workers: int) -> None:
    def make() -> StreamedBatches:
        order = Order(11, seed=3, batch_size=6, accumulation=2, flip=True)
        return StreamedBatches(Drawn(), order, CPU, steps=6, accumulation=2, workers=workers,
                               channels_last=True)

    keys = [(step, part) for step in range(6) for part in range(2)]
    straight = make()
    before = torch.get_rng_state()
    wanted = [straight(*key).images for key in keys]
    assert torch.equal(torch.get_rng_state(), before)
    resumed = make()
    for key, batch in zip(keys[5:], wanted[5:], strict=True):               # in the middle of a step
        assert torch.equal(resumed(*key).images, batch)
    order = Order(11, seed=3, batch_size=6, accumulation=2, flip=True)
    for key, batch in zip(keys, wanted, strict=True):
        pixels = ((batch[:, 0, 0, 0] + 1) * 127.5).round().long()
        assert torch.equal(pixels // 10, order.slice(*key).indices)
    assert len({int(((b[0, 0, 0, 0] + 1) * 127.5).round()) % 10 for b in wanted}) > 3    # crops do vary


# -- optimizers --------------------------------------------------------------------------------------------


def player(spec: OptimizerSpec, steps: int = 100, named: list | None = None) -> PlayerOptimizer:
    return PlayerOptimizer(named or [("w", nn.Parameter(torch.zeros(2, 2)))], spec, steps, fused=True)


@pytest.mark.parametrize("schedule, wanted", [
    ("constant", {0: 0.1, 9: 1.0, 10: 1.0, 55: 1.0, 99: 1.0}),
    ("linear", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.6, 99: 0.2 + 0.8 / 90}),
    ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.6, 40: 0.2 + 0.4 * (1 + 0.5), 70: 0.2 + 0.4 * (1 - 0.5)}),
])
def test_rates_follow_their_schedule(schedule: str, wanted: dict[int, float]) -> None:
    moved = player(OptimizerSpec(lr=1.0, warmup_steps=10, schedule=schedule, final_lr=0.2))
    assert {step: moved.rate(step) for step in wanted} == pytest.approx(wanted)


def test_the_rate_in_use_is_the_scheduled_one_times_the_scale_of_the_longest_prefix() -> None:
    names = ("encoder.w", "quantizer.codebook", "quantizer.head.w")
    named = [(n, nn.Parameter(torch.ones(3, 2))) for n in names]
    spec = OptimizerSpec(lr=0.1, warmup_steps=4, lr_scale={"quantizer": 0.5, "quantizer.codebook": 10.0})
    moved = player(spec, named=named)
    for p in moved.params:
        p.grad = torch.ones_like(p)
    moved.step(1)                                   # Adam's first step is its rate, whatever the gradient
    steps = {n: float(1 - p.detach()[0, 0]) for n, p in named}
    rates = {"encoder.w": 0.05, "quantizer.codebook": 0.5, "quantizer.head.w": 0.025}
    assert steps == pytest.approx(rates, rel=1e-5)
    assert all(p.grad is None for _, p in named)


def test_decay_spares_norms_biases_embeddings_and_codebooks() -> None:
    shapes = {"conv.weight": (2, 2), "conv.bias": (2,), "norm.weight": (2, 2), "quantizer.codebook": (2, 2),
              "embedding.weight": (2, 2)}
    named = [(n, nn.Parameter(torch.ones(s))) for n, s in shapes.items()]
    moved = player(OptimizerSpec(name="adamw", lr=0.5, weight_decay=0.1), named=named)
    for p in moved.params:
        p.grad = torch.zeros_like(p)
    moved.step(0)
    after = {n: float(p.detach().flatten()[0]) for n, p in named}
    assert after == pytest.approx({n: 1 - 0.05 * (n == "conv.weight") for n in shapes})


def test_gradients_are_clipped_to_the_norm_of_all_of_them() -> None:
    named = [("a", nn.Parameter(torch.zeros(2))), ("b", nn.Parameter(torch.zeros(1)))]
    given = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    moved = player(OptimizerSpec(lr=1.0, betas=(0.0, 0.0), eps=1e3, clip_norm=1.0), named=named)
    for p, g in zip(moved.params, given, strict=True):
        p.grad = g.clone()
    moved.step(0)                                   # betas 0: the step is g / (|g| + eps)
    clipped = [0.6, 0.8]
    assert float(named[0][1].detach()[0]) == pytest.approx(-clipped[0] / (clipped[0] + 1e3), rel=1e-4)
    assert float(named[1][1].detach()[0]) == pytest.approx(-clipped[1] / (clipped[1] + 1e3), rel=1e-4)


def test_frozen_parameters_are_no_players() -> None:
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    moved = player(OptimizerSpec(lr=1.0), named=[("a", nn.Parameter(torch.zeros(2))), ("b", frozen)])
    assert len(moved.params) == 1 and moved.params[0] is not frozen


def test_the_ramps_of_the_weight_average() -> None:
    model = nn.Linear(2, 2)
    ratio, power = (WeightAverage(model, 0.9, ramp) for ramp in ("ratio", "power"))
    assert [ratio.decay_at(t) for t in (0, 1, 8, 71, 72, 1000)] == pytest.approx([0.1, 2 / 11, 0.5, 72 / 81, 73 / 82, 0.9])
    assert [power.decay_at(t) for t in (0, 7, 26, 1000)] == pytest.approx([0, 1 - 8 ** (-2 / 3), 1 - 1 / 9, 0.9])
    with torch.no_grad():
        model.weight.fill_(3.0)
    power.update(model, 0)                          # decay 0: the first weights are gone
    assert bool((power.weights["weight"] == 3).all())


def test_the_weight_average_follows_its_formula_and_swaps_back() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    wanted = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        average.update(model, step)
        for n, p in model.named_parameters():
            wanted[n] = 0.9 * wanted[n] + 0.1 * p.detach().double()
    for n, value in average.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[n], rtol=1e-5, atol=1e-6)
    live = {n: p.detach().clone() for n, p in model.named_parameters()}
    average.swap(model)
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), wanted[n], rtol=1e-5, atol=1e-6)
    average.swap(model)
    assert not same({n: p.detach() for n, p in model.named_parameters()}, live)


# -- what is on disk ---------------------------------------------------------------------------------------


def test_curves_of_a_resumed_run_hold_no_step_twice(tmp_path: Path) -> None:
    def write(curves: Curves, first: int, last: int, mark: float) -> None:
        for step in range(first, last):
            curves.add(step + 1, {"loss": mark + step, "psnr": -mark})
        curves.flush(last)

    curves = Curves(tmp_path, 0)
    write(curves, 0, 5, 100)
    write(curves, 5, 10, 100)
    write(curves, 10, 15, 100)                      # written, but the checkpoint at 15 never was
    again = Curves(tmp_path, 10)
    assert {p.stem for p in tmp_path.glob("*.parquet")} == {"000000000", "000000005"}
    write(again, 10, 15, 200)
    wanted = [(step + 1, name, value) for step in range(15)
              for name, value in (("loss", (100 if step < 10 else 200) + step),
                                  ("psnr", -100 if step < 10 else -200))]
    assert read_curves(tmp_path) == wanted
    again.compact()
    assert [p.stem for p in tmp_path.glob("*.parquet")] == ["000000000"]
    assert read_curves(tmp_path) == wanted


def test_thinned_curves_keep_both_ends_and_at_most_so_many_points() -> None:
    rows = [(i, "a", float(i)) for i in range(1000)] + [(3, "b", 1.0)]
    kept = thinned(rows, 50)
    steps = [s for s, n, _ in kept if n == "a"]
    assert len(steps) == 50 and steps[0] == 0 and steps[-1] == 999 and steps == sorted(set(steps))
    assert (3, "b", 1.0) in kept


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    states = [{"step": step, "model": {"w": torch.randn(200, generator=torch.Generator().manual_seed(step))}}
              for step in (5, 10)]
    for state in states:
        save_checkpoint(folder, state["step"], state)
    return states


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    states = checkpoints(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000005.pt", "step-000000010.pt"]
    assert not same(newest_checkpoint(tmp_path, CPU), states[1])


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text"])
def test_a_damaged_checkpoint_is_passed_over_for_the_older_one(damage: str, tmp_path: Path) -> None:
    states = checkpoints(tmp_path)
    newest = tmp_path / "step-000000010.pt"
    content = newest.read_bytes()
    middle = content.index(states[1]["model"]["w"].numpy().tobytes()) + 100
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    newest.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no checkpoint",
                        "flipped": flipped}[damage])
    assert not same(newest_checkpoint(tmp_path, CPU), states[0])
    newest.write_bytes(content)
    assert not same(newest_checkpoint(tmp_path, CPU), states[1])
    (tmp_path / "step-000000005.pt").write_bytes(b"")
    newest.write_bytes(b"")
    assert newest_checkpoint(tmp_path, CPU) is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "flips"
    folder.mkdir(exist_ok=True)
    states = checkpoints(folder)
    newest = folder / "step-000000010.pt"
    content = bytearray(newest.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    newest.write_bytes(bytes(content))
    found = newest_checkpoint(folder, CPU)
    assert not same(found, states[0]) or not same(found, states[1])     # passed over, or of no consequence


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))
