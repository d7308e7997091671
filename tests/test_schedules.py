"""Schedules and clipping: rates against torch's own schedulers and the published formulas; identities stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_suite import BASE, here, refusal, runs  # noqa: F401
from tiny import batches, new_state, same, train_spec
from torch import nn

from bench.optim import PlayerOptimizer
from bench.places import Places
from bench.spec import Decay, Drops, OneCycle, OptimizerSpec, flatten, identity
from bench.train import train


def player(spec: OptimizerSpec, steps: int) -> PlayerOptimizer:
    return PlayerOptimizer([("weight", nn.Parameter(torch.ones(3)))], spec, steps, fused=False)


def rates(steps: int, **fields: Any) -> list[float]:
    moved = player(OptimizerSpec(**{"lr": 0.4} | fields), steps)
    return [moved.rate(step) for step in range(steps)]


@pytest.mark.parametrize("rise, steps", [(0.3, 50), (0.01, 400), (0.5, 7)])
def test_one_cycle_is_torchs_with_its_momentum(rise: float, steps: int) -> None:
    """torch.optim.lr_scheduler.OneCycleLR, which OptVQ uses with a rise of 0.01, is the independent formula."""
    ours = player(OptimizerSpec(lr=0.4, schedule=OneCycle(name="one_cycle", rise=rise)), steps)
    theirs = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.4, total_steps=steps, pct_start=rise)
    for step in range(steps):
        group = theirs.param_groups[0]
        assert ours.rate(step) == pytest.approx(group["lr"], rel=1e-9)
        assert ours.beta1(step) == pytest.approx(group["betas"][0], rel=1e-9)
        theirs.step()
        if step < steps - 1:
            schedule.step()
    assert ours.rate(steps - 1) == pytest.approx(0.4 / 25 / 1e4)


def test_the_cycled_momentum_reaches_the_optimizer() -> None:
    spec = OptimizerSpec(lr=0.4, betas=(0.5, 0.9), schedule=OneCycle(name="one_cycle", rise=0.5))
    ours = player(spec, 9)
    seen = []
    for step in range(9):
        ours.params[0].grad = torch.ones(3)
        ours.step(step)
        seen.append(ours.optimizer.param_groups[0]["betas"])
    assert seen[0] == (0.95, 0.9) and min(seen)[0] < 0.87 and seen[-1][0] == pytest.approx(0.95)
    kept = player(spec.model_copy(update={"schedule": OneCycle(name="one_cycle", beta1=None)}), 9)
    assert {kept.beta1(step) for step in range(9)} == {0.5}


def test_warm_up_then_cosine_linear_and_quarter_cosine() -> None:
    for schedule, left in (("cosine", lambda a: (1 + math.cos(math.pi * a)) / 2), ("linear", lambda a: 1 - a),
                           ("quarter_cosine", lambda a: math.cos(math.pi / 2 * a))):
        found = rates(30, warmup_steps=10, schedule=schedule, final_lr=0.1)
        assert found[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
        assert found[10:] == pytest.approx([0.1 + 0.3 * left(i / 20) for i in range(20)])


def test_a_decay_of_given_length_stays_at_its_end() -> None:
    """DALL-E's dVAE: a cosine over 1.2 of 3 million steps, then constant."""
    found = rates(30, warmup_steps=2, schedule=Decay(name="cosine", steps=10), final_lr=0.1)
    assert found[2:13] == pytest.approx([0.1 + 0.15 * (1 + math.cos(math.pi * i / 10)) for i in range(11)])
    assert found[12:] == pytest.approx([0.1] * 18)


def test_drops_are_torchs_multi_step() -> None:
    ours = player(OptimizerSpec(lr=0.4, schedule=Drops(name="drops", at=(5, 9), factor=0.5)), 12)
    theirs = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(theirs, milestones=[5, 9], gamma=0.5)
    for step in range(12):
        assert ours.rate(step) == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()
    warm = rates(12, warmup_steps=3, schedule=Drops(name="drops", at=(5,), factor=0.5))
    assert warm == pytest.approx([0.4 / 3, 0.8 / 3] + [0.4] * 3 + [0.2] * 7)


def test_a_schedule_may_count_from_a_later_step() -> None:
    """MaskBit's and TiTok's discriminators, whose schedules are told of a step only when they take one."""
    for fields in ({"warmup_steps": 4, "schedule": "cosine", "final_lr": 0.1}, {"schedule": OneCycle(name="one_cycle")},
                   {"schedule": Drops(name="drops", at=(5,), factor=0.5)}):
        own = player(OptimizerSpec(lr=0.4, **fields), 20)
        late = player(OptimizerSpec(lr=0.4, schedule_start=10, **fields), 30)
        assert [late.rate(step) for step in range(10, 30)] == [own.rate(step) for step in range(20)]
        assert [late.beta1(step) for step in range(10, 30)] == [own.beta1(step) for step in range(20)]
        assert {late.rate(step) for step in range(10)} == {own.rate(0)}
    assert "schedule_start" not in OptimizerSpec(lr=0.4).model_dump_json()


def test_each_gradient_is_bounded_before_their_norm_is() -> None:
    spec = OptimizerSpec(lr=0.1, betas=(0.0, 0.0), clip_value=1.0, clip_norm=1.0)
    ours = player(spec, 1)
    ours.params[0].grad = torch.tensor([3.0, -4.0, 0.5])
    seen = []
    ours.optimizer.register_step_pre_hook(lambda *_: seen.append(ours.params[0].grad.clone()))
    ours.step(0)
    torch.testing.assert_close(seen[0], torch.tensor([1.0, -1.0, 0.5]) / 1.5, rtol=1e-5, atol=1e-6)


def test_fields_that_came_later_are_in_no_identity_file_or_table_until_they_are_used() -> None:
    before, after = OptimizerSpec(lr=1e-3), OptimizerSpec(lr=1e-3, clip_value=1.0)
    assert "clip_value" not in before.model_dump_json() and "clip_value" not in flatten(before)
    assert '"clip_value":1.0' in after.model_dump_json() and flatten(after)["clip_value"] == 1.0
    assert identity(before) != identity(after)
    run = train_spec()
    assert "networks" not in run.model_dump()
    assert run.model_copy(update={"networks": {"lpips_vgg": "ab"}}).train_id != run.train_id
    assert type(run).model_validate_json(run.model_dump_json()) == run


def test_a_suite_writes_a_schedule_as_a_name_or_a_mapping(here: Places) -> None:  # noqa: F811
    given = "optimizers.tokenizer.schedule"
    (run,) = runs(BASE, here, [f"{given}={{name: drops, at: [3, 5]}}"])
    assert run.train.optimizers["tokenizer"].schedule == Drops(name="drops", at=(3, 5))
    assert run.fields["optimizers.tokenizer.schedule.at"] == [3, 5]
    for written, said in (("cosin", "cosine"), ("{name: drops}", "this key is missing"),
                          ("{name: one_cycle, rise: 2}", "less than 1"), ("{name: steps}", "drops")):
        (line,) = refusal(BASE, here, [f"{given}={written}"])
        assert given in line and said in line
    (line,) = refusal(BASE, here, [f"{given}={{name: one_cycle}}", "optimizers.tokenizer.warmup_steps=3"])
    assert line.endswith("one_cycle has a rise and an end of its own: leave warmup_steps and final_lr out")


def test_every_schedule_resumes_bit_equal() -> None:
    for schedule in (OneCycle(name="one_cycle"), Drops(name="drops", at=(4,)), Decay(name="linear", steps=8)):
        spec = train_spec(optimizers={"tokenizer": OptimizerSpec(lr=1e-3, schedule=schedule)}, steps=8)
        whole = new_state(spec)
        train(whole, batches(spec), spec, lambda state: False)
        half = new_state(spec)
        train(half, batches(spec), spec, lambda state: state.step == 3)
        again = new_state(spec)
        again.load_state_dict(half.state_dict(), torch.device("cpu"))
        train(again, batches(spec), spec, lambda state: False)
        assert not same(again.state_dict(), whole.state_dict())
