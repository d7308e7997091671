"""Codebook quantizers give the values of the published code: golden vectors in tests/parity, made by make_*.py there.

Where ours differs on purpose: code moves come in `after_step`, after the optimizer, over all processes (theirs in the
forward, of one process); here no optimizer runs between, and both are the same.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.types import LatentShape
from implementations.codebook.alignments.entropy import Entropy
from implementations.codebook.alignments.orthogonal import Orthogonal
from implementations.codebook.alignments.wasserstein import Wasserstein
from implementations.codebook.distances.cosine import Cosine
from implementations.codebook.distances.l2 import L2
from implementations.codebook.gradients.diveq import DiVeQ
from implementations.codebook.gradients.reflection import Reflection
from implementations.codebook.gradients.rotation import Rotation
from implementations.codebook.restarts import cvq
from implementations.codebook.restarts.diveq_copy import DiVeQCopy
from implementations.codebook.tables.linear import Linear
from implementations.codebook.updates.ema import EMA
from implementations.codebook.updates.none import NoUpdate
from implementations.quantizers.codebook_vq import CodebookVQ
from implementations.quantizers.ema_vq import EMAVQ
from implementations.quantizers.vq import VQ

D, K = 8, 16
WEIGHTS = {"commitment": 0.25, "codebook": 1.0, "entropy": 0.1}


def golden(file: str, case: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "parity" / f"{file}.npz") as arrays:
        found = {name.split("/")[1]: torch.from_numpy(arrays[name]) for name in arrays if name.split("/")[0] == case}
    assert found, case
    return found


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(ours.detach().reshape(theirs.shape), theirs, rtol=tolerance, atol=tolerance)


def make(cls, positions: int = 16, table: Tensor | None = None, **keywords):
    quantizer = cls(LatentShape(positions, D), codebook_size=K, codebook_dim=D, **keywords).train()
    if table is not None:
        book = quantizer.table.codebook if isinstance(quantizer, CodebookVQ) else quantizer.codebook
        with torch.no_grad():
            book.copy_(table)
        if isinstance(quantizer, CodebookVQ):
            quantizer.update.begin(book, first_batch=False)
        elif isinstance(quantizer, EMAVQ) and quantizer.zero_count != "zero_debiased":
            quantizer.mean_sums.copy_(table)
    return quantizer


def compare(quantizer, wanted: dict[str, Tensor], weights: dict[str, float] = WEIGHTS, *,
            learned: list[Tensor] | None = None) -> None:
    """Codes, quantized vectors, losses, and the gradients of <toward, quantized> + weighted losses."""
    z = wanted["latents"].clone().requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.codes.flatten(), wanted["codes"].flatten().long())
    close(out.quantized, wanted["quantized"])
    for name in out.losses.keys() & wanted.keys():
        close(out.losses[name], wanted[name], 1e-5)
    loss = sum((weights[name] * value for name, value in out.losses.items()), torch.zeros(()))
    if "loss" in wanted:
        close(loss, wanted["loss"])
    learned = [t for t in quantizer.tables() if t is not None] if learned is None else learned
    found = torch.autograd.grad((out.quantized * wanted["toward"]).sum() + loss, [z, *learned])
    close(found[0], wanted["latents_grad"], 1e-5)
    if "table_grad" in wanted:
        close(found[1], wanted["table_grad"], 1e-5)


both = pytest.mark.parametrize("cls", [VQ, CodebookVQ])


@both
@pytest.mark.parametrize(("case", "weights"), [("legacy", {"commitment": 1.0, "codebook": 0.25}), ("fixed", WEIGHTS)])
def test_taming(cls, case: str, weights: dict[str, float]) -> None:
    wanted = golden("taming_vq", case)
    compare(make(cls, table=wanted["table"]), wanted, weights)


@pytest.mark.parametrize(("case", "old", "new"), [
    ("plain", {}, {}),
    ("unit_codes", {"normalize": "codes"}, {"distance": partial(Cosine, handed="unit_codes")}),
    ("entropy", {"entropy": True}, {"alignment": Entropy}),
])
@both
def test_xyfjason_vq(cls, case: str, old: dict, new: dict) -> None:
    wanted = golden("xyfjason_vq", case)
    compare(make(cls, table=wanted["table"], **(old if cls is VQ else new)), wanted)


@pytest.mark.parametrize(("case", "old", "new"), [
    ("unit", {}, {}), ("unit_entropy", {"entropy": True}, {"alignment": Entropy}),
])
@both
def test_llamagen(cls, case: str, old: dict, new: dict) -> None:
    wanted = golden("llamagen_vq", case)
    keywords = {"normalize": "both", **old} if cls is VQ else {"distance": Cosine, **new}
    compare(make(cls, table=wanted["table"], **keywords), wanted)


@pytest.mark.parametrize(("file", "case", "zero_count"), [
    ("xyfjason_vq", "ema", "freeze"), ("hoanhle_ema", "ema", "zero_debiased"),
])
@pytest.mark.parametrize("cls", [EMAVQ, CodebookVQ])
def test_moving_averages(cls, file: str, case: str, zero_count: str) -> None:
    wanted = golden(file, case)
    keywords = ({"zero_count": zero_count} if cls is EMAVQ else {"update": partial(EMA, zero_count=zero_count)})
    quantizer = make(cls, table=wanted["table"], **keywords)
    follow(quantizer, wanted)


def follow(quantizer, wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Step by step: codes, commitment, and the table after each step."""
    for step, z in enumerate(wanted["latents"]):
        out = quantizer(z)
        assert torch.equal(out.codes.flatten(), wanted["codes"][step].flatten().long())
        if "commitment" in wanted:
            close(out.losses["commitment"], wanted["commitment"][step], tolerance)
        quantizer.after_step(step)
        close(quantizer.codebooks()[0], wanted["tables"][step], tolerance)


@pytest.mark.parametrize("case", ["closest_cosine", "closest_l2", "random", "random_pool", "probabilistic_cosine",
                                  "probabilistic_l2", "first_batch"])
def test_cvq_anchors(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Randomness too: ours draws from torch's generator as theirs, which is given the recorded seed."""
    wanted = golden("cvq_vae", case)
    wanted = golden("cvq_vae", "steps2" if case == "random_pool" else "steps4") | wanted
    monkeypatch.setattr(cvq, "derived_seed", lambda *parts: int(wanted["seeds"][parts[1]]))
    anchor = {"first_batch": "closest"}.get(case, case.split("_")[0])
    distance = partial(Cosine, handed="raw") if "cosine" in case or case == "random" else L2
    restart = partial(cvq.CVQ, anchor=anchor, first_batch=case == "first_batch")
    quantizer = make(CodebookVQ, wanted["latents"].shape[2], wanted["table"], distance=distance, restart=restart)
    if anchor == "random":
        quantizer.restart.pool.copy_(wanted["pool"])
    follow(quantizer, wanted)
    close(quantizer.restart.use, wanted["use"])


@pytest.mark.parametrize(("case", "distance"), [("eval_cos", partial(Cosine, handed="raw")), ("eval_l2", L2)])
def test_cvq_vae_quantizes(case: str, distance) -> None:
    wanted = golden("cvq_vae", case)
    compare(make(CodebookVQ, table=wanted["table"], distance=distance), wanted)


def test_vector_quantize_pytorch_orthogonal() -> None:
    wanted = golden("vector_quantize_pytorch_vq", "orthogonal")
    book = wanted["table"].clone().requires_grad_()
    loss = Orthogonal(book)(book, book, L2())["orthogonal"]
    close(loss, wanted["loss"])
    close(torch.autograd.grad(loss, book)[0], wanted["table_grad"])


@pytest.mark.parametrize(("file", "case", "gradient"), [
    ("rotation_trick", "vector", Rotation), ("vector_quantize_pytorch_vq", "rotation", Rotation),
    ("rotation_trick", "direction", partial(Rotation, form="direction")), 
    ("rotation_trick", "reflection", partial(Reflection, form="direction")),
    ("rotation_trick", "no_scale", partial(Rotation, form="direction", scale=False)),
])
def test_rotation(file: str, case: str, gradient) -> None:
    """One difference on purpose: unscaled, the patch keeps the 1 / |z| of its norm, ours is free of any scale."""
    wanted = golden(file, case)
    quantizer = make(CodebookVQ, table=wanted["table"], gradient=gradient)
    z = wanted["latents"].clone().requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.codes.flatten(), wanted["codes"].long())
    close(out.quantized, wanted["quantized"], 1e-5)             # the authors add 1e-6 to norms
    found, = torch.autograd.grad((out.quantized * wanted["toward"]).sum(), z)
    if case == "no_scale":
        found = found / wanted["latents"].norm(dim=2, keepdim=True)
    close(found, wanted["latents_grad"], 2e-5)


@pytest.mark.parametrize(("file", "case", "noise"), [
    ("diveq", "diveq", 0.01), ("diveq", "detach", 0.0), ("vector_quantize_pytorch_vq", "diveq", 0.01),
])
def test_diveq(file: str, case: str, noise: float) -> None:
    wanted = golden(file, case)
    quantizer = make(CodebookVQ, table=wanted["table"], gradient=partial(DiVeQ, noise_std=noise),
                     update=partial(NoUpdate, commitment=False))
    torch.manual_seed(1000)
    compare(quantizer, wanted)


def test_diveq_replaces_the_same_codes() -> None:
    """Which living code is copied is drawn otherwise; which codes are replaced, and by living ones, is the same."""
    wanted = golden("diveq", "replacement")
    table, last = wanted["table"], wanted["last_table"]
    quantizer = make(CodebookVQ, table=table, restart=partial(DiVeQCopy, every=4, fewest=0.5))
    for step, z in enumerate(wanted["latents"]):
        assert torch.equal(quantizer(z).codes.flatten(), wanted["codes"][step].flatten().long())
        quantizer.after_step(step)
    replaced = (last - table).abs().amax(1) > 1e-6
    ours = quantizer.codebooks()[0].detach()
    assert 0 < replaced.sum() < K
    assert torch.equal((ours - table).abs().amax(1) > 1e-6, replaced)
    assert torch.cdist(ours[replaced], table[~replaced]).amin(1).max() < 1e-3


@pytest.mark.parametrize("case", ["vqgan", "var"])
def test_wasserstein_distance(case: str) -> None:
    """The VAR form scales the latents' ridge too: a difference of 1e-6."""
    wanted = golden("wasserstein_vq", case)
    book = wanted["table"].clone().requires_grad_()
    form = {"unit": "deviation", "epsilon": 1e-8} if case == "vqgan" else {"spread": 0.5}
    part = Wasserstein(book, queue=len(wanted["latents"]), **form)
    part.after_step(wanted["latents"])
    loss = part(wanted["latents"], book, L2())["wasserstein"]
    close(loss, wanted["loss"], 1e-5)
    close(torch.autograd.grad(loss, book)[0], wanted["table_grad"], 1e-4)


@pytest.mark.parametrize("file", ["xyfjason_vq", "vqgan_lc"])
def test_frozen_rows_behind_a_learned_map(file: str) -> None:
    wanted = golden(file, "simvq" if file == "xyfjason_vq" else "linear")
    weights = WEIGHTS if file == "xyfjason_vq" else {"commitment": 1.0, "codebook": 0.33}
    quantizer = CodebookVQ(LatentShape(16, D), codebook_size=K, codebook_dim=D, table=Linear).train()
    width = wanted["rows"].shape[1]
    quantizer.table.codebook = wanted["rows"].clone()
    quantizer.table.map = torch.nn.Linear(width, D)
    with torch.no_grad():
        quantizer.table.map.weight.copy_(wanted["weight"])
        quantizer.table.map.bias.copy_(wanted["bias"])
    compare(quantizer, wanted, weights)
    share = 1.0 if file == "xyfjason_vq" else 0.33
    loss = share * quantizer(wanted["latents"]).losses["codebook"]
    weight, bias = torch.autograd.grad(loss, list(quantizer.table.map.parameters()))
    close(weight, wanted["weight_grad"], 1e-5)
    close(bias, wanted["bias_grad"], 1e-5)
