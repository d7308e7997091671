"""The adversarial objective by its properties: who gets which gradient and when, the adaptive weight, penalties, resume.

This file is also the program of one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, ROOT, batches, bind, fail, images, new_state, same, train_spec
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.build import build_model, check_runs
from bench.objectives.adversarial import Adversarial
from bench.spec import ComponentSpec, OptimizerSpec, TrainSpec
from bench.train import TrainState, train
from bench.types import Batch

BLUR = {"name": "blur", "width": 32, "stages": 1}           # no statistics over a batch
PATCH = {"name": "patch", "width": 4, "layers": 2}


def objective(**keywords: Any) -> ComponentSpec:
    return bind("objective", {"name": "adversarial", "discriminator": PATCH} | keywords, ("objective",), fail)


def spec_of(changes: dict[str, Any] | None = None, **keywords: Any) -> TrainSpec:
    """A VQ-VAE of width 8 on 16-pixel images against a discriminator."""
    given = {"objective": objective(**keywords), "steps": 8,
             "optimizers": {"tokenizer": OptimizerSpec(lr=1e-3), "discriminator": OptimizerSpec(lr=2e-3, betas=(0.5, 0.9))}}
    return train_spec(**given | (changes or {}))


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    return torch.from_numpy(images(count, 16, seed)).float() / 127.5 - 1


def updates(state: TrainState, step: int, x: Tensor | None = None) -> dict[str, Any]:
    return {u.player: u for u in state.objective.updates(state.model, Batch(pictures() if x is None else x), step)}


def gradients(state: TrainState, loss: Tensor, player: str) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, state.optimizers[player].params, retain_graph=True, allow_unused=True))


# -- whose gradient, and when --------------------------------------------------------------------------------------


def test_each_player_gets_its_own_gradient_only() -> None:
    spec = spec_of(discriminator_loss="vanilla")        # the hinge gives the last bias none while all logits are within it
    seen: list[tuple[str, set[str]]] = []
    state = new_state(spec)
    for update in state.objective.updates(state.model, batches(spec)(0, 0), 0):
        update.loss.backward(inputs=state.optimizers[update.player].params, retain_graph=update.retain_graph)
        seen.append((update.player, {name for name, o in state.optimizers.items() if any(p.grad is not None for p in o.params)}))
    assert seen == [("tokenizer", {"tokenizer"}), ("discriminator", {"tokenizer", "discriminator"})]
    owners = [id(p) for named in state.objective.players(state.model).values() for _, p in named]
    assert len(owners) == len(set(owners)) == len([*state.model.parameters(), *state.objective.parameters()])
    assert all(p.grad is not None and p.grad.any() for p in state.objective.discriminator.parameters())


def test_the_discriminator_sees_the_reconstruction_without_its_graph() -> None:
    state = new_state(spec_of())
    judging = updates(state, 0)["discriminator"].loss
    assert gradients(state, judging, "tokenizer") == [None] * len(state.optimizers["tokenizer"].params)


def test_both_look_before_anybody_moves() -> None:
    """The discriminator judges the reconstruction of the step's first forward: its loss is that of the weights before."""
    spec = spec_of({"steps": 1}, adaptive=False)
    before, state = new_state(spec), new_state(spec)
    wanted = updates(before, 0, batches(spec)(0, 0).images)["discriminator"].loss
    rows = run(state, spec)
    assert rows[0]["discriminator"] == pytest.approx(wanted.item(), rel=1e-5)


def run(state: TrainState, spec: TrainSpec, stop: int | None = None) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []

    def after_step(state: TrainState) -> bool:
        rows.append(state.terms.read([]))
        return state.step == stop

    train(state, batches(spec), spec, after_step)
    return rows


def learned(state: TrainState, player: str) -> list[Tensor]:
    return [p.detach().clone() for p in state.optimizers[player].params]


@pytest.mark.parametrize("first", [None, 0, 2])
def test_starts_are_counted_in_updates_of_the_generator(first: int | None) -> None:
    spec = spec_of(start=4, discriminator_start=first)
    state = new_state(spec)
    moved: list[tuple[bool, bool]] = []
    was = {player: learned(state, player) for player in state.optimizers}
    rows: list[dict[str, float]] = []

    def after_step(state: TrainState) -> bool:
        now = {player: learned(state, player) for player in state.optimizers}
        moved.append(tuple(bool(same(was[p], now[p])) for p in ("tokenizer", "discriminator")))
        was.update(now)
        rows.append(state.terms.read([]))
        return False

    train(state, batches(spec), spec, after_step)
    begins = 4 if first is None else first
    assert moved == [(True, step >= begins) for step in range(8)]
    assert ["adversarial" in row for row in rows] == [step >= 4 for step in range(8)]
    assert ["adaptive_weight" in row for row in rows] == [step >= 4 for step in range(8)]
    assert ["discriminator" in row for row in rows] == [step >= begins for step in range(8)]


def test_until_the_start_the_tokenizer_is_trained_as_without_a_discriminator() -> None:
    spec = spec_of({"steps": 4}, start=4, discriminator_start=0)
    plain = train_spec(steps=4)
    ours, theirs = new_state(spec), new_state(plain)
    theirs.model.load_state_dict(ours.model.state_dict())
    run(ours, spec)
    run(theirs, plain)
    assert not same(ours.model.state_dict(), theirs.model.state_dict())
    longer = spec.model_copy(update={"steps": 5})
    run(ours, longer)
    run(theirs, plain.model_copy(update={"steps": 5}))
    assert same(ours.model.state_dict(), theirs.model.state_dict())


# -- losses against their formulas ---------------------------------------------------------------------------------


R, Y = torch.tensor([[[1.5, -0.5]], [[0.2, 3.0]]]), torch.tensor([[[-2.0, 0.5]], [[0.1, -0.4]]])


@pytest.mark.parametrize("name, wanted", [
    ("hinge", lambda y: -y.mean()), ("non_saturating", lambda y: -torch.sigmoid(y).log().mean()),
    ("vanilla", lambda y: (1 - torch.sigmoid(y)).log().mean()),
])
def test_generator_losses(name: str, wanted: Callable[[Tensor], Tensor]) -> None:
    made = Adversarial(discriminator=partial(nn.Identity), generator_loss=name)
    torch.testing.assert_close(made.fooling(Y), wanted(Y))
    averaged = Adversarial(discriminator=partial(nn.Identity), generator_loss=name, generator_over="images")
    torch.testing.assert_close(averaged.fooling(Y), wanted(Y.mean((1, 2))))


@pytest.mark.parametrize("name, wanted", [
    ("hinge", lambda x, y: (torch.clamp(1 - x, min=0).mean() + torch.clamp(1 + y, min=0).mean()) / 2),
    ("vanilla", lambda x, y: -(torch.sigmoid(x).log().mean() + (1 - torch.sigmoid(y)).log().mean()) / 2),
    ("non_saturating", lambda x, y: -(torch.sigmoid(x).log().mean() + (1 - torch.sigmoid(y)).log().mean())),
])
def test_discriminator_losses(name: str, wanted: Callable[[Tensor, Tensor], Tensor]) -> None:
    made = Adversarial(discriminator=partial(nn.Identity), discriminator_loss=name)
    torch.testing.assert_close(made.judged(R, Y), wanted(R, Y))


def test_both_players_losses_have_their_weights() -> None:
    state = new_state(spec_of(adaptive=False, weights={"pixel": 2.0, "adversarial": 0.3, "discriminator": 0.7}))
    found = updates(state, 0)
    terms = found["tokenizer"].terms
    wanted = 2 * terms["pixel"] + 0.25 * terms["commitment"] + terms["codebook"] + 0.3 * terms["adversarial"]
    torch.testing.assert_close(found["tokenizer"].loss, wanted)
    judged = found["discriminator"]
    torch.testing.assert_close(judged.loss, 0.7 * judged.terms["discriminator"])
    assert "adaptive_weight" not in terms
    again = state.objective.discriminator(pictures()).mean()
    torch.testing.assert_close(judged.terms["logits_real"], again)


@pytest.mark.parametrize("most", [1e4, 1e-3])
def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer(most: float) -> None:
    """Against two complete backward passes, each through a forward of its own."""
    spec = spec_of(most=most, weights={"pixel": 2.0, "adversarial": 0.8})
    state = new_state(spec)
    update = updates(state, 0)["tokenizer"]
    norms = []
    for name in ("pixel", "adversarial"):
        other = new_state(spec)
        out = other.model(pictures())
        loss = 2 * F.mse_loss(out.reconstruction, pictures()) if name == "pixel" else -other.objective.discriminator(
            out.reconstruction).mean()
        loss.backward()
        norms.append(other.model.last_layer.grad.norm())
    ratio = norms[0] / (norms[1] + 1e-4)
    terms = update.terms
    torch.testing.assert_close(terms["adaptive_weight_unclamped"], ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["adaptive_weight"], ratio.clamp(max=most), rtol=1e-4, atol=0)
    assert (terms["adaptive_weight"] < terms["adaptive_weight_unclamped"]) == (most < 1)
    wanted = 2 * terms["pixel"] + 0.25 * terms["commitment"] + terms["codebook"] + 0.8 * ratio.clamp(max=most) * terms["adversarial"]
    torch.testing.assert_close(update.loss, wanted)
    assert not terms["adaptive_weight"].requires_grad


def test_the_adaptive_weight_makes_both_gradients_at_the_last_layer_equally_long() -> None:
    state = new_state(spec_of())
    whole = updates(state, 0)["tokenizer"]
    plain = new_state(spec_of(start=1))
    (alone,) = torch.autograd.grad(updates(plain, 0)["tokenizer"].loss, plain.model.last_layer)
    (both,) = torch.autograd.grad(whole.loss, state.model.last_layer)
    assert (both - alone).norm().item() == pytest.approx(alone.norm().item(), rel=0.05)


def test_lecam_is_its_formula_with_averages_of_the_steps_before() -> None:
    spec = spec_of({"steps": 3, "accumulation": 2}, lecam=0.5, lecam_decay=0.9, discriminator=BLUR)
    state = new_state(spec)
    r = f = 0.0
    for _ in range(3):
        terms: list[dict[str, float]] = []
        shadow = new_state(spec)
        shadow.load_state_dict(state.state_dict(), CPU)
        torch.manual_seed(0)
        for part in range(2):
            shadow.model.before_step(state.step)
            terms.append({k: v.item() for k, v in updates(shadow, state.step, batches(spec)(state.step, part).images)["discriminator"].terms.items()})
            R, G = terms[-1]["logits_real"], terms[-1]["logits_fake"]
            assert terms[-1]["lecam"] == pytest.approx(max(R - f, 0) ** 2 + max(r - G, 0) ** 2, rel=1e-5, abs=1e-9)
        run(state, spec, stop=state.step + 1)
        r = 0.9 * r + 0.1 * sum(t["logits_real"] for t in terms) / 2
        f = 0.9 * f + 0.1 * sum(t["logits_fake"] for t in terms) / 2
        assert state.objective.usual.tolist() == pytest.approx([r, f], rel=1e-4)


def test_lecam_may_be_taken_of_each_logit() -> None:
    for over in ("logits", "batch"):
        made = Adversarial(discriminator=partial(nn.Identity), lecam=1.0, lecam_over=over)
        made.usual.copy_(torch.tensor([0.3, -0.2]))
        real, fake = (R, Y) if over == "logits" else (R.mean(), Y.mean())
        wanted = (real + 0.2).clamp(min=0).square().mean() + (0.3 - fake).clamp(min=0).square().mean()
        torch.testing.assert_close(made.regularised(R, Y), wanted)
        with torch.no_grad():
            made.after_step(0)
        torch.testing.assert_close(made.usual, torch.tensor([0.3, -0.2]).lerp(torch.stack([R.mean(), Y.mean()]), 0.001))


class Linear(nn.Module):
    """D(x) = <w, x> in three equal logits: the gradient of an image's sum is w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(4)))

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.w).sum((1, 2, 3))[:, None].expand(-1, 3) / 3


def test_r1_is_the_squared_image_gradient_every_few_steps() -> None:
    made = Adversarial(discriminator=lambda size: Linear(), r1=10.0, r1_every=4)
    made.begin(16)
    w = made.discriminator.w
    loss, terms = made.judging(pictures(), pictures(seed=1), 8)
    torch.testing.assert_close(terms["r1"], w.square().sum())
    torch.testing.assert_close(loss, terms["discriminator"] + 10 / 2 * 4 * terms["r1"])
    (gradient,) = torch.autograd.grad(terms["r1"], w)
    torch.testing.assert_close(gradient, 2 * w)
    loss, terms = made.judging(pictures(), pictures(seed=1), 9)
    assert "r1" not in terms and torch.equal(loss, terms["discriminator"])


# -- the loop ------------------------------------------------------------------------------------------------------


FULL = {"start": 2, "discriminator_start": 1, "lecam": 0.01, "r1": 1.0, "r1_every": 2}


@pytest.mark.parametrize("keywords", [FULL, {"start": 3, "discriminator": {"name": "dino", "trunk": "random", "width": 8, "depth": 3}}],
                         ids=["all terms", "dino"])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_stopped_amid_adversarial_training_resumes_bit_equal(keywords: dict[str, Any], stop: int) -> None:
    spec = spec_of({"average": 0.9, "accumulation": 2}, **keywords)
    whole = new_state(spec)
    run(whole, spec)
    half = new_state(spec)
    run(half, spec, stop=stop)
    saved = half.state_dict()
    torch.manual_seed(123)
    again = new_state(spec)
    again.load_state_dict(saved, CPU)
    run(again, spec)
    assert not same(again.state_dict(), whole.state_dict())
    assert same(whole.state_dict()["objective"], saved["objective"])


def gradient_of_a_step(spec: TrainSpec) -> dict[str, list[Tensor]]:
    state = new_state(spec)
    kept: dict[str, list[Tensor]] = {}
    for player, optimizer in state.optimizers.items():
        optimizer.step = lambda step, player=player, o=optimizer: kept.update({player: [p.grad.clone() for p in o.params]})
    train(state, batches(spec), spec, lambda state: True)
    return kept


def test_accumulation_is_a_larger_batch_where_nothing_is_taken_over_the_batch() -> None:
    keywords = {"adaptive": False, "discriminator": BLUR, "lecam": 0.5, "lecam_over": "logits", "r1": 1.0,
                "discriminator_loss": "vanilla", "weights": {"adversarial": 10.0}}
    once, four = (gradient_of_a_step(spec_of({"accumulation": n}, **keywords)) for n in (1, 4))
    for player in ("tokenizer", "discriminator"):
        for a, b in zip(once[player], four[player], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6)


def test_batch_norm_and_the_adaptive_weight_depend_on_accumulation() -> None:
    """As the docstring says: the property above is not vacuous."""
    for player, keywords in (("discriminator", {"adaptive": False}), ("tokenizer", {"discriminator": BLUR})):
        once, four = (gradient_of_a_step(spec_of({"accumulation": n}, **keywords))[player] for n in (1, 4))
        assert max(((a - b).norm() / a.norm()).item() for a, b in zip(once, four, strict=True) if a.any()) > 1e-3


def test_bf16_leaves_the_inner_gradients_and_losses_in_fp32() -> None:
    state = new_state(spec_of(r1=1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = updates(state, 0)
    with torch.no_grad():
        wanted = updates(new_state(spec_of(start=10)), 0)["tokenizer"].terms["pixel"]
    assert all(t.dtype == torch.float32 for u in found.values() for t in u.terms.values())
    assert found["tokenizer"].terms["pixel"].item() == pytest.approx(wanted.item(), rel=0.05)
    for player, update in found.items():
        update.loss.backward(inputs=state.optimizers[player].params)
    assert all(p.grad.isfinite().all() for o in state.optimizers.values() for p in o.params)


@pytest.mark.parametrize("discriminator", [PATCH, BLUR, {"name": "stylegan2", "width": 8}, PATCH | {"norm": "sync_batch"}],
                         ids=lambda d: d["name"] + d.get("norm", ""))
def test_nothing_waits_for_the_device(discriminator: dict[str, Any]) -> None:
    """With fake tensors any read of a value (item, tolist, bool) raises."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        made = objective(**FULL | {"discriminator": discriminator}).partial()()
        made.begin(16)
        model = Plain()
        for step in range(4):
            for update in made.updates(model, Batch(torch.zeros(4, 3, 16, 16)), step):
                update.loss.backward(retain_graph=update.retain_graph)
            with torch.no_grad():
                made.after_step(step)
        with pytest.raises(Exception, match=r"item|data-dependent|_local_scalar_dense"):
            bool(made.usual.sum() > 0)


class Plain(nn.Module):
    """What the objective uses of a tokenizer."""

    loss_weights: dict[str, float] = {}

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.quantizer = self

    @property
    def last_layer(self) -> nn.Parameter:
        return self.layer.weight

    def forward(self, x: Tensor) -> Any:
        from bench.types import TokenizerOutput

        return TokenizerOutput(self.layer(x), x, x, None)


# -- before a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords, said", [
    ({"start": 3, "discriminator_start": 5}, "between 0 and start = 3"), ({"lecam": -1.0}, "lecam"), ({"r1_every": 0}, "r1_every"),
    ({"losses": {"adversarial": {"name": "pixel"}}}, "own loss"), ({"discriminator": {"name": "patch", "layers": 4}}, "image_size"),
    ({"discriminator": {"name": "stylegan2"}, "losses": {"pixel": {"name": "pixel"}, "discriminator": {"name": "pixel"}}}, "own loss"),
])
def test_what_cannot_be_is_said_by_the_meta_build(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_model(spec_of(**keywords))


def test_weights_of_its_own_losses_are_known_and_both_players_need_an_optimizer() -> None:
    from bench.build import _check
    from bench.run import Run

    def problem(spec: TrainSpec) -> str | None:
        return _check(Run.model_construct(train=spec)).problem

    assert problem(spec_of(weights={"adversarial": 0.8, "discriminator": 0.5, "pixel": 1.0})) is None
    assert "did you mean adversarial" in problem(spec_of(weights={"adversarail": 0.8}))
    assert "player discriminator" in problem(spec_of({"optimizers": {"tokenizer": OptimizerSpec(lr=1e-3)}}))
    assert check_runs([]) == {}


# -- several processes ---------------------------------------------------------------------------------------------


TOGETHER = {
    "adaptive": {"discriminator": PATCH | {"norm": "sync_batch"}, "lecam": 0.1, "start": 1, "discriminator_start": 0},
    "penalised": {"discriminator": PATCH | {"norm": "sync_batch"}, "r1": 1.0, "r1_every": 2, "lecam": 0.1, "lecam_over": "logits"},
}


def trained(case: str) -> dict[str, Tensor]:
    """Weights, buffers and logged terms at the end; of a process, after its share of each micro-batch."""
    spec = spec_of({"steps": 4, "accumulation": 2}, **TOGETHER[case])
    state = new_state(spec)
    rows: list[dict[str, float]] = []

    def after_step(state: TrainState) -> bool:
        rows.append(state.terms.read([]))
        return False

    train(state, batches(spec), spec, after_step)
    found = {f"{part}.{k}": v for part, m in (("model", state.model), ("objective", state.objective))
             for k, v in m.state_dict().items() if isinstance(v, Tensor)}
    return found | {f"{i} {k}": torch.tensor(v) for i, row in enumerate(rows) for k, v in row.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes ends with, by case."""
    folder = tmp_path_factory.mktemp("two")
    group = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}) for rank in range(2)]
    errors = [process.communicate(timeout=600)[1] for process in group]
    assert all((folder / f"{rank}.pt").is_file() for rank in range(2)), "".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", TOGETHER)
def test_two_processes_train_what_one_trains(case: str, two: list[dict[str, dict[str, Tensor]]]) -> None:
    alone = trained(case)
    for found in (rank[case] for rank in two):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({case: trained(case) for case in TOGETHER}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
