"""OptVQ's released evaluation assigns a batch together: which batches is fixed, in the identity, and told in the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CPU, images, small
from typer.testing import CliRunner

from bench import evaluate
from bench.cli import app
from bench.evaluate import depends_on_batch, measure, share
from bench.interfaces import Tokenizer
from bench.load import Opened, PretrainedTokenizer
from bench.metrics.psnr import PSNR
from bench.results import read_records

SINKHORN = {"name": "sinkhorn", "codebook_size": 16, "heads": 2}


def tokenizer(evaluation: str, size: int = 16) -> Tokenizer:
    torch.manual_seed(0)
    spec = small("tokenizer", "optvq", quantizer=SINKHORN | {"evaluation": evaluation})
    return spec.partial()(size).eval()


def reconstructed(model: Tokenizer, pixels: np.ndarray, batch_size: int = 4) -> np.ndarray:
    kept: dict[int, np.ndarray] = {}
    measure(model, pixels, {}, device=CPU, batch_size=batch_size, keep=lambda start, r: kept.update({start: r.numpy()}))
    return np.concatenate([kept[start] for start in sorted(kept)])


@pytest.mark.parametrize("count", [1, 11, 12])
def test_the_batches_are_the_same_for_any_number_of_processes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = tokenizer("plan"), images(count)
    wanted = reconstructed(model, pixels)
    for world in (2, 3):
        parts = []
        for rank in range(world):
            first, last = share(count, rank, world, 4)
            assert first % 4 == 0 and (last % 4 == 0 or last == count)
            monkeypatch.setattr(evaluate, "share", lambda n, r, w, whole, rank=rank, world=world: share(n, rank, world, whole))
            parts += [reconstructed(model, pixels)] if last > first else []
        assert np.array_equal(np.concatenate(parts), wanted)
    monkeypatch.undo()
    if count > 4:
        assert not np.array_equal(reconstructed(model, pixels, 3), wanted)
        one = tokenizer("nearest")
        assert np.abs(reconstructed(one, pixels, 3).astype(int) - reconstructed(one, pixels)).max() <= 1


def test_a_value_says_how_many_images_were_assigned_together() -> None:
    for evaluation, details in (("plan", {"batch": 4.0}), ("nearest", {})):
        model = tokenizer(evaluation)
        found = measure(model, images(6), {"psnr": PSNR()}, device=CPU, batch_size=4)
        assert found["psnr"].details == details and depends_on_batch(model) == bool(details)
    inside = small("tokenizer", "vqvae", quantizer={"name": "grouped", "groups": 2, "quantizer": {
        "name": "sinkhorn", "codebook_size": 16, "evaluation": "plan"}})
    assert depends_on_batch(inside.partial()(16))


def test_another_batch_is_another_record_and_the_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("results", "reports", "runs", "cache", "weights", "data"):
        monkeypatch.setenv(f"BENCH_{name.upper()}", str(tmp_path / name))
    for i, pixels in enumerate(images(8, 32)):
        folder = tmp_path / "data" / "mine" / ("test" if i else "train")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i}.png")
    model = small("tokenizer", "optvq", quantizer=SINKHORN)
    PretrainedTokenizer(Opened(tokenizer("nearest"), model, 16, None, ())).save_pretrained(tmp_path / "optvq")
    base = ["eval", "--checkpoint", str(tmp_path / "optvq"), "dataset.name=image_folder", "dataset.folder=mine",
            "dataset.image_size=16", "measure.values=[psnr]", "--json", "--name", "mine"]
    asked = (["--batch-size", "3"], ["--batch-size", "2"], ["--batch-size", "3", "tokenizer.quantizer.evaluation=plan"],
             ["--batch-size", "2", "tokenizer.quantizer.evaluation=plan"])
    said = []
    for words in asked:
        done = CliRunner().invoke(app, [*base, *words])
        assert done.exit_code == 0, (done.output, done.exception)
        said.append(json.loads(done.output)[0])
    assert len({s["train_id"] for s in said}) == 3 and said[0]["train_id"] == said[1]["train_id"]
    records = {r.train_id: r for r in read_records(tmp_path / "results" / "mine" / "records.jsonl")}
    assert "checkpoint.batch_size" not in records[said[0]["train_id"]].fields
    assert [records[s["train_id"]].fields["checkpoint.batch_size"] for s in said[2:]] == [3, 2]
    table = (tmp_path / "reports" / "mine" / "table.md").read_text()
    assert "Codes assigned over batches of 3 images together" in table and "of 2 images together" in table
