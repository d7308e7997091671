"""A small suite, and `bench` as a user types it, with runs that need no torch or with real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from bench.runs import RunFolder

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
STUB = "stub_runs:execute_many"             # runs that follow a script and need no torch: tests/stub_runs.py


def until(true: Callable[[], T], what: str, seconds: float = 60) -> T:
    """Wait until something is true; what it then returned."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
    return found


def suite(**changes: object) -> dict:
    """Six tiny runs on embedded photographs that differ in their seed."""
    return {
        "name": "six", "question": "Does it come to the right end?",
        "base": {
            "dataset": {"name": "photos", "image_size": 32},
            "tokenizer": {"name": "vqvae", "hidden": 8, "quantizer": {"name": "ema_vq", "codebook_size": 16, "codebook_dim": 4}},
            "objective": {"name": "reconstruction"}, "train": {"steps": 20, "batch_size": 8},
            "optimizers": {"tokenizer": {"name": "adam", "lr": 1e-3}},
            "measure": {"protocol": "ours-1", "values": ["usage", "psnr"]}, "monitors": ["codebook_usage"],
        },
        "seeds": [0, 1, 2, 3, 4, 5], "resources": {"gpus": 0, "cpus": 1, "hours": 1},
        "report": {"tables": [{"name": "table", "rows": ["train.seed"], "columns": ["usage", "psnr"]}]}, **changes,
    }


@dataclass
class Bench:
    """`bench` with folders of its own."""

    folder: Path
    cache: Path
    environment: dict[str, str] = field(default_factory=dict)
    stub: bool = True
    root: Path = ROOT                       # the checkout whose code runs

    def write(self, content: dict, name: str = "six") -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def env(self, do: dict[str, str] | None = None) -> dict[str, str]:
        added = {
            "BENCH_RESULTS": str(self.folder / "results"), "BENCH_REPORTS": str(self.folder / "reports"),
            "BENCH_RUNS": str(self.folder / "runs"), "BENCH_CACHE": str(self.cache), "OMP_NUM_THREADS": "1",
            "BENCH_CONFIG": str(self.folder / "config.yaml"), "PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "tests")]),
        }
        if self.stub:
            added |= {"BENCH_TARGET": STUB, "BENCH_STUB": json.dumps(do or {})}
        return os.environ | added | self.environment

    def start(self, *words: str, do: dict[str, str] | None = None) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "bench", *words], cwd=self.root, env=self.env(do), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def __call__(self, *words: str, do: dict[str, str] | None = None, code: int = 0, seconds: float = 120) -> str:
        process = self.start(*words, do=do)
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == code, f"bench {' '.join(words)} ended with {process.returncode}:\n{out}\n{err}"
        return out + err

    def status(self, path: Path) -> dict[str, dict]:
        """label -> what `bench status --json` says."""
        process = self.start("status", str(path), "--json")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return {row["label"]: row for row in json.loads(out)}

    def states(self, path: Path) -> dict[str, str]:
        return {label: row["state"] for label, row in self.status(path).items()}

    def until_states(self, path: Path, wanted: dict[str, str], seconds: float = 60) -> dict[str, dict]:
        seen: dict[str, dict] = {}

        def reached() -> bool:
            seen.clear()
            seen.update(self.status(path))
            return all(seen[label]["state"] == state for label, state in wanted.items())

        try:
            until(reached, f"{wanted}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {[(k, v['state'], v['note']) for k, v in seen.items()]}") from None
        return seen

    def run_folder(self, path: Path, label: str) -> RunFolder:
        return RunFolder(self.folder / "runs", self.status(path)[label]["train_id"])


def steps_done(folder: RunFolder) -> list[int]:
    """What a stub run of `steps:N` wrote, one line a step."""
    path = folder.path / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def at_step(folder: RunFolder, step: int) -> None:
    until(lambda: (state := folder.read_state()) is not None and state.phase == "training" and state.step >= step,
          f"step {step} of {folder.train_id}")

