"""The contract of tokenizers, for every registered one: a new file is covered without a line here.

    python tests/test_every_tokenizer.py --write     after a change of the arithmetic, with a new `revision`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, MONITORS, batches, new_state, same, small, train_spec
from torch import Tensor

from bench.build import build_model
from bench.registry import available, signature
from bench.spec import ComponentSpec, LoopSettings, OptimizerSpec, TrainSpec
from bench.train import TrainState, train
from bench.types import Batch

GOLDEN = Path(__file__).with_name("golden_losses.json")
SIZE = 32
TOKENIZERS = available("tokenizer")
#: (tokenizer, quantizer or None): each tokenizer as it is small, and each quantizer in the first tokenizer
PAIRS = [(name, None) for name in TOKENIZERS] + [("vqvae", quantizer) for quantizer in available("quantizer")]
every = pytest.mark.parametrize("name, quantizer", PAIRS, ids=lambda x: x or "")


def spec_of(name: str, quantizer: str | None, objective: str = "reconstruction", **changes: Any) -> TrainSpec:
    keywords = {} if quantizer is None else {"quantizer": plain(small("quantizer", quantizer))}
    given = {
        "dataset": small("dataset", "photos", image_size=SIZE), "model": small("tokenizer", name, **keywords),
        "objective": small("objective", objective), "steps": 2, "batch_size": 4,
        "optimizers": {player: OptimizerSpec(lr=1e-3) for player in ("tokenizer", "discriminator")},
    }
    return train_spec(**given | changes)


def plain(component: ComponentSpec) -> dict[str, Any]:
    """A component as a suite would write it."""
    return {"name": component.name} | {k: plain(v) if isinstance(v, ComponentSpec) else v
                                       for k, v in component.kwargs.items()}


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1


def two_steps(spec: TrainSpec) -> tuple[TrainState, list[dict[str, float]]]:
    state, rows = new_state(spec, MONITORS), []

    def after_step(state: TrainState) -> bool:
        rows.append(state.terms.read(state.monitors))
        return False

    train(state, picture_batches(spec), spec, after_step, watched=lambda step: True)
    return state, rows


def picture_batches(spec: TrainSpec) -> Any:
    from tiny import images

    return batches(spec, images(16, SIZE))


@every
def test_builds_and_runs_on_the_meta_device(name: str, quantizer: str | None) -> None:
    with torch.device("meta"), torch.no_grad():
        model, objective = build_model(spec_of(name, quantizer))
        out = model(torch.empty(2, 3, SIZE, SIZE))
        terms = objective.terms(Batch(torch.empty(2, 3, SIZE, SIZE)), out)
    assert out.reconstruction.is_meta and out.reconstruction.shape == (2, 3, SIZE, SIZE)
    assert all(value.dim() == 0 for value in terms.values())


@every
@pytest.mark.parametrize("mode", [True, False])
def test_shapes_and_codes_are_those_of_the_layout(name: str, quantizer: str | None, mode: bool) -> None:
    model, _ = build_model(spec_of(name, quantizer))
    out = model.train(mode)(pictures())
    layout = model.layout
    assert out.reconstruction.shape == (3, 3, SIZE, SIZE) and out.reconstruction.isfinite().all()
    assert out.latents.shape[0] == 3 and out.latents.shape[2] == model.quantizer.input_dim
    assert out.quantized.shape == (*out.latents.shape[:2], model.quantizer.output_dim)
    assert set(out.losses) == set(model.loss_weights) | set(model.quantizer.loss_weights)
    assert all(h * w <= layout.num_tokens for h, w in layout.grids)
    if layout.vocab_sizes:
        assert out.codes.shape == (3, layout.num_tokens, len(layout.vocab_sizes))
        assert out.codes.dtype == torch.int64
        assert (out.codes >= 0).all() and (out.codes < torch.tensor(layout.vocab_sizes)).all()
        assert layout.bits_per_image > 0
    else:
        assert out.codes is None and layout.bits_per_image is None


@every
def test_codes_decode_to_the_reconstruction(name: str, quantizer: str | None) -> None:
    model, _ = build_model(spec_of(name, quantizer))
    model.eval()
    images = pictures()
    with torch.no_grad():
        out = model(images)
        if out.codes is None:
            pytest.skip(f"{name} has no codes")
        assert torch.equal(model.tokenize(images), out.codes)
        torch.testing.assert_close(model.detokenize(out.codes), out.reconstruction, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.decode(out.quantized), out.reconstruction, rtol=0, atol=1e-5)


@every
def test_images_of_a_batch_do_not_see_each_other_in_eval(name: str, quantizer: str | None) -> None:
    model, _ = build_model(spec_of(name, quantizer))
    model.eval()
    images = pictures()
    with torch.no_grad():
        whole, alone = model(images), model(images[1:2])
    torch.testing.assert_close(alone.reconstruction[0], whole.reconstruction[1], rtol=0, atol=1e-5)


@every
def test_every_parameter_belongs_to_one_player_and_gets_a_gradient(name: str, quantizer: str | None) -> None:
    spec = spec_of(name, quantizer)
    model, objective = build_model(spec)
    players = objective.players(model)
    owners = [id(p) for named in players.values() for _, p in named]
    assert len(owners) == len(set(owners))
    learned = {n: p for part in (model, objective) for n, p in part.named_parameters() if p.requires_grad}
    assert {id(p) for p in learned.values()} == set(owners)
    assert any(model.last_layer is p for p in model.parameters())
    batch = picture_batches(spec)(0, 0)
    model.train()
    for update in objective.updates(model, batch, 0):
        update.loss.backward(inputs=[p for _, p in players[update.player]], retain_graph=update.retain_graph)
    missing = [n for n, p in learned.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert not [n for n, p in learned.items() if not p.grad.any()]


@every
@pytest.mark.parametrize("objective", available("objective"))
def test_two_steps_of_each_objective_change_the_weights(
    name: str, quantizer: str | None, objective: str,
) -> None:
    spec = spec_of(name, quantizer, objective)
    before, _ = build_model(spec)
    state, rows = two_steps(spec)
    still = [n for n, p in before.named_parameters()
             if p.requires_grad and torch.equal(p, dict(state.model.named_parameters())[n])]
    assert not still
    assert len(rows) == 2 and rows[0].keys() == rows[1].keys()


@every
def test_training_is_a_function_of_the_seed(name: str, quantizer: str | None) -> None:
    first, rows = two_steps(spec_of(name, quantizer))
    torch.manual_seed(99)
    second, again = two_steps(spec_of(name, quantizer))
    assert not same(first.state_dict(), second.state_dict()) and rows == again
    other, _ = two_steps(spec_of(name, quantizer, seed=4))
    assert same(first.state_dict()["model"], other.state_dict()["model"])


@every
def test_the_state_dict_brings_the_model_back(name: str, quantizer: str | None) -> None:
    spec = spec_of(name, quantizer)
    state, _ = two_steps(spec)
    model, _ = build_model(spec.model_copy(update={"seed": 5}))
    model.load_state_dict(state.model.state_dict())
    model.to(memory_format=torch.channels_last)         # as the other: the layout moves the last digits
    assert not same(model.state_dict(), state.model.state_dict())
    images = pictures()
    with torch.no_grad():
        wanted, found = state.model.eval()(images), model.eval()(images)
    torch.testing.assert_close(found.reconstruction, wanted.reconstruction, rtol=0, atol=1e-6)
    assert not same(found.codes, wanted.codes)


@every
def test_the_memory_layout_changes_the_last_digits_only(name: str, quantizer: str | None) -> None:
    from bench.build import build_state

    spec = spec_of(name, quantizer)
    images = pictures()
    found = []
    for channels_last in (True, False):
        model = build_state(spec, LoopSettings(channels_last=channels_last), (), CPU).model.eval()
        with torch.no_grad():
            found.append(model.encode(images))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


# -- golden losses -----------------------------------------------------------------------------------------


def key(name: str, quantizer: str | None) -> str:
    return name if quantizer is None else f"{name} with {quantizer}"


def golden_entry(name: str, quantizer: str | None) -> dict[str, Any]:
    """The losses of two steps, and the revisions they belong to."""
    spec = spec_of(name, quantizer)
    _, rows = two_steps(spec)
    parts = {"tokenizer": spec.model, **{path: part for path, part in spec.model.nested()}}
    losses = [{n: v for n, v in row.items() if n in {"pixel", *terms(spec)}} for row in rows]
    return {"revisions": {path: f"{part.name} {part.revision}" for path, part in parts.items()},
            "harness": spec.harness, "losses": losses}


def terms(spec: TrainSpec) -> set[str]:
    model, objective = build_model(spec)
    return objective.loss_names(model)[0]


@every
def test_losses_after_two_steps_are_the_golden_ones(name: str, quantizer: str | None) -> None:
    golden = json.loads(GOLDEN.read_text())[key(name, quantizer)]
    found = golden_entry(name, quantizer)
    how = "bump `revision` where the arithmetic changed, then: python tests/test_every_tokenizer.py --write"
    assert found["revisions"] == golden["revisions"] and found["harness"] == golden["harness"], how
    for mine, wanted in zip(found["losses"], golden["losses"], strict=True):
        assert mine == pytest.approx(wanted, abs=1e-4, rel=1e-4), how


def test_the_golden_losses_are_of_what_is_registered() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert sorted(golden) == sorted(key(*pair) for pair in PAIRS)
    for entry in golden.values():
        kind, _, revision = entry["revisions"]["tokenizer"].rpartition(" ")
        assert str(signature("tokenizer", kind).revision) == revision


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    GOLDEN.write_text(json.dumps({key(*pair): golden_entry(*pair) for pair in PAIRS}, indent=1) + "\n")
