"""TiTok's two stages: the loss of the first against its formula, the teacher kept out of it, both stages in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Bench, suite
from tiny import batches, fail, images, new_state, small, train_spec

from bench.losses.code_prediction import CodePrediction, RandomCodes
from bench.registry import resolve
from bench.spec import bind
from bench.train import train
from bench.types import Batch, TokenizerOutput

PROXY = {"head": "proxy", "patch": 4, "proxy_channels": 32, "proxy_multipliers": (1, 1, 1)}


def pixels(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.from_numpy(images(count, side)).float() / 127.5 - 1


def output(logits: torch.Tensor | None) -> TokenizerOutput:
    nothing = torch.zeros(1)
    return TokenizerOutput(nothing, nothing, nothing, None, logits=logits)


def test_the_loss_is_the_cross_entropy_of_the_teachers_codes() -> None:
    loss, given = CodePrediction(teacher="random"), pixels()
    logits = torch.randn(2, 1024, 4, 4, generator=torch.Generator().manual_seed(0))
    codes = loss.codes(given, logits)
    wanted = 0.0
    for b in range(2):
        for place in range(16):
            row = logits[b, :, place // 4, place % 4].double()
            wanted -= float(row[codes[b, place]] - row.exp().sum().log()) / 32
    assert float(loss(Batch(given), output(logits))) == pytest.approx(wanted, rel=1e-6)


def test_the_random_teacher_is_always_the_same_and_sees_where_a_patch_is() -> None:
    given = pixels(8)
    codes = RandomCodes()(given, 4)
    assert torch.equal(codes, RandomCodes()(given, 4)) and len(codes.unique()) > 20
    turned = RandomCodes()(given.flip(2), 4).unflatten(1, (4, 4))
    assert not torch.equal(turned, codes.unflatten(1, (4, 4)))
    only = given.clone()
    only[:, :, :4, 4:8] = -only[:, :, :4, 4:8]                      # the second patch of the first row
    assert (RandomCodes()(only, 4) != codes).nonzero()[:, 1].unique().tolist() == [1]


def test_a_tokenizer_that_predicts_nothing_or_something_else_is_refused() -> None:
    loss = CodePrediction(teacher="random")
    with pytest.raises(ValueError, match="predicts: true"):
        loss(Batch(pixels()), output(None))
    with pytest.raises(ValueError, match="the teacher has 1024 codes at 16 positions, the tokenizer predicts 512 at 16"):
        loss(Batch(pixels()), output(torch.zeros(2, 512, 4, 4)))


def test_the_published_teacher_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MaskGIT tokenizer of ours, written as the published file is laid out, gives the codes that it gives itself."""
    taught = resolve("tokenizer", "maskgit_vqgan")
    torch.manual_seed(0)
    tokenizer = small("tokenizer", "maskgit_vqgan").partial()(16).eval()
    assert isinstance(tokenizer, taught)
    monkeypatch.setattr("bench.losses.code_prediction.tokenizer", lambda name, format: tokenizer)
    loss, given = CodePrediction(teacher="maskgit_vqgan"), pixels()
    codes = tokenizer.tokenize(given)
    side = int(codes.shape[1] ** 0.5)
    logits = torch.zeros(2, tokenizer.layout.vocab_sizes[0], side, side)
    assert torch.equal(loss.codes(given, logits), codes[..., 0])
    assert not list(loss.state_dict()) and not list(loss.parameters())


def first_stage(**changes: Any) -> Any:
    tokenizer = small("tokenizer", "titok", **PROXY, predicts=True)
    objective = bind("objective", {"name": "reconstruction", "losses": {"codes": {"name": "code_prediction", "teacher": "random"}}},
                     ("objective",), fail)
    return train_spec(model=tokenizer, objective=objective, **changes)


def test_the_first_stage_learns_codes_and_makes_no_pixels_in_training() -> None:
    spec = first_stage(steps=6, freeze=("to_pixels", "proxy_embedding"))
    state = new_state(spec)
    before = {k: v.clone() for k, v in state.model.named_parameters()}
    state.model.train()
    seen = state.model(pixels())
    assert bool(seen.reconstruction.isnan().all()) and seen.logits.shape == (2, 1024, 4, 4)
    train(state, batches(spec), spec, lambda state: state.step >= 6)
    moved = {k for k, v in state.model.named_parameters() if not torch.equal(v, before[k])}
    still = {k for k in before if k.startswith(("to_pixels", "proxy_embedding"))}
    assert moved == before.keys() - still and still
    state.model.eval()
    assert bool(state.model(pixels()).reconstruction.isfinite().all())
    torch.testing.assert_close(state.model(pixels()).reconstruction, state.model.decode(state.model(pixels()).quantized))


def test_both_stages_come_from_one_command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bench = Bench(tmp_path, tmp_path_factory.getbasetemp() / "stages_cache", {"CUDA_VISIBLE_DEVICES": ""}, stub=False)
    content = suite(seeds=[1])
    network = {"name": "titok", "tokens": 8, "width": 16, "depth": 1, "heads": 2, **PROXY, "proxy_multipliers": [1, 1, 1],
               "quantizer": {"name": "vq", "codebook_size": 32, "codebook_dim": 4, "normalize": "both"}}
    content["base"] |= {"tokenizer": network, "train": {"steps": 10, "batch_size": 8}}
    content["axes"] = {"tokenizer.tokens": [8, 4]}
    content["zip"] = [{
        "label": ["stage one", "stage two"],
        "tokenizer.predicts": [True, False],
        "objective": [{"name": "reconstruction", "losses": {"codes": {"name": "code_prediction", "teacher": "random"}}},
                      {"name": "reconstruction"}],
        "train.freeze": [["to_pixels", "proxy_embedding"], ["encoder", "quantizer"]],
        "train.init_from": [None, {"run": "stage one"}],
    }]
    path = bench.write(content)
    bench("run", str(path), "--launcher", "debug", seconds=600)
    rows = bench.status(path)
    assert len(rows) == 4
    for tokens in (8, 4):
        one, two = (json.loads((bench.folder / "runs" / rows[f"{label} tokens={tokens}"]["train_id"] / "record.json").read_text())
                    for label in ("stage one", "stage two"))
        assert two["provenance"]["init_from"]["run"] == one["train_id"] and two["state"] == one["state"] == "done"
        numbers = [{v["name"]: v["number"] for v in r["values"].values()} for r in (one, two)]
        assert numbers[0]["usage"] == numbers[1]["usage"]           # the same encoder, the same codes
        assert numbers[1]["psnr"] > numbers[0]["psnr"] and one["layout"]["num_tokens"] == tokens
