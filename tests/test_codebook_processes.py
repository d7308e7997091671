"""Combinators and restarts give the same codes, tables and losses with two processes as with one, for micro-batches too.

This file is also the program of one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import ROOT
from torch import Tensor

from bench.interfaces import Quantizer
from bench.types import LatentShape
from implementations.codebook.restarts.cvq import CVQ
from implementations.codebook.restarts.diveq_copy import DiVeQCopy
from implementations.codebook.restarts.random_restart import RandomRestart
from implementations.codebook.restarts.rq_vae import RQVAE
from implementations.quantizers import codebook_vq
from implementations.quantizers.codebook_vq import CodebookVQ
from implementations.quantizers.ema_vq import EMAVQ
from implementations.quantizers.grouped import Grouped
from implementations.quantizers.multi_scale import MultiScale
from implementations.quantizers.residual import Residual
from implementations.quantizers.vq import VQ

SHAPE = LatentShape(positions=12, dim=6, grid=(3, 4))
K, STEPS, BATCH, ACCUMULATION = 24, 5, 4, 2
AROUND = {
    "alone": None, "residual": partial(Residual, levels=3), "residual own": partial(Residual, levels=3, shared=False),
    "residual dropout": partial(Residual, levels=3, dropout="batch"), "grouped": partial(Grouped, groups=2),
    "grouped shared": partial(Grouped, groups=2, shared=True), "multi_scale": MultiScale,
}
# Copies, and codes that drift to one latent, soon lie within rounding of each other; which of them a latent then takes is
# a matter of the last digit: they are made in the last steps.
RESTARTS = {
    "random": partial(RandomRestart, every=2, threshold=0.5, decay=0.5), "copy": partial(DiVeQCopy, every=STEPS, fewest=0.9),
    "rq_vae": partial(RQVAE, threshold=2.0, decay=0.5), "closest": partial(CVQ, begin=STEPS - 2), "drawn": partial(CVQ, anchor="random"), "probabilistic": partial(CVQ, anchor="probabilistic"),
    "first batch": partial(CVQ, anchor="random", first_batch=True, begin=1),
}
INSIDE = {
    "vq": partial(VQ, codebook_size=K, init="samples"), "ema": partial(EMAVQ, codebook_size=K, init="samples"),
    **{name: partial(CodebookVQ, codebook_size=K, init="samples", restart=restart) for name, restart in RESTARTS.items()},
}


def build(around: str, inside: str) -> Quantizer:
    torch.manual_seed(0)
    made = INSIDE[inside] if AROUND[around] is None else partial(AROUND[around], quantizer=INSIDE[inside])
    return made(SHAPE).train()


def latents(step: int, part: int) -> Tensor:
    """[BATCH, P, D], few of them far from the others, so that some codes are rarely chosen."""
    z = torch.randn(BATCH, SHAPE.positions, SHAPE.dim, generator=torch.Generator().manual_seed(10 * step + part))
    return z * torch.tensor([0.2, 0.2, 0.3, 2.0])[:, None, None]


def steps(quantizer: Quantizer, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
    """What this process sees of each step: codes and losses of its share, and the tables after it."""
    from bench.distributed import average_gradients

    learned = list(quantizer.parameters())
    for step in range(STEPS):
        quantizer.before_step(step)
        seen: dict[str, Tensor] = {}
        for part in range(ACCUMULATION):
            out = quantizer(latents(step, part).chunk(world)[rank])
            loss = sum(quantizer.loss_weights[name] * value for name, value in out.losses.items()) / ACCUMULATION
            if loss.requires_grad:
                loss.backward()
            seen |= {f"codes {part}": out.codes} | {f"{name} {part}": v.detach() for name, v in out.losses.items()}
        average_gradients(learned)
        with torch.no_grad():
            for parameter in learned:
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
                    parameter.grad = None
        quantizer.after_step(step)
        yield seen | {f"table {i}": book.detach().clone() for i, book in enumerate(quantizer.codebooks())}


def work(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    told = {(around, inside): list(steps(build(around, inside), rank, world)) for around in AROUND for inside in INSIDE}
    torch.save(told, folder / f"{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Of one process alone, and of each of two."""
    folder = tmp_path_factory.mktemp("processes")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [subprocess.Popen([sys.executable, __file__, str(rank), "2", str(folder)], env=environment) for rank in (0, 1)]
    work(0, 1, folder)
    assert [process.wait(600) for process in running] == [0, 0]
    return [torch.load(folder / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("around", AROUND)
def test_two_processes_equal_one(around: str, inside: str, told: list[dict]) -> None:
    moved = 0.0
    one, *two = (each[around, inside] for each in told)
    for step, (alone, *shares) in enumerate(zip(one, *two, strict=True)):
        for name, wanted in alone.items():
            parts = [share[name] for share in shares]
            where = f"{name} at step {step}"
            if name.startswith("codes"):
                assert torch.equal(torch.cat(parts), wanted), where
            elif name.startswith("table"):
                assert torch.equal(*parts), where
                torch.testing.assert_close(parts[0], wanted, rtol=1e-5, atol=1e-6, msg=lambda text, at=where: f"{at}: {text}")
                moved = max(moved, float((wanted - one[0][name]).abs().max()))
            else:
                torch.testing.assert_close(sum(parts) / 2, wanted, rtol=1e-5, atol=1e-7)
    assert moved > 1e-2                         # something was learned, or overwritten


@pytest.mark.parametrize(("inside", "wanted"), [
    ("random", [1, 3]), ("copy", []), ("closest", [3, 4]), ("drawn", [0, 1, 2, 3, 4]), ("first batch", [1]),
])
def test_latents_are_gathered_at_the_steps_that_need_them(inside: str, wanted: list[int], monkeypatch) -> None:
    gathered = []
    gather = codebook_vq.gathered
    quantizer = build("alone", inside)
    monkeypatch.setattr(codebook_vq, "gathered", lambda parts: gathered.append(now) or gather(parts))
    for now in range(STEPS):
        quantizer(latents(now, 0))
        quantizer.after_step(now)
    assert gathered == wanted


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
