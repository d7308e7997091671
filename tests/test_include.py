"""One new thing is one new file, also in somebody's own folder: listed, checked, trained by a job of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

QUANTIZER = '''
"""Rounds every coordinate: not good, but mine."""
import torch
from torch import Tensor
from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout

@register("quantizer", "mine")
class Mine(Quantizer):
    title = "mine"

    def __init__(self, latent: LatentShape, *, scale: float = 1.0) -> None:
        super().__init__()
        self.input_dim = self.output_dim = 1
        self.scale = scale
        self.layout = TokenLayout(latent.positions, (3,), (latent.grid,) if latent.grid else ())

    def forward(self, latents: Tensor) -> QuantizerOutput:
        q = (latents * self.scale).round().clamp(-1, 1)
        return QuantizerOutput(latents + (q - latents).detach(), (q + 1).long())

    def lookup(self, codes: Tensor) -> Tensor:
        return codes.float() - 1
'''
SUITE = """
name: own
question: Does my quantizer run?
base:
  dataset: {name: photos, image_size: 16, train_images: 32, test_images: 16}
  tokenizer: {name: vqvae, hidden: 4, quantizer: {name: mine, scale: 2.0}}
  objective: {name: reconstruction}
  optimizers: {tokenizer: {lr: 1e-3}}
  train: {steps: 6, batch_size: 4, log_every: 2}
  measure: {values: [psnr, usage]}
  monitors: [codebook_usage, codebook_gradients, codebook_norms, quantization_error]
report: {tables: [{name: own, rows: [tokenizer.quantizer], columns: [psnr, usage]}]}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "mine" / "quantizers").mkdir(parents=True)
    (tmp_path / "mine" / "quantizers" / "mine.py").write_text(QUANTIZER)
    (tmp_path / "own.yaml").write_text(SUITE)
    return tmp_path


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BENCH_")}
    environment |= {"BENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=120)


def test_a_quantizer_in_an_included_folder_is_listed_and_nothing_else_knew_it(own: Path) -> None:
    assert "mine" not in bench(own, "ls", "quantizers").stdout
    assert "Rounds every coordinate" in bench(own, "ls", "quantizers", "--include", "mine").stdout


def test_a_quantizer_in_an_included_folder_is_trained_by_a_local_job(own: Path) -> None:
    done = bench(own, "run", "own.yaml", "--include", "mine", "--launcher", "local")
    assert done.returncode == 0, done.stderr
    [record] = [json.loads(line) for line in (own / "results/own/records.jsonl").read_text().splitlines()]
    assert record["state"] == "done" and record["layout"]["vocab_sizes"] == [3]
    assert {v["name"] for v in record["values"].values() if v["number"] is not None} == {"psnr", "usage"}
    assert record["components"]["tokenizer.quantizer"] == {"name": "mine", "title": "mine", "source": None}
    assert (own / "reports/own/table.md").read_text().count("mine") >= 1
    revision = record["spec"]["model"]["kwargs"]["quantizer"]["revision"]
    assert isinstance(revision, str) and len(revision) == 12           # outside code: its bytes are its revision


def test_changed_outside_code_is_another_run(own: Path) -> None:
    def ids() -> list[str]:
        planned = bench(own, "plan", "own.yaml", "--include", "mine", "--json")
        assert planned.returncode == 0, planned.stderr
        return [run["train_id"] for run in json.loads(planned.stdout)]

    before = ids()
    path = own / "mine" / "quantizers" / "mine.py"
    path.write_text(path.read_text().replace("round()", "floor()"))
    assert ids() != before
