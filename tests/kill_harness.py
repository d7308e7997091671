"""Kill a run with SIGKILL, run the same command again, and compare with a run that nobody disturbed.

    python tests/kill_harness.py --kills 10 --seed 0 --quantizer vq

Each kill is a trial of its own: killed, continued, compared bit for bit. Moments:
    step:S          before the S-th training batch is handed out
    save:GLOB:N:M   while the N-th file of that name is written; M is `half` (half of the bytes are there),
                    `aside` (all of them, not yet renamed) or `renamed` (just renamed)
    batch:B         after the B-th batch of the evaluation
    moment:SECONDS  from outside, so long after the command began
Attempts are forks of this process, which has imported everything: a fresh one would spend its life importing.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import CPU, same

import bench.execute
import bench.files
from bench.__main__ import main
from bench.checkpoint import read_state
from bench.curves import read_curves
from bench.data import CachedBatches
from bench.results import read_records
from bench.runs import RunFolder, run_folders

STEPS, CHECKPOINT_EVERY, TEST_BATCHES = 40, 5, 5
QUANTIZERS = {"vq": "{name: vq, codebook_size: 16, codebook_dim: 4}",
              "ema_vq": "{name: ema_vq, codebook_size: 16, codebook_dim: 4, init: samples}"}
SUITE = """
name: killed
question: Does a killed run end like one that nobody disturbed?
base:
  dataset: {{name: photos, image_size: 16, train_images: 96, test_images: 600}}
  tokenizer: {{name: vqvae, hidden: 8}}
  objective: {{name: reconstruction}}
  optimizers: {{tokenizer: {{name: adam, lr: 1e-3, warmup_steps: 10}}}}
  train: {{steps: {steps}, batch_size: 8, flip: true, average: 0.9, log_every: 4, watch_every: 8,
          eval_every: 8, eval_images: 32, checkpoint_every: {every}}}
  measure: {{protocol: ours-1, values: [psnr, ssim, usage, perplexity]}}
  monitors: [codebook_usage, codebook_gradients, codebook_norms, quantization_error]
axes: {{tokenizer.quantizer: [{quantizers}]}}
seeds: [1]
report: {{tables: [{{name: killed, rows: [tokenizer.quantizer], columns: [psnr, ssim, usage, perplexity]}}]}}
"""


# -- what is killed ----------------------------------------------------------------------------------------


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill: str) -> None:
    """Patch this process so that it kills itself at the given moment."""
    kind, *rest = kill.split(":")
    left = {"n": 0}

    def due(n: str) -> bool:
        left["n"] += 1
        return left["n"] == int(n)

    if kind == "step":
        hand_out = CachedBatches.__call__
        CachedBatches.__call__ = lambda self, *at: die() if due(rest[0]) else hand_out(self, *at)
    elif kind == "batch":
        measuring = bench.execute._Story.measuring
        bench.execute._Story.measuring = lambda self, *at: die() if due(rest[0]) else measuring(self, *at)
    elif kind == "save":
        pattern, n, moment = rest
        write_aside, replace = bench.files.write_aside, os.replace
        now: dict[str, bool] = {}

        def writing(path: Path, data: bytes | str, sync: bool) -> Path:
            now["due"] = fnmatch.fnmatch(path.name, pattern) and due(n)
            if now["due"] and moment == "half":
                write_aside(path, data[: len(data) // 2], sync)
                die()
            return write_aside(path, data, sync)

        def replacing(source: Any, target: Any) -> None:
            if now.get("due") and moment == "aside":
                die()
            replace(source, target)
            if now.get("due") and moment == "renamed":
                die()

        bench.files.write_aside, bench.files.os.replace = writing, replacing
    elif kind not in ("moment", "never"):
        raise SystemExit(f"there is no moment {kill!r}")


def attempt(suite: Path, folder: Path, kill: str = "never") -> tuple[int, float]:
    """The command in a fork of this process: (exit code, or minus the signal that ended it, seconds)."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            said = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
            os.dup2(said, 1)
            os.dup2(said, 2)
            arm(kill)
            sys.argv = ["bench", *command(suite, folder)]
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        finally:
            os._exit(code)
    if kill.startswith("moment:"):
        time.sleep(float(kill.partition(":")[2]))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def command(suite: Path, folder: Path) -> list[str]:
    """Arguments of `bench`."""
    return ["run", str(suite), "--launcher", "debug", "--results", str(folder / "results"),
            "--reports", str(folder / "reports"), "--runs", str(folder / "runs")]


def new_folder(root: Path, name: str) -> Path:
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_suite(root: Path, quantizers: list[str]) -> Path:
    path = root / "killed.yaml"
    path.write_text(SUITE.format(steps=STEPS, every=CHECKPOINT_EVERY,
                                 quantizers=", ".join(QUANTIZERS[q] for q in quantizers)))
    return path


# -- what must be equal ------------------------------------------------------------------------------------


def differences(folder: Path, undisturbed: Path) -> list[str]:
    """Everything in which two results folders differ, apart from cost and provenance."""
    runs = {f.train_id: f for f in run_folders(undisturbed / "runs")}
    others = {f.train_id: f for f in run_folders(folder / "runs")}
    if runs.keys() != others.keys() or not runs:
        return [f"runs: {sorted(runs)} and {sorted(others)}"]
    found = [f"{i}: {d}" for i in runs for d in run_differences(others[i], runs[i])]
    lines = [[_scientific(r.model_dump()) for r in read_records(f / "results/killed/records.jsonl")]
             for f in (folder, undisturbed)]
    return found + ([] if lines[0] == lines[1] and len(lines[0]) == len(runs) else ["records.jsonl"])


def run_differences(ours: RunFolder, theirs: RunFolder) -> list[str]:
    states = [read_state(f.checkpoints / "final.pt", CPU) for f in (ours, theirs)]
    if None in states:
        return ["final.pt is missing"]
    found = [f"final.pt: {d}" for part in ("train", "row") for d in same(states[0][part], states[1][part])]
    records = [_scientific(f.record().model_dump()) for f in (ours, theirs)]
    found += [f"record: {d}" for d in same(records[0], records[1])]
    found += [] if records[0]["state"] == "done" and records[0]["values"] else ["record: not done"]
    curves = [read_curves(f.curves) for f in (ours, theirs)]
    found += [] if curves[0] == curves[1] and curves[0] else ["curves"]
    for part in ("arrays", "values", "images"):
        files = [{p.name: _content(p) for p in getattr(f, part).iterdir()} for f in (ours, theirs)]
        if not files[1] or files[0].keys() != files[1].keys():
            found.append(f"{part}: {sorted(files[0])} and {sorted(files[1])}")
        else:
            found += [f"{part}/{name}" for name in files[0] if files[0][name] != files[1][name]]
    # a run that is stopped saves where it stops: older checkpoints may be of other steps, the newest may not
    kept = [sorted(p.name for p in f.checkpoints.iterdir()) for f in (ours, theirs)]
    same_ends = len(kept[0]) == len(kept[1]) and (kept[0][0], kept[0][-1]) == (kept[1][0], kept[1][-1])
    return found + ([] if same_ends else [f"checkpoints: {kept[0]} and {kept[1]}"])


def _scientific(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("cost", "provenance")}


def _content(path: Path) -> Any:
    if path.suffix == ".npz":                       # a zip holds the time at which it was written
        import numpy as np

        with np.load(path) as arrays:
            return {name: (arrays[name].dtype, arrays[name].shape, arrays[name].tobytes()) for name in arrays}
    return path.read_bytes()


# -- trials ------------------------------------------------------------------------------------------------


def chain(suite: Path, root: Path, undisturbed: Path, kills: list[str]) -> dict[str, Any]:
    """Kill after kill of one and the same suite, then to the end."""
    folder = new_folder(root, "disturbed")
    exits = [attempt(suite, folder, kill)[0] for kill in kills]
    exits.append(attempt(suite, folder)[0])
    problems = [f"{kill}: ended with {code}, not by the kill"
                for kill, code in zip(kills, exits, strict=False)
                if code != -signal.SIGKILL and not kill.startswith("moment:")]
    if exits[-1] != 0:
        problems.append((folder / "output.txt").read_text()[-3000:])
    else:
        problems += differences(folder, undisturbed)
    # `run-<suite>.json` is written by whoever plans, not by the owner, so that no owner may sweep it up
    if left := [str(p) for p in (folder / "runs").rglob(".*.tmp") if not p.name.startswith(".run-")]:
        problems.append(f"left behind: {left}")
    return {"kills": kills, "exits": exits, "problems": problems}


def random_kills(count: int, seed: int, seconds: float) -> list[str]:
    """Moments, each kind in turn: in a step, in a save, in the evaluation, from outside at any time."""
    draw = random.Random(seed)
    saves = STEPS // CHECKPOINT_EVERY
    kinds: list[Callable[[], str]] = [
        lambda: f"step:{draw.randint(1, STEPS)}",
        lambda: f"save:step-*.pt:{draw.randint(1, saves)}:{draw.choice(['half', 'aside', 'renamed'])}",
        lambda: f"batch:{draw.randint(1, TEST_BATCHES)}",
        lambda: f"moment:{draw.uniform(0.05, 0.8) * seconds:.3f}",
        lambda: f"save:{draw.choice(['final.pt', 'record.json', '*.parquet', '*.json', '*.npz'])}:1:"
                f"{draw.choice(['half', 'aside', 'renamed'])}",
    ]
    return [kinds[i % len(kinds)]() for i in range(count)]


def undisturbed_run(suite: Path, root: Path) -> tuple[Path, float]:
    folder = new_folder(root, "undisturbed")
    attempt(suite, new_folder(root, "decoded"), "step:1")       # decodes the images into the cache
    code, seconds = attempt(suite, folder)
    if code:
        raise SystemExit((folder / "output.txt").read_text())
    return folder, seconds


def parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quantizer", action="append", choices=sorted(QUANTIZERS), help="default: both")
    parser.add_argument("--kills", type=int, default=10, help="random kills, each a trial of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chain", help="kills in this order, of one and the same suite: step:3,batch:2,...")
    parser.add_argument("--folder", type=Path, help="where to work; kept. Default: a temporary folder")
    return parser.parse_args()


def run_trials(options: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    import seaborn  # noqa: F401 - what the command would import again in each fork
    import torch._dynamo  # noqa: F401

    os.environ["BENCH_CACHE"] = str(root / "cache")
    suite = write_suite(root, options.quantizer or sorted(QUANTIZERS))
    undisturbed, seconds = undisturbed_run(suite, root)
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    plans = [options.chain.split(",")] if options.chain else [
        [kill] for kill in random_kills(options.kills, options.seed, seconds)]
    trials = []
    for plan in plans:
        trials.append(chain(suite, root, undisturbed, plan))
        said = "; ".join(trials[-1]["problems"]) or "bit-equal"
        print(f"{', '.join(plan)}: exits {trials[-1]['exits']}: {said}", flush=True)
    return trials


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = parse()
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        trials = run_trials(asked, asked.folder)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            trials = run_trials(asked, Path(temporary))
    bad = sum(bool(t["problems"]) for t in trials)
    print(json.dumps({"trials": len(trials), "kills": sum(len(t["kills"]) for t in trials), "bad": bad}))
    sys.exit(bool(bad))
