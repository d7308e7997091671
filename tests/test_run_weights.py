"""A run of ours as a checkpoint: with its live or its averaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import train_spec

from bench.build import build_model
from bench.errors import BadInput
from bench.load import load_tokenizer


def test_averaged_weights_of_a_run_are_another_checkpoint(tmp_path: Path) -> None:
    spec = train_spec({"name": "vq", "codebook_size": 16, "codebook_dim": 4})
    model, _ = build_model(spec)
    folder = tmp_path / "runs" / spec.train_id
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    average = {name: p.detach() + 1 for name, p in model.named_parameters()}
    for kept in (average, None):
        torch.save({"train": {"model": model.state_dict(), "average": kept}}, folder / "checkpoints" / "final.pt")
        live = load_tokenizer(folder).tokenizer
        assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in live.named_parameters())
        if kept:
            averaged = load_tokenizer(folder, weights="average")
            assert all(torch.equal(p, average[name]) for name, p in averaged.tokenizer.named_parameters())
    with pytest.raises(BadInput, match=r"without train\.average"):
        load_tokenizer(folder, weights="average")
    with pytest.raises(BadInput, match="only runs of ours"):
        load_tokenizer(averaged.save_pretrained(tmp_path / "ours"), weights="average")
