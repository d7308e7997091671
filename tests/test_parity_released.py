"""Quantizers whose codes are no nearest neighbours of a free table give the values of the code released with them:
golden vectors in tests/parity, made by make_*.py there. Each test prints the largest relative difference it saw."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.interfaces import Quantizer
from bench.types import LatentShape
from implementations.codebook.restarts import cvq
from implementations.codebook.restarts import rq_vae as rq_vae_restart
from implementations.codebook.updates.ema import EMA
from implementations.codebook.updates.loss import Loss
from implementations.codebook.updates.rq_vae import RQVAE
from implementations.quantizers.bsq import BSQ
from implementations.quantizers.codebook_vq import CodebookVQ
from implementations.quantizers.gumbel import Gumbel
from implementations.quantizers.ibq import IBQ
from implementations.quantizers.lfq import LFQ
from implementations.quantizers.sinkhorn import Sinkhorn

D, K = 8, 16


def golden(file: str, case: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "parity" / f"{file}.npz") as arrays:
        found = {name.split("/")[1]: torch.from_numpy(arrays[name]) for name in arrays if name.split("/")[0] == case}
    assert found, case
    return found


Near = Callable[..., None]


@pytest.fixture
def near(request: pytest.FixtureRequest):
    """near(ours, theirs, tolerance): apart by no more than that share of the largest of theirs."""
    most = 0.0

    def compared(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
        nonlocal most
        largest = theirs.abs().max()
        assert largest > 0, "nothing to compare with"
        apart = float((ours.detach().reshape(theirs.shape) - theirs).abs().max() / largest)
        assert apart <= tolerance, f"{apart:.1e} apart"
        most = max(most, apart)

    yield compared
    print(f"{request.node.name}: {most:.1e}")


def compare(quantizer: Quantizer, wanted: dict[str, Tensor], near: Near, tolerance: float = 1e-5,
            codes: bool = True, **learned: Tensor) -> None:
    """Codes, quantized vectors, the weighted loss, and the gradients of <toward, quantized> + that loss, also those to
    what is learned, by the names in the golden file."""
    z = wanted["latents"].clone().requires_grad_()
    out = quantizer(z)
    if codes:
        assert torch.equal(out.codes.flatten(), wanted["codes"].flatten().long())
        assert len(out.codes.unique()) > 4
    near(out.quantized, wanted["quantized"], tolerance)
    for name in out.losses.keys() & wanted.keys():
        near(out.losses[name], wanted[name], tolerance)
    loss = sum(quantizer.loss_weights[name] * value for name, value in out.losses.items())
    near(loss, wanted["loss"], tolerance)
    if not quantizer.training:
        return
    found = torch.autograd.grad((out.quantized * wanted["toward"]).sum() + loss, [z, *learned.values()])
    for name, gradient in zip(["latents", *learned], found, strict=True):
        near(gradient, wanted[f"{name}_grad"], tolerance)


def holding(module: torch.nn.Module, **values: Tensor) -> None:
    """Set parameters by name."""
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value)


@pytest.mark.parametrize(("case", "levels"), [("lfq", 1), ("lfq_small", 1), ("lfq_levels", 2)])
def test_open_magvit2_lfq(case: str, levels: int, near: Near) -> None:
    compare(LFQ(LatentShape(16, D), bits=D, levels=levels).train(), golden("seed_voken", case), near)


@pytest.mark.parametrize("case", ["ibq", "ibq_entropy", "ibq_small"])
def test_seed_voken_ibq(case: str, near: Near) -> None:
    wanted = golden("seed_voken", case)
    quantizer = IBQ(LatentShape(16, D), codebook_size=K, entropy=case != "ibq").train()
    holding(quantizer, codebook=wanted["table"])
    compare(quantizer, wanted, near, table=quantizer.codebook)


OPTVQ = [("plain", 1, False, "standardized"), ("heads", 4, True, "standardized"), ("scaled", 1, False, "scaled"),
         ("cost", 2, True, "plain")]


@pytest.mark.parametrize(("case", "heads", "projection", "cost"), OPTVQ)
def test_optvq(case: str, heads: int, projection: bool, cost: str, near: Near) -> None:
    wanted = golden("optvq", case)
    quantizer = Sinkhorn(LatentShape(16, D), codebook_size=K, heads=heads, projection=projection, cost=cost).train()
    holding(quantizer, codebook=wanted["table"])
    learned = {"table": quantizer.codebook}
    if projection:
        holding(quantizer.projection, weight=wanted["weight"], bias=wanted["bias"])
        learned |= {"weight": quantizer.projection.weight, "bias": quantizer.projection.bias}
    compare(quantizer, wanted, near, **learned)


@pytest.mark.parametrize(("case", "heads", "projection", "cost"), OPTVQ)
def test_optvq_evaluated_as_released(case: str, heads: int, projection: bool, cost: str, near: Near) -> None:
    """Its evaluation assigns the batch by the plan too: other codes than the nearest, and alone an image gets others."""
    wanted = golden("optvq", case)
    quantizers = [Sinkhorn(LatentShape(16, D), codebook_size=K, heads=heads, projection=projection, cost=cost,
                           evaluation=evaluation).eval() for evaluation in ("plan", "nearest")]
    for quantizer in quantizers:
        holding(quantizer, codebook=wanted["table"])
        if projection:
            holding(quantizer.projection, weight=wanted["weight"], bias=wanted["bias"])
    planned, nearest = (quantizer(wanted["eval_latents"]) for quantizer in quantizers)
    assert torch.equal(planned.codes.flatten(), wanted["eval_codes"].flatten().long())
    near(planned.quantized, wanted["eval_quantized"])
    assert (planned.codes != nearest.codes).any()
    assert (quantizers[0](wanted["eval_latents"][:1]).codes != planned.codes[:1]).any()
    assert torch.equal(quantizers[1](wanted["eval_latents"][:1]).codes, nearest.codes[:1])


@pytest.mark.parametrize(("case", "keywords"), [
    ("groups", {"group_size": 4}), ("bits", {"group_size": 1}),
    ("sharp", {"group_size": 4, "temperature": 1 / 30, "gamma": 0.7, "commitment": True}),
])
def test_bsq(case: str, keywords: dict, near: Near) -> None:
    """The released commitment carries its weight 0.5; ours is unweighted."""
    quantizer = BSQ(LatentShape(16, D), bits=D, **keywords).train()
    if "commitment" in keywords:
        quantizer.loss_weights["commitment"] = 0.5
    compare(quantizer, golden("bsq", case), near)


@pytest.mark.parametrize(("case", "hard"), [("hard", True), ("soft", False), ("eval", True)])
def test_taming_gumbel(case: str, hard: bool, near: Near) -> None:
    """The same noise by the same seed. Codes are the likeliest without noise; theirs are drawn in training, and in
    evaluation too, which ours leaves without noise: only codes and loss are compared there."""
    wanted = golden("taming_gumbel", case)
    quantizer = Gumbel(LatentShape(1, D), codebook_size=K, hard=hard, temperature=0.7).train(case != "eval")
    holding(quantizer, codebook=wanted["table"])
    holding(quantizer.to_logits, weight=wanted["weight"], bias=wanted["bias"])
    learned = {"table": quantizer.codebook, "weight": quantizer.to_logits.weight, "bias": quantizer.to_logits.bias}
    out = quantizer(wanted["latents"])
    assert torch.equal(out.codes.flatten(), wanted["likeliest"].flatten().long())
    if case == "eval":
        near(quantizer.loss_weights["kl"] * out.losses["kl"], wanted["loss"])
        assert torch.equal(out.quantized[:, 0], wanted["table"][out.codes[:, 0, 0]])
        return
    torch.manual_seed(1000)
    compare(quantizer, wanted, near, codes=False, **learned)


@pytest.mark.parametrize(("case", "update"), [
    ("anchor", partial(EMA, zero_count="zero_debiased")), ("pool", partial(EMA, zero_count="zero_debiased")),
    ("gradient_anchor", Loss),
])
def test_hoanhle_random_anchors(case: str, update, near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps, from the second on with anchors. Their forward draws with torch's generator: the recorded seeds."""
    wanted = golden("hoanhle_ema", case)
    monkeypatch.setattr(cvq, "derived_seed", lambda *parts: int(wanted["seeds"][parts[1]]))
    quantizer = CodebookVQ(LatentShape(wanted["latents"].shape[2], D), codebook_size=K, update=update,
                           restart=partial(cvq.CVQ, anchor="random", begin=1)).train()
    with torch.no_grad():
        quantizer.table.codebook.copy_(wanted["table"])
    quantizer.restart.pool.copy_(wanted["pool"])
    for step, z in enumerate(wanted["latents"]):
        out = quantizer(z)
        assert torch.equal(out.codes.flatten(), wanted["codes"][step].flatten().long())
        near(out.losses["commitment"], wanted["commitment"][step])
        quantizer.after_step(step)
        near(quantizer.codebooks()[0], wanted["tables"][step])
    near(quantizer.restart.use, wanted["use"])


@pytest.mark.parametrize("case", ["more", "fewer"])
def test_rq_vae_restarts(case: str, near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps with more and with fewer latents than codes, from the same seeds: the codes of each step, the table and
    both averages after it. Its draws are torch's generator's: first the noise, then the order."""
    with np.load(Path(__file__).parent / "parity" / "rq_vae.npz") as arrays:
        wanted = {name.split(".")[1]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith(f"{case}.")}
    k, d = wanted["start"].shape
    monkeypatch.setattr(rq_vae_restart, "derived_seed", lambda *parts: 100 + parts[1])
    quantizer = CodebookVQ(LatentShape(wanted["z"].shape[1], d), codebook_size=k, update=partial(RQVAE, decay=0.9),
                           restart=partial(rq_vae_restart.RQVAE, decay=0.9)).train()
    with torch.no_grad():
        quantizer.table.codebook.copy_(wanted["start"])
        quantizer.update.begin(quantizer.table.codebook, first_batch=False)
    kept = 0
    for step, z in enumerate(wanted["z"]):
        out = quantizer(z[None])
        assert torch.equal(out.codes.flatten(), wanted["codes"][step])
        near(out.quantized, wanted["embeds"][step])
        quantizer.after_step(step)
        near(quantizer.codebooks()[0], wanted["tables"][step])
        near(quantizer.update.mean_counts, wanted["counts"][step])
        near(quantizer.update.mean_sums, wanted["sums"][step])
        assert torch.equal(quantizer.restart.use, quantizer.update.mean_counts)
        kept += int((wanted["counts"][step] > 1).sum())
    assert 0 < kept < 8 * k                     # some codes live and some begin anew
