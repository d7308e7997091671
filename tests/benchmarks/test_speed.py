"""Speed, side by side in one run: `pytest tests/benchmarks/test_speed.py`. Nothing here is asserted.

Quote ratios within a group, not milliseconds: machines are noisy.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from bench.data import CachedBatches, Order
from bench.monitors.codebook_gradients import CodebookGradients
from bench.monitors.codebook_norms import CodebookNorms
from bench.monitors.codebook_usage import CodebookUsage
from bench.monitors.quantization_error import QuantizationError
from bench.objectives.reconstruction import Reconstruction
from bench.optim import PlayerOptimizer
from bench.spec import ComponentSpec, OptimizerSpec, TrainSpec
from bench.train import TrainState, train
from bench.types import LatentShape, TokenizerOutput
from implementations.quantizers.vq import VQ
from implementations.search.nearest import nearest_codes
from implementations.search.statistics import add_statistics
from implementations.vqvae import VQVAE

CPU = torch.device("cpu")
BATCH, HIDDEN = 16, 64


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(group="nearest code, 16384 x 64 x 512")
@pytest.mark.parametrize("how", ["blocks", "full table"])
def test_search(benchmark, how: str) -> None:
    z, e = torch.randn(16384, 64), torch.randn(512, 64)
    full = lambda: (z.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * z @ e.T).argmin(1)  # noqa: E731
    benchmark((lambda: nearest_codes(z, e)) if how == "blocks" else full)


@pytest.mark.benchmark(group="sums per code, 16384 x 64 x 512")
@pytest.mark.parametrize("how", ["index_add", "one-hot"])
def test_statistics(benchmark, how: str) -> None:
    z, codes = torch.randn(16384, 64), torch.randint(512, (16384,))
    counts, sums = torch.zeros(512), torch.zeros(512, 64)

    def one_hot() -> None:
        table = F.one_hot(codes, 512).float()
        counts.add_(table.sum(0))
        sums.add_(table.T @ z)

    benchmark((lambda: add_statistics(counts, sums, codes, z)) if how == "index_add" else one_hot)


@pytest.mark.benchmark(group="usage over 65,536 codes, 4096 new ones, K = 512")
@pytest.mark.parametrize("how", ["ring", "cat and unique", "deque and set"])
def test_usage_window(benchmark, how: str) -> None:
    codes = torch.randint(512, (16, 256, 1))
    output = TokenizerOutput(codes, codes, codes, codes)
    monitor = CodebookUsage()
    tokenizer = VQVAE(64, quantizer=partial(VQ, codebook_dim=4), hidden=8)
    monitor.begin(tokenizer, CPU)
    state = {"queue": torch.zeros(0, dtype=torch.int64), "deque": deque(maxlen=65536)}

    def ring() -> None:
        monitor.observe(output, 0)

    def cat() -> None:
        state["queue"] = torch.cat([state["queue"], codes.flatten()])[-65536:]
        state["queue"].unique()

    def python() -> None:
        state["deque"].extend(codes.flatten().tolist())
        len(set(state["deque"]))

    benchmark({"ring": ring, "cat and unique": cat, "deque and set": python}[how])


@pytest.mark.benchmark(group="training step, 64 px, batch 16, hidden 64")
@pytest.mark.parametrize("how", ["harness with all monitors", "bare loop"])
def test_step(benchmark, how: str) -> None:
    torch.manual_seed(0)
    model = VQVAE(64, quantizer=partial(VQ, codebook_dim=64), hidden=HIDDEN).to(memory_format=torch.channels_last)
    objective = Reconstruction()
    part = ComponentSpec(kind="tokenizer", name="vqvae", revision=1, kwargs={})
    spec = TrainSpec(dataset=part, data="", model=part, objective=part, optimizers={}, steps=10**9, batch_size=BATCH)
    images = torch.randint(0, 256, (256, 3, 64, 64), dtype=torch.uint8)
    order = Order(256, seed=0, batch_size=BATCH, accumulation=1, flip=True)
    batches = CachedBatches(images.numpy(), None, order, CPU, channels_last=True, on_device=False)
    if how == "bare loop":
        adam = torch.optim.Adam(model.parameters(), lr=4e-4, fused=True)
        fixed = batches(0, 0).images

        def step() -> None:
            out = model(fixed)
            loss = F.mse_loss(out.reconstruction, fixed) + 0.25 * out.losses["commitment"] + out.losses["codebook"]
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
    else:
        monitors = [CodebookUsage(), CodebookGradients(), CodebookNorms(), QuantizationError()]
        for monitor in monitors:
            monitor.begin(model, CPU)
        mover = PlayerOptimizer(objective.players(model)["tokenizer"], OptimizerSpec(lr=4e-4), 10**9, fused=True)
        state = TrainState(model, objective, {"tokenizer": mover}, monitors)

        def after(state: TrainState) -> bool:
            if state.step % 100 == 0:
                state.terms.read(state.monitors)
            return True

        def step() -> None:
            train(state, batches, spec, after, watched=lambda s: (s + 1) % 100 == 0)

    benchmark(step)


@pytest.mark.benchmark(group="quantizer forward and backward, 16384 x 64 x 512")
@pytest.mark.parametrize("how", ["closed form", "naive formula"])
def test_quantizer(benchmark, how: str) -> None:
    quantizer = VQ(LatentShape(256, 64, (16, 16)), codebook_size=512)
    z = torch.randn(64, 256, 64, requires_grad=True)

    def ours() -> None:
        out = quantizer(z)
        (out.quantized.sum() + 0.25 * out.losses["commitment"] + out.losses["codebook"]).backward()

    def naive() -> None:
        flat, e = z.flatten(0, 1), quantizer.codebook
        codes = (flat.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * flat @ e.T).argmin(1)
        q = e[codes].view_as(z)
        losses = 0.25 * F.mse_loss(z, q.detach()) + F.mse_loss(z.detach(), q)
        ((z + (q - z).detach()).sum() + losses).backward()

    benchmark(ours if how == "closed form" else naive)
