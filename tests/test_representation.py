"""The representation loss: the released code's numbers, its formula, who learns from it, and runs with and without a teacher."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import batches, fail, images, new_state, places, same, train_spec

from bench.build import build_model, check_runs
from bench.data import CachedBatches
from bench.errors import BadInput
from bench.interfaces import Incompatible, Tokenizer
from bench.losses.representation import TEACHERS, ClassToken, Representation
from bench.preflight import preflight
from bench.spec import TrainSpec, bind
from bench.suite import Suite
from bench.train import TrainState, train
from bench.types import Batch, TokenizerOutput
from bench.weights import FILES

PARITY = Path(__file__).parent / "parity"
GROUPED = {"name": "grouped", "groups": 2, "quantizer": {"name": "vq", "codebook_size": 16, "codebook_dim": 4}}


def spec(*, quantizer: dict[str, Any] = GROUPED, objective: dict[str, Any] | None = None, **keywords: Any) -> TrainSpec:
    """A VQ-VAE with two groups, taught by this loss."""
    losses = {"pixel": {"name": "pixel"}, "taught": {"name": "representation", "layers": 1} | keywords}
    given = {"name": "reconstruction", "losses": losses, "weights": {"taught": 0.5}} | (objective or {})
    return train_spec(quantizer, objective=bind("objective", given, ("objective",), fail), steps=4)


def taught(**keywords: Any) -> tuple[Tokenizer, Representation]:
    model, objective = build_model(spec(**keywords))
    return model, objective.losses["taught"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three published teachers tiny, each with a seeded file of its published layout, in BENCH_WEIGHTS."""
    import sys

    sys.path.insert(0, str(PARITY))
    from format_states import filled

    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    recorded = np.load(PARITY / "representation.npz")
    for name, family, patch in (("clip_vitl14", "clip", 32), ("clip_vitb16", "clip", 32), ("dinov2_vits14", "dinov2", 28)):
        monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], width=128, layers=2, patch=patch))
        path = tmp_path / "weights" / FILES[name].file
        path.parent.mkdir(parents=True)
        state = filled(json.loads(str(recorded[f"{family}.teacher"]))) | {"text_model.position_ids": torch.arange(3)[None]}
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return tmp_path / "weights"


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, name", [("clip", "clip_vitl14"), ("clip", "clip_vitb16"), ("dinov2", "dinov2_vits14")])
def test_teachers_heads_and_gradients_are_those_of_the_released_code(family: str, name: str, weights: Path) -> None:
    """Towers of showlab/FQGAN on transformers 4.41.1, with resized positions for DINOv2: parity/make_representation.py."""
    from format_states import filled

    found = {k.removeprefix(f"{family}."): torch.from_numpy(v) for k, v in np.load(PARITY / "representation.npz").items()
             if v.dtype == np.float32}
    loss = Representation(teacher=name)
    loss.head = torch.nn.Sequential(torch.nn.Linear(8, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128),
                                    ClassToken(16, 128, 3, 8))
    head = filled(json.loads(str(np.load(PARITY / "representation.npz")[f"{family}.head"])), seed=12)
    loss.head.load_state_dict({ours: head[theirs].view(-1) if ours == "3.token" else head[theirs]
                               for ours, theirs in {k: released(k) for k in loss.head.state_dict()}.items()})
    torch.testing.assert_close(loss.teacher(loss._seen(found["images"])), found["feature"], rtol=1e-4, atol=1e-5)
    latents = found["latents"].flatten(2).mT.requires_grad_()
    value = loss(Batch(found["images"]), TokenizerOutput(found["images"], latents, latents, None))
    value.backward()
    torch.testing.assert_close(value, found["loss"], rtol=1e-6, atol=1e-6)
    for ours, theirs in ((latents.grad.mT.reshape(4, 8, 4, 4), "grad_latents"), (loss.head[3].token.grad[None], "grad_token"),
                         (loss.head[3].blocks[0].qkv.weight.grad[:, :16], "grad_qkv")):
        assert found[theirs].any()
        torch.testing.assert_close(ours, found[theirs], rtol=1e-3, atol=1e-6)


def released(name: str) -> str:
    """The name of a head's tensor in the released code."""
    part, _, rest = name.partition(".")
    if part != "3":
        return f"upscale.{name}"
    for ours, theirs in {"norm_in": "ln_pre", "norm_out": "ln_post", "token": "class_embedding", "blocks": "transformer",
                         "positions": "positional_embedding", "norm1": "ln_1", "norm2": "ln_2", "qkv.": "attn.in_proj_",
                         ".out.": ".attn.out_proj.", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}.items():
        rest = rest.replace(ours, theirs)
    return rest


def test_the_loss_is_the_formula_between_its_bounds() -> None:
    """Written out in float64, over pairs."""
    model, loss = taught(teacher="random", group=1)
    x = torch.from_numpy(images(6)).float() / 127.5 - 1
    with torch.no_grad():
        out = model(x)
        found = loss(Batch(x), out)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        rows = (torch.arange(224) * 16) // 224
        seen = ((x + 1) / 2)[:, :, rows][:, :, :, rows].sub(mean[:, None, None]).div(deviation[:, None, None])
        g = loss.teacher(seen).double()
        f = loss.head(out.quantized[..., 4:]).double()
    cosine = torch.stack([torch.stack([a @ b / a.norm() / b.norm() for b in g]) for a in f])
    total = sum(math.log(sum(math.exp(c) for c in row)) - row[i] for i, row in enumerate(cosine.tolist()))
    assert found.item() == pytest.approx(total / 6, rel=1e-5)
    assert math.log(1 + 5 * math.exp(-2)) < found < math.log(1 + 5 * math.exp(2))
    assert g.std(0).mean() > 0.01                   # a teacher that tells images apart


def test_heads_have_the_published_sizes_and_belong_to_the_tokenizer_player() -> None:
    sizes = {}
    for name, positions in (("clip_vitl14", 256), ("clip_vitb16", 256), ("dinov2_vits14", 256)):
        with torch.device("meta"):
            tokens = ClassToken(positions, TEACHERS[name].width, 3, 8)
            assert sum(p.numel() for p in TEACHERS[name].build().parameters()) == {
                "clip_vitl14": 303_178_752, "clip_vitb16": 85_798_656, "dinov2_vits14": 21_619_584}[name]
        width = TEACHERS[name].width
        sizes[name] = sum(p.numel() for p in tokens.parameters()) + 9 * width + (width + 1) * width
    assert sizes == {"clip_vitl14": 39_115_776, "clip_vitb16": 22_062_336, "dinov2_vits14": 5_575_296}
    state = new_state(spec(teacher="random", group=1), monitors=())
    named = [name for name, _ in state.objective.players(state.model)["tokenizer"]]
    assert "losses.taught.head.0.weight" in named and not [n for n in named if "teacher" in n]
    assert not [n for n in state.model.state_dict() if "head" in n]


# -- who learns --------------------------------------------------------------------------------------------------------


def test_the_gradient_reaches_one_group_and_the_head_and_never_the_teacher() -> None:
    model, loss = taught(teacher="random", group=1)
    x = torch.from_numpy(images(4)).float() / 127.5 - 1
    out = model(x)
    out.quantized.retain_grad()
    loss(Batch(x), out).backward()
    assert out.quantized.grad[..., 4:].any() and not out.quantized.grad[..., :4].any()
    assert all(p.grad is not None and p.grad.any() for p in loss.head.parameters())
    assert next(p for n, p in model.named_parameters() if "encoder" in n).grad.any()
    assert not any(p.requires_grad for p in loss.teacher.network.parameters())
    assert not [n for n in loss.state_dict() if not n.startswith("head.")]
    loss.train()
    assert not any(m.training for m in loss.teacher.network.modules())


def test_without_a_group_all_channels_are_seen() -> None:
    model, loss = taught(teacher="random")
    assert loss.head[0].in_features == model.quantizer.output_dim == 8
    _, loss = taught(teacher="random", quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4})
    assert loss.head[0].in_features == 4


def test_a_random_teacher_is_always_the_same_and_draws_nothing() -> None:
    torch.manual_seed(1)
    first = Representation(teacher="random").teacher.network.state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(v, first[k]) for k, v in Representation(teacher="random").teacher.network.state_dict().items())


def test_under_bf16_the_similarities_are_float32() -> None:
    model, loss = taught(teacher="random", group=0)
    x = torch.from_numpy(images(4)).float() / 127.5 - 1
    out = model(x)
    exact = loss(Batch(x), out)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = loss(Batch(x), out)
    assert rough.dtype == torch.float32 and rough != exact
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    rough.backward()
    assert all(p.grad.isfinite().all() for p in loss.head.parameters())


# -- in a run ----------------------------------------------------------------------------------------------------------


ADVERSARIAL = {"name": "adversarial", "discriminator": {"name": "patch", "width": 4, "layers": 2}, "start": 2}
ADAM = {"tokenizer": {"lr": 1e-3}, "discriminator": {"lr": 1e-3}}


def steps(state: TrainState, given: TrainSpec, data: CachedBatches, until: int) -> TrainState:
    train(state, data, given, lambda s: s.step >= until)
    return state


@pytest.mark.parametrize("teacher", ["clip_vitb16", "dinov2_vits14", "random"])
def test_two_steps_with_a_teacher_and_two_more_resumed_are_four(teacher: str, weights: Path) -> None:
    given = spec(teacher=teacher, group=1, objective=ADVERSARIAL)
    given = TrainSpec(**dict(given) | {"optimizers": ADAM})
    data = batches(given)
    whole = new_state(given)
    before = {k: v.clone() for k, v in whole.objective.losses["taught"].teacher.network.state_dict().items()}
    head = whole.objective.losses["taught"].head[0].weight.clone()
    steps(whole, given, data, 4)
    half = steps(new_state(given), given, data, 2)
    resumed = new_state(given)
    resumed.load_state_dict(half.state_dict(), torch.device("cpu"))
    steps(resumed, given, data, 4)
    assert not same(whole.state_dict(), resumed.state_dict())
    assert not torch.equal(whole.objective.losses["taught"].head[0].weight, head)
    assert not same(before, dict(whole.objective.losses["taught"].teacher.network.state_dict()))
    assert not [n for n in whole.state_dict()["objective"] if "teacher" in n]


def test_without_a_teacher_the_same_tokenizer_trains_as_without_the_loss() -> None:
    given = spec(teacher=None, group=1)
    alone = train_spec(GROUPED, steps=4)
    data = batches(given)
    found, wanted = (steps(new_state(s), s, data, 4).model.state_dict() for s in (given, alone))
    assert not same(dict(found), dict(wanted))
    assert given.objective.kwargs["losses"]["taught"].kwargs["teacher"] is None


def test_a_teacher_that_cannot_be_had_is_one_sentence(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights / FILES["dinov2_vits14"].file
    save_file({"layernorm.weight": torch.zeros(128)}, path)
    with pytest.raises(BadInput, match="dinov2_vits14 is another network's"):
        Representation(teacher="dinov2_vits14")
    monkeypatch.setitem(TEACHERS, "clip_vitb16", replace(TEACHERS["clip_vitb16"], layers=1, patch=16))
    with pytest.raises(BadInput, match="clip_vitb16 is another network's"):
        Representation(teacher="clip_vitb16")
    path.write_bytes(b"no tensors")
    with pytest.raises(BadInput, match="no readable weight file"):
        Representation(teacher="dinov2_vits14")
    path.unlink()
    with pytest.raises(BadInput, match=r"dinov2-small/model\.safetensors .*BENCH_WEIGHTS"):
        Representation(teacher="dinov2_vits14")


def test_groups_and_heads_that_cannot_be_are_said() -> None:
    with pytest.raises(ValueError, match="group must be one of the quantizer's 2"):
        taught(teacher="random", group=2)
    with pytest.raises(Incompatible, match="made of groups"):
        taught(teacher="random", group=0, quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4})
    with pytest.raises(ValueError, match="heads"):
        Representation(teacher="random", heads=7)


SUITE = """\
name: taught
question: What does a teacher teach?
base:
  dataset: {name: photos, image_size: 16, train_images: 64, test_images: 32}
  tokenizer:
    name: vqvae
    hidden: 8
    quantizer: {name: grouped, groups: 2, quantizer: {name: vq, codebook_size: 16, codebook_dim: 4}}
  objective:
    name: reconstruction
    losses: {pixel: {name: pixel}, taught: {name: representation, teacher: clip_vitl14, group: 1}}
    weights: {taught: 0.5}
  optimizers: {tokenizer: {name: adam, lr: 4e-4}}
  train: {steps: 10, batch_size: 8}
  measure: {values: [psnr]}
"""
OFF = "objective.losses.taught.teacher=null"


def test_the_check_needs_no_weights_the_launch_does_and_the_switch_is_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "taught.yaml"
    path.write_text(SUITE)
    here = places(tmp_path)
    (run,) = Suite.load(path).expand(here)
    assert run.train.networks == {"clip_vitl14": "a2bf730a"}
    (checked,) = check_runs([run]).values()
    assert checked.problem is None and checked.skip is None and checked.parameters
    with pytest.raises(BadInput, match=r"clip-vit-large-patch14/model\.safetensors"):
        preflight([run], here)
    (off,) = Suite.load(path, [OFF]).expand(here)
    assert off.train.networks == {} and off.fields["objective.losses.taught.teacher"] is None
    assert off.train_id != run.train_id
    preflight([off], here)
    (checked,) = check_runs([off]).values()
    assert checked.problem is None and checked.skip is None
