"""IBQ and Sinkhorn: streamed forms against the whole table in float64; two processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.interfaces import Incompatible
from bench.stopwatch import extra_memory
from bench.types import LatentShape
from implementations.quantizers.ibq import IBQ
from implementations.quantizers.sinkhorn import Sinkhorn, moved_centers
from implementations.search import index_backprop as backprop_module
from implementations.search import sinkhorn_plan as plan_module
from implementations.search.index_backprop import index_backprop
from implementations.search.sinkhorn_plan import sinkhorn_codes

SHAPE = LatentShape(positions=12, dim=8, grid=(3, 4))
ROOT = Path(__file__).resolve().parents[1]


def normal(*shape: int, seed: int = 0, **options) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


# -- IBQ -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), d=st.integers(1, 6), k=st.integers(1, 12), rows=st.integers(1, 40),
       entropy=st.booleans(), seed=st.integers(0, 2**16))
def test_index_backprop_has_the_gradients_of_the_whole_table(n, d, k, rows, entropy, seed) -> None:
    z0, e0, mix = (normal(r, d, seed=seed + i, dtype=torch.float64) for i, r in enumerate((n, k, n)))
    weights = 0.9, 1.1, 0.25, 0.3 * entropy

    def plain(z: Tensor, e: Tensor) -> Tensor:
        logits = z @ e.T
        p = (logits / 0.7).softmax(1)
        hard = F.one_hot(logits.argmax(1), k).double()
        q, chosen = (hard + p - p.detach()) @ e, hard @ e
        losses = (q - z).square().mean(), (chosen.detach() - z).square().mean(), (chosen - z.detach()).square().mean()
        log_p = (logits / 0.3).log_softmax(1)
        mean = log_p.exp().mean(0)
        spread = -(log_p.exp() * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
        return (q * mix).sum() + sum(w * x for w, x in zip(weights, (*losses, spread), strict=True))

    def streamed(z: Tensor, e: Tensor) -> Tensor:
        q, codes, losses, (sample, mean) = index_backprop(z, e, 0.7, 0.3 if entropy else None)
        assert torch.equal(q, e[codes])
        spread = sample + (mean * (mean + 1e-5).log()).sum()
        return (q * mix).sum() + sum(w * x for w, x in zip(weights, (*losses, spread), strict=True))

    before, backprop_module.BLOCK_BYTES = backprop_module.BLOCK_BYTES, rows * 8 * k
    found = []
    try:
        for formula in (plain, streamed):
            z, e = z0.clone().requires_grad_(), e0.clone().requires_grad_()
            value = formula(z, e)
            found.append([value.detach(), *torch.autograd.grad(value, (z, e))])
    finally:
        backprop_module.BLOCK_BYTES = before
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_every_code_gets_a_gradient_and_each_loss_moves_its_own_side() -> None:
    z, e = normal(7, 4, seed=1).requires_grad_(), normal(9, 4, seed=2).requires_grad_()
    q, codes, (joint, commitment, codebook), _ = index_backprop(z, e, 1.0)

    def moved(value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, (z, e), retain_graph=True))

    assert len(codes.unique()) < 9 and all((rows.abs().sum(1) > 0).all() for rows in moved(q.square().sum()))
    assert (moved(joint)[1].abs().sum(1) > 0).all()
    assert moved(commitment)[0].abs().max() > 0 and not moved(commitment)[1].any()
    assert not moved(codebook)[0].any()
    assert set(moved(codebook)[1].abs().sum(1).nonzero().flatten().tolist()) == set(codes.tolist())


@pytest.mark.parametrize("normalize", ["none", "codes", "both"])
def test_ibq_takes_the_largest_product(normalize: str) -> None:
    quantizer = IBQ(SHAPE, codebook_size=64, normalize=normalize).eval()
    latents = normal(2, 12, 8, seed=3)
    out = quantizer(latents)
    table, z = quantizer.codebook.detach().double(), latents.double()
    wanted = (z @ (table if normalize == "none" else F.normalize(table, dim=1)).T).argmax(-1)
    assert torch.equal(out.codes[..., 0], wanted)
    assert normalize == "none" or torch.allclose(out.quantized.norm(dim=-1), torch.ones(()))


def test_ibq_says_which_values_make_no_sense() -> None:
    for key in ("temperature", "entropy_temperature", "codebook_size"):
        with pytest.raises(ValueError, match=key):
            IBQ(SHAPE, **{key: 0})
    assert "entropy" not in IBQ(SHAPE, codebook_size=4, entropy=False).loss_weights


# -- Sinkhorn ------------------------------------------------------------------------------------------------


def whole_plan(z: Tensor, e: Tensor, epsilon: float, iterations: int, cost: str, stabilizer: float) -> Tensor:
    """[N, K] in float64, half-step by half-step as published."""
    a = (z.double()[:, None] - e.double()[None]).square().sum(-1).sqrt()
    if cost == "standardized":
        a = (a - a.mean()) / (a.std() + 1e-6)
        a = a - a.min()
    elif cost == "scaled":
        a = a / z.shape[1] ** 0.5
    q = (-epsilon * a).exp()
    q = q / (q.sum() + stabilizer)
    for _ in range(iterations):
        q = q / (q.sum(0) + stabilizer) / q.shape[1]
        q = q / (q.sum(1, keepdim=True) + stabilizer) / q.shape[0]
    return q * q.shape[0]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 150), d=st.integers(1, 9), k=st.integers(2, 60), rows=st.integers(1, 200),
       iterations=st.integers(1, 6), epsilon=st.sampled_from([1.0, 10.0, 30.0]), stabilizer=st.sampled_from([0.0, 1e-8]),
       cost=st.sampled_from(["standardized", "scaled", "plain"]), seed=st.integers(0, 2**16))
def test_sinkhorn_codes_are_those_of_the_whole_plan(n, d, k, rows, iterations, epsilon, stabilizer, cost, seed) -> None:
    z, e = normal(n, d, seed=seed), normal(k, d, seed=seed + 1) * 0.3 + 0.5
    before, plan_module.BLOCK_BYTES = plan_module.BLOCK_BYTES, rows * 4 * k
    try:
        codes = sinkhorn_codes(z, e, epsilon=epsilon, iterations=iterations, cost=cost, stabilizer=stabilizer)
    finally:
        plan_module.BLOCK_BYTES = before
    plan = whole_plan(z, e, epsilon, iterations, cost, stabilizer)
    chosen = plan.gather(1, codes[:, None])[:, 0]
    assert (chosen >= plan.max(1).values * (1 - 1e-3)).all()        # the largest, to rounding of fp32 distances


def test_training_uses_most_codes_where_the_nearest_are_few_and_eval_takes_the_nearest() -> None:
    torch.manual_seed(0)
    quantizer = Sinkhorn(SHAPE, codebook_size=64, projection=False)
    latents = normal(64, 12, 8, seed=5) * 0.05 + 2                  # far from most codes
    train = quantizer.train()(latents).codes
    quantizer.eval()
    nearest = quantizer(latents).codes
    wanted = (latents.flatten(0, 1).double()[:, None] - quantizer.codebook.detach().double()).square().sum(-1).argmin(1)
    assert torch.equal(nearest.flatten(), wanted)
    assert len(nearest.unique()) < 20 < 40 < len(train.unique())
    assert torch.equal(quantizer(latents[:3]).codes, nearest[:3])   # whatever else is in the batch


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_are_groups_of_channels_with_one_table(heads: int) -> None:
    quantizer = Sinkhorn(SHAPE, codebook_size=16, heads=heads).eval()
    out = quantizer(normal(2, 12, 8, seed=6))
    assert quantizer.layout.vocab_sizes == (16,) * heads and out.codes.shape == (2, 12, heads)
    table, = {id(t): t for t in quantizer.tables()}.values()
    effective = F.linear(table, quantizer.projection.weight, quantizer.projection.bias)
    wanted = torch.cat([effective[out.codes[..., h]] for h in range(heads)], -1)
    assert torch.equal(out.quantized, wanted)


def test_losses_have_the_published_weights_and_sides() -> None:
    quantizer = Sinkhorn(SHAPE, codebook_size=16, projection=False).train()
    assert quantizer.loss_weights == {"commitment": 1.0, "codebook": 0.25}
    latents = normal(2, 12, 8, seed=7).requires_grad_()
    losses = quantizer(latents).losses
    pairs = latents, quantizer.codebook
    to_z, to_table = torch.autograd.grad(losses["commitment"], pairs, retain_graph=True)
    assert to_z.abs().max() > 0 and not to_table.any()
    to_z, to_table = torch.autograd.grad(losses["codebook"], pairs)
    assert not to_z.any() and to_table.abs().max() > 0


@pytest.mark.parametrize("init", ["samples", "kmeans"])
def test_first_codes_from_latents_are_the_effective_ones(init: str) -> None:
    quantizer = Sinkhorn(SHAPE, codebook_size=4, init=init).train()
    blobs = (torch.eye(8)[:4] * 10).repeat(6, 1) + normal(24, 8, seed=8) * 0.01
    quantizer(blobs.view(2, 12, 8))
    table = quantizer.codebooks()[0].detach()
    assert torch.equal(table, quantizer.codebook.detach())          # the projection starts as the identity
    distances = torch.cdist(table, blobs.view(6, 4, 8).mean(0))
    assert distances.min(1).values.max() < 0.1
    centers = moved_centers(blobs, blobs[:4], 3)
    torch.testing.assert_close(centers, blobs.view(6, 4, 8).mean(0), rtol=1e-5, atol=1e-5)


def test_sinkhorn_says_which_values_make_no_sense() -> None:
    for key, value in {"heads": 0, "iterations": 0, "kmeans_iterations": 0, "epsilon": 0.0, "stabilizer": -1.0}.items():
        with pytest.raises(ValueError, match=key):
            Sinkhorn(SHAPE, **{key: value})
    with pytest.raises(Incompatible, match="3 heads"):
        Sinkhorn(SHAPE, heads=3)


# -- both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [IBQ, Sinkhorn])
def test_works_alone_with_a_training_step(make: type) -> None:
    torch.manual_seed(0)
    quantizer = make(LatentShape(positions=16, dim=8, grid=(4, 4)), codebook_size=32)
    features = normal(8, 8, 4, 4, seed=9).requires_grad_()
    optimizer = torch.optim.Adam([features, *quantizer.parameters()], lr=1e-2)
    losses = []
    for step in range(30):
        quantized, loss, codes = quantizer.quantize(features)
        assert quantized.shape == features.shape and codes.shape == (8, 16, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.after_step(step)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("what", ["index_backprop", "sinkhorn_codes"])
def test_extra_memory_does_not_grow_with_the_table(what: str) -> None:
    """Of 512 x 16384, 32 MiB a table: blocks of rows have to share their memory."""
    z, e = normal(512, 4, seed=11).requires_grad_(), normal(16384, 4, seed=12).requires_grad_()

    def call() -> None:
        if what == "sinkhorn_codes":
            sinkhorn_codes(z.detach(), e.detach(), epsilon=10.0, iterations=3, cost="standardized", stabilizer=1e-8)
            return
        q, _, losses, (sample, mean) = index_backprop(z, e, 1.0, 0.01)
        torch.autograd.grad(q.sum() + sum(losses) + sample + mean.square().sum(), (z, e))

    call()
    need, how = extra_memory(call, torch.device("cpu"))
    if need is None:
        pytest.skip(how)
    assert need <= 32 * 2**20, f"{need / 2**20:.0f} MiB"


def work(rank: int, world: int, folder: Path) -> None:
    """One of `world` processes with its share of a batch: codes and averaged gradients of one step."""
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    from bench.distributed import average_gradients

    told = {}
    for name, make in {"ibq": IBQ, "sinkhorn": Sinkhorn}.items():
        torch.manual_seed(0)
        options = {"entropy_temperature": 0.5} if name == "ibq" else {"init": "kmeans"}
        quantizer = make(SHAPE, codebook_size=32, **options).train()
        quantized, loss, codes = quantizer.quantize(normal(8, 12, 8, seed=10).chunk(world)[rank])
        (loss + quantized.square().mean()).backward()
        average_gradients(list(quantizer.parameters()))
        told[name] = {"codes": codes.flatten().tolist(),
                      "gradients": [p.grad.flatten().tolist() for p in quantizer.parameters()]}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    if world > 1:
        torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    work(0, 1, tmp_path)
    one = json.loads((tmp_path / "0.json").read_text())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [process.wait(600) for process in running] == [0, 0]
    two = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name, wanted in one.items():
        assert two[0][name]["codes"] + two[1][name]["codes"] == wanted["codes"], name
        assert len(set(wanted["codes"])) > 8
        for part in two:
            for got, gradient in zip(part[name]["gradients"], wanted["gradients"], strict=True):
                torch.testing.assert_close(torch.tensor(got), torch.tensor(gradient), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    work(int(sys.argv[1]), 2, Path(sys.argv[2]))
