"""A run in several real processes: equal to one, stopped together, and nobody waits for one that is gone.

The processes are forks of one server (this file as a program), which has imported everything once.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kill_harness import run_differences
from tiny import CPU, ROOT, places, same

import bench.execute
import bench.together
from bench.checkpoint import newest_checkpoint, read_state
from bench.curves import read_curves
from bench.data import CachedBatches
from bench.distributed import rank as our_rank
from bench.execute import execute_many
from bench.run import Run
from bench.runs import RunFolder, State
from bench.stopping import Interrupted, on_signals
from bench.suite import Suite

SUITE = """
name: several
question: Do several processes do what one does?
base:
  dataset: {{name: photos, image_size: 16, train_images: 64, test_images: 33}}
  tokenizer: {{name: vqvae, hidden: 8}}
  objective: {{name: reconstruction}}
  optimizers: {{tokenizer: {{lr: 1e-3, eps: 1e-2, clip_norm: 0.5}}}}
  train: {{steps: 12, flip: true, average: 0.9, eval_every: 6, eval_images: 8, watch_every: 6,
          checkpoint_every: 5, {train}}}
  measure: {{values: [psnr, ssim, usage, perplexity, usage_window]}}
  monitors: [codebook_usage, codebook_norms, codebook_gradients, quantization_error]
axes: {{tokenizer.quantizer: [{quantizers}]}}
"""
EMA = "{name: ema_vq, codebook_size: 16, codebook_dim: 4, init: samples}"
LAPLACE = "{name: ema_vq, codebook_size: 16, codebook_dim: 4, init: normal, zero_count: laplace}"
# the entropy is a mean over processes in the forward, also in the evaluation's
VQ = "{name: vq, codebook_size: 16, codebook_dim: 4, init: samples, entropy: true, entropy_temperature: 1.0}"
SEVERAL = (EMA, LAPLACE, VQ)
WHOLE = "batch_size: 16, accumulation: 2, log_every: 4"
STOPPED = 75                # exit code of a process that was asked to stop and has saved
WAIT = 60.0                 # seconds after which processes are killed: they should be gone long before


def plan(folder: Path, *quantizers: str, train: str = WHOLE) -> list[Run]:
    """The suite's runs with these quantizers, all of them where none is named."""
    folder.mkdir(parents=True, exist_ok=True)
    suite = folder / "several.yaml"
    suite.write_text(SUITE.format(quantizers=", ".join(SEVERAL), train=train))
    runs = dict(zip(SEVERAL, Suite.load(suite).expand(places(folder)), strict=True))
    return [runs[q] for q in quantizers or SEVERAL]


# -- in the processes ----------------------------------------------------------------------------------------


def at_batch(at: dict[str, Any], do: Callable[[], None]) -> None:
    """On process `rank` (None: all), when it asks for the batch of step `step`."""
    hand_out = CachedBatches.__call__

    def handing_out(self: CachedBatches, step: int, part: int) -> Any:
        if (step, part) == (at["step"], 0) and our_rank() == at.get("rank", our_rank()):
            do()
        return hand_out(self, step, part)

    CachedBatches.__call__ = handing_out


def fail() -> None:
    raise RuntimeError("this process ran into something")


def arm(asked: dict[str, Any]) -> None:
    """What goes wrong in this process."""
    if at := asked.get("kill"):
        at_batch(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if at := asked.get("fail"):
        at_batch(at, fail)
    if at := asked.get("signal"):
        at_batch(at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    if "signal_in_evaluation" in asked:
        measuring = bench.execute._Story.measuring

        def signalled(self: Any, done: int, total: int) -> None:
            if our_rank() == asked["signal_in_evaluation"]:
                os.kill(os.getpid(), signal.SIGTERM)
            measuring(self, done, total)

        bench.execute._Story.measuring = signalled
    if seconds := asked.get("slow"):
        hand_out = CachedBatches.__call__
        CachedBatches.__call__ = lambda self, *at: time.sleep(seconds) or hand_out(self, *at)
    if "full" in asked:
        save, due = bench.execute.save_checkpoint, [asked["full"]]

        def full(folder: Path, step: int, content: dict[str, Any]) -> Path:
            if [step] == due:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), due.clear())
            return save(folder, step, content)

        bench.execute.save_checkpoint = full


def process(asked: dict[str, Any]) -> int:
    """The run files of a folder, as a job's process executes them: its exit code."""
    folder = Path(asked["folder"])
    bench.execute.EVALUATE_BATCH = 8            # of 33 images one process of two has a batch more than the other
    bench.execute.STATE_EVERY = 0.0
    bench.together.MEET_WITHIN = asked.get("meet", 20.0)
    states: list[State] = []
    write_state = RunFolder.write_state
    RunFolder.write_state = lambda self, state: (states.append(state), write_state(self, state))[1]
    arm(asked)
    with on_signals(signal.SIGTERM, signal.SIGUSR2) as stop:
        try:
            execute_many(asked["files"], places(folder), stop)
        except Interrupted as error:
            print(f"interrupted: {error}", stop.why, stop.signal)
            return STOPPED
        finally:
            (folder / f"states-{os.environ['RANK']}.json").write_text(json.dumps([s.model_dump() for s in states]))
    return 0


def serve() -> None:
    """Per line of input a request: forks `world` processes, waits, answers with their exit codes and seconds."""
    for line in sys.stdin:
        asked = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world, began = asked["world"], time.monotonic()
        children = {}
        for rank in range(world):
            if (child := os.fork()) == 0:
                code = 70
                try:
                    out = os.open(f"{asked['folder']}/said-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)
                    os.dup2(out, 1)
                    os.dup2(out, 2)
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                    code = process(asked)
                finally:
                    sys.stdout.flush()
                    os._exit(code)              # also after an exception, which has been printed
            children[child] = rank
        exits, seconds = [0] * world, [0.0] * world
        while children:
            for child, rank in list(children.items()):
                if time.monotonic() - began > WAIT:
                    os.kill(child, signal.SIGKILL)
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    exits[rank], seconds[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - began
                    del children[child]
            time.sleep(0.01)
        print(json.dumps({"exits": exits, "seconds": seconds}), flush=True)


# -- asking for them -----------------------------------------------------------------------------------------


class Job:
    """What became of processes: exit codes and seconds by rank, and what they said."""

    def __init__(self, folder: Path, answer: dict[str, list]) -> None:
        self.exits, self.seconds = answer["exits"], answer["seconds"]
        self.said = [(folder / f"said-{r}.txt").read_text() for r in range(len(self.exits))]

    def states(self, folder: Path) -> list[State]:
        return [State(**s) for s in json.loads((folder / "states-0.json").read_text())]


Starter = Callable[..., Job]


@pytest.fixture(scope="module")
def job() -> Iterator[Starter]:
    """job(folder, runs, world, **what goes wrong): to the end of its processes."""
    server = subprocess.Popen([sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})

    def ask(folder: Path, runs: list[Run], world: int, **what: Any) -> Job:
        files = []
        for i, run in enumerate(runs):
            files.append(str(folder / f"run-{i}.json"))
            Path(files[-1]).write_text(run.model_dump_json())
        server.stdin.write(json.dumps({"folder": str(folder), "files": files, "world": world, **what}) + "\n")
        server.stdin.flush()
        return Job(folder, json.loads(server.stdout.readline()))

    yield ask
    server.stdin.close()
    server.wait(30)


def run_folder(folder: Path, run: Run) -> RunFolder:
    return RunFolder(places(folder).runs, run.train_id)


# -- equality ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(job: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    done = job(folder, plan(folder), 1)
    assert done.exits == [0], done.said
    return folder


@pytest.fixture(scope="module")
def two(job: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = job(folder, plan(folder), 2)
    assert done.exits == [0, 0], done.said
    return folder


def compared(one: Path, other: Path, processes: int, *quantizers: str) -> float:
    """Checks that all that was counted is equal; the largest relative difference of all that was summed."""
    most = 0.0

    def near(a: Any, b: Any, what: str) -> None:
        nonlocal most
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, what
        # the entropy loss is a difference of two that are up to log 16
        least = np.log(16) if "entropy at" in what else 1e-2
        difference = float((np.abs(a - b) / np.maximum(np.abs(a), least)).max(initial=0.0))
        assert difference <= 1e-6, f"{what}: {difference}"
        most = max(most, difference)

    for run in plan(one, *quantizers):
        ours, theirs = run_folder(one, run), run_folder(other, run)
        records = ours.record(), theirs.record()
        assert [r.state for r in records] == ["done", "done"]
        assert records[1].provenance["processes"] == processes
        for i, value in records[0].values.items():
            found = records[1].values[i]
            assert found.images == value.images == 33 and found.details == value.details
            near(value.number, found.number, f"{run.label}: {value.name}")
        curves = [read_curves(f.curves) for f in (ours, theirs)]
        assert [p[:2] for p in curves[0]] == [p[:2] for p in curves[1]] and len(curves[0]) >= 50
        counted = re.compile("used_codes|(test/)?usage|window_fill|ceiling|codes_with_gradient")
        for (step, name, a), (_, _, b) in zip(*curves, strict=True):
            near(a, b, f"{run.label}: {name} at step {step}")
            assert a == b or not counted.fullmatch(name), f"{run.label}: {name} at step {step}: {a} and {b}"
        finals = [read_state(f.checkpoints / "final.pt", CPU)["train"] for f in (ours, theirs)]
        assert not same(finals[0]["monitors"][0], finals[1]["monitors"][0])     # the window: each code at its place
        for part in ("model", "average"):
            for name, value in finals[0][part].items():
                if hasattr(value, "numpy"):
                    near(value, finals[1][part][name], f"{run.label}: {name}")
        names = [sorted(p.name for p in f.arrays.iterdir()) for f in (ours, theirs)]
        assert names[0] == names[1] == ["000000006.npz", "000000012.npz"]
        for name in names[0]:
            with np.load(ours.arrays / name) as a, np.load(theirs.arrays / name) as b:
                assert (a["counts"] == b["counts"]).all() and a["counts"].sum() > 0
                for array in a.files:
                    near(a[array], b[array], f"{run.label}: {name} {array}")
        grids = [(f.images / "reconstructions.png").read_bytes() for f in (ours, theirs)]
        assert abs(len(grids[0]) - len(grids[1])) < 50
    return most


def test_two_processes_equal_one(alone: Path, two: Path) -> None:
    most = compared(alone, two, 2)
    print(f"largest relative difference of two processes from one: {most:.1e}")
    assert most > 0                             # the comparison looks at something


def test_four_processes_equal_one(alone: Path, job: Starter, tmp_path: Path) -> None:
    """As two machines with two each."""
    done = job(tmp_path, plan(tmp_path, EMA, VQ), 4)
    assert done.exits == [0] * 4, done.said
    print(f"largest relative difference of four processes from one: {compared(alone, tmp_path, 4, EMA, VQ):.1e}")


def test_streamed_batches_of_two_processes_are_those_of_one(alone: Path, job: Starter, tmp_path: Path) -> None:
    """Decoded in worker processes, in each process its own share."""
    runs = plan(tmp_path, VQ, train=f"{WHOLE}, cache_gib: 1e-9, workers: 1")
    done = job(tmp_path, runs, 2)
    assert done.exits == [0, 0], done.said
    ours, = (r for r in plan(alone) if r.train_id == runs[0].train_id)
    curves = [read_curves(run_folder(f, ours).curves) for f in (alone, tmp_path)]
    assert [p[2] for p in curves[1]] == pytest.approx([p[2] for p in curves[0]], rel=1e-6, abs=1e-6)


def test_the_speed_is_that_of_all_processes_together(job: Starter, tmp_path: Path) -> None:
    runs = plan(tmp_path, EMA, train="batch_size: 16, log_every: 2")
    done = job(tmp_path, runs, 2, slow=0.1)
    assert done.exits == [0, 0], done.said
    told = [s for s in done.states(tmp_path) if s.images_per_second is not None]
    assert len(told) >= 4
    first, last = told[0], told[-1]
    rate = (last.step - first.step) * 16 / (last.updated - first.updated)
    assert last.images_per_second == pytest.approx(rate, rel=0.3)
    for state in told:
        assert state.eta_seconds == pytest.approx((12 - state.step) * 16 / state.images_per_second)
    cost = run_folder(tmp_path, runs[0]).record().cost
    assert cost["images_per_second"] == pytest.approx(12 * 16 / cost["train_seconds"])


# -- stopping ------------------------------------------------------------------------------------------------


def test_one_process_that_is_asked_stops_all_at_the_same_step_and_the_same_command_continues(
    two: Path, job: Starter, tmp_path: Path,
) -> None:
    runs = plan(tmp_path, EMA, VQ)
    where = run_folder(tmp_path, runs[0])
    done = job(tmp_path, runs, 2, signal={"rank": 1, "step": 6})
    assert done.exits == [STOPPED, STOPPED], done.said
    for said in done.said:                      # also the one that was not asked knows why
        assert f"asked to end (SIGTERM) {signal.SIGTERM}" in said.replace("\n", " ")
    state = where.read_state()
    assert (state.phase, state.step) == ("waiting", 8)      # asked after step 7, known after step 8
    assert state.reason == "asked to end (SIGTERM); continues from step 8"
    assert newest_checkpoint(where.checkpoints, CPU)["train"]["step"] == 8
    assert where.owner() is None and where.record() is None and run_folder(tmp_path, runs[1]).read_state() is None
    done = job(tmp_path, runs, 2, signal_in_evaluation=0)
    assert done.exits == [STOPPED, STOPPED], done.said
    state = where.read_state()
    assert (state.phase, state.step, state.restarts) == ("waiting", 12, 1)
    assert state.reason.startswith("asked to end (SIGTERM); ") and not where.read_values()
    done = job(tmp_path, runs, 2)
    assert done.exits == [0, 0], done.said
    for run in runs:
        found = run_differences(run_folder(tmp_path, run), run_folder(two, run))
        assert [d for d in found if not d.startswith("checkpoints")] == []
    assert where.read_state().restarts == 2 and where.record().cost["restarts"] == 1      # the training began twice


# -- what goes wrong -----------------------------------------------------------------------------------------


def test_a_killed_process_ends_the_job_and_the_same_command_continues(two: Path, job: Starter, tmp_path: Path) -> None:
    runs = plan(tmp_path, EMA, VQ)
    where = run_folder(tmp_path, runs[0])
    done = job(tmp_path, runs, 2, kill={"rank": 1, "step": 7})
    assert done.exits == [1, -signal.SIGKILL], done.said
    print(f"all processes had ended {done.seconds[0] - done.seconds[1]:.2f} s after the kill")
    assert done.seconds[0] - done.seconds[1] < 20
    state = where.read_state()
    assert state.phase == "failed" and where.record() is None and where.owner() is None
    assert re.fullmatch(r"another process of this run died or stopped answering \(gloo: [^[\]/]*\)", state.reason)
    assert newest_checkpoint(where.checkpoints, CPU)["train"]["step"] == 5
    done = job(tmp_path, runs, 2)
    assert done.exits == [0, 0], done.said
    assert [run_differences(run_folder(tmp_path, run), run_folder(two, run)) for run in runs] == [[], []]
    assert where.record().cost["restarts"] == 1


def test_what_one_process_alone_runs_into_ends_the_job(job: Starter, tmp_path: Path) -> None:
    runs = plan(tmp_path, EMA, VQ)
    where = run_folder(tmp_path, runs[0])
    done = job(tmp_path, runs, 2, fail={"rank": 1, "step": 7}, meet=2.0)
    assert done.exits == [1, 1], done.said
    assert max(done.seconds) < 30
    told = (where.logs / "failure-rank1.txt").read_text()
    assert "RuntimeError: this process ran into something" in told and "Traceback" in told
    state = where.read_state()
    assert state.phase == "failed" and where.record() is None
    assert state.reason.endswith("; see logs/failure-rank1.txt") and "stopped answering" in state.reason
    done = job(tmp_path, runs, 2, fail={"rank": 0, "step": 7}, meet=2.0)        # the main one: it says itself what it was
    assert done.exits == [1, 1], done.said
    assert where.read_state().reason == where.record().reason == "RuntimeError: this process ran into something"
    assert [p.name for p in where.logs.glob("failure-rank*")] == ["failure-rank0.txt"]
    assert run_folder(tmp_path, runs[1]).read_state() is None


def test_what_all_processes_run_into_is_recorded_and_the_next_run_goes_on(job: Starter, tmp_path: Path) -> None:
    uneven, = plan(tmp_path / "uneven", EMA, train="batch_size: 6, accumulation: 2")
    good, full = plan(tmp_path, VQ, EMA)
    done = job(tmp_path, [uneven, full, good], 2, full=10)
    assert done.exits == [0, 0], done.said
    record, state = (f(run_folder(tmp_path, uneven)) for f in (RunFolder.record, RunFolder.read_state))
    assert record.state == state.phase == "failed"
    assert record.reason == state.reason == (
        "train.batch_size = 6 with accumulation = 2 cannot be shared evenly by 2 processes; make it a multiple of 4, "
        "or ask for another number of GPUs")
    where = run_folder(tmp_path, full)          # only the main process saves, and all end with it
    assert where.record() is None
    assert where.read_state().reason == (
        f"{where.path}: no space left on device while writing step-000000010.pt; free some space, then the same "
        "command continues from step 5")
    assert run_folder(tmp_path, good).record().state == "done"


def test_a_run_that_somebody_else_owns_is_left_alone_by_all_processes(job: Starter, tmp_path: Path) -> None:
    owned, = plan(tmp_path, EMA)
    with run_folder(tmp_path, owned).claim() as lease:
        done = job(tmp_path, [owned, owned], 2)
        assert done.exits == [0, 0], done.said
        assert not lease.lost()
    assert run_folder(tmp_path, owned).read_state() is None


if __name__ == "__main__":
    import pyarrow.parquet  # noqa: F401 - what each process would import again
    import torch
    import torch._dynamo

    torch.set_num_threads(1)
    serve()


AVERAGE = """
import sys
import torch
from bench import distributed
distributed.BUCKET_BYTES = int(sys.argv[1])
distributed.start()
rank = distributed.rank()
both, second, nobody, large = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 2, 4, 40))
both.grad = torch.full((3,), float(rank))
large.grad = torch.arange(40.0) * (rank + 1)
if rank == 1:
    second.grad = torch.tensor([4.0, 6.0])
distributed.average_gradients([both, second, nobody, large])
assert both.grad.tolist() == [0.5] * 3, both.grad
assert second.grad.tolist() == [2.0, 3.0], second.grad
assert nobody.grad is None
assert torch.equal(large.grad, torch.arange(40.0) * 1.5)
distributed.stop()
"""


@pytest.mark.parametrize("bucket", [1, 60, 2**20])
def test_gradients_are_averaged_and_what_nobody_used_keeps_none(bucket):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = [subprocess.Popen(
        [sys.executable, "-c", AVERAGE, str(bucket)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    ) for rank in range(2)]
    errors = [process.communicate(timeout=WAIT)[1] for process in group]
    assert [process.returncode for process in group] == [0, 0], "".join(errors)
