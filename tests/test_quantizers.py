"""Quantizers: the contract, for every registered one; searches, gradients, updates against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import same, small, train_spec
from torch import Tensor, nn

from bench.build import build_model
from bench.registry import available
from bench.types import LatentShape
from implementations.backbones.simple_cnn import ResidualBlock, simple_cnn_decoder, simple_cnn_encoder
from implementations.quantizers.ema_vq import EMAVQ
from implementations.quantizers.vq import VQ
from implementations.search import entropy as entropy_module
from implementations.search import nearest as nearest_module
from implementations.search.entropy import assignment_entropy
from implementations.search.initial import drawn_from, initial_codebook
from implementations.search.lookup import straight_through_lookup
from implementations.search.nearest import nearest_codes
from implementations.search.precision import without_autocast

SHAPE = LatentShape(positions=12, dim=6, grid=(3, 4))


def build(name: str, **keywords):
    torch.manual_seed(0)
    return small("quantizer", name, **keywords).partial()(SHAPE)


def latents_for(quantizer, batch: int = 3, seed: int = 1, scale: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SHAPE.positions, quantizer.input_dim, generator=generator) * scale


every_quantizer = pytest.mark.parametrize("name", available("quantizer"))


# -- the contract ------------------------------------------------------------------------------------------


@every_quantizer
@pytest.mark.parametrize("mode", [True, False])
def test_output_is_as_the_layout_says(name: str, mode: bool) -> None:
    quantizer = build(name).train(mode)
    out = quantizer(latents_for(quantizer))
    layout = quantizer.layout
    assert out.quantized.shape == (3, SHAPE.positions, quantizer.output_dim)
    assert out.quantized.isfinite().all()
    if layout.vocab_sizes:
        assert out.codes.shape == (3, layout.num_tokens, len(layout.vocab_sizes))
        assert out.codes.dtype == torch.int64
        assert (out.codes >= 0).all() and (out.codes < torch.tensor(layout.vocab_sizes)).all()
    else:
        assert out.codes is None
    assert set(out.losses) == set(quantizer.loss_weights)
    assert all(loss.dim() == 0 and loss.isfinite() for loss in out.losses.values())


@every_quantizer
def test_lookup_of_codes_is_what_the_decoder_gets_in_eval(name: str) -> None:
    quantizer = build(name).eval()
    out = quantizer(latents_for(quantizer))
    if out.codes is None:
        pytest.skip(f"{name} has no codes")
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)


@every_quantizer
def test_codebooks_and_tables_match_the_layout(name: str) -> None:
    quantizer = build(name)
    books = quantizer.codebooks()
    assert books == () or [len(b) for b in books] == list(quantizer.layout.vocab_sizes)
    tables = quantizer.tables()
    assert len(tables) == len(quantizer.layout.vocab_sizes)
    learned = {id(p) for p in quantizer.parameters()}
    assert all(t is None or id(t) in learned for t in tables)


@every_quantizer
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_latents_are_searched_in_full_precision(name: str, autocast: bool) -> None:
    quantizer = build(name).eval()
    latents = latents_for(quantizer, batch=40).bfloat16()
    wanted = quantizer(latents.float())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = quantizer(latents)
    assert out.quantized.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in out.losses.values())
    assert out.codes is None or torch.equal(out.codes, wanted.codes)
    for loss, value in wanted.losses.items():
        assert torch.equal(out.losses[loss], value)


def test_products_are_full_fp32_inside_quantizers_even_where_tf32_is_allowed() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with without_autocast(torch.zeros(1)):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@every_quantizer
def test_state_dict_brings_everything_back(name: str) -> None:
    first = build(name).train()
    for step in range(3):
        first(latents_for(first, seed=step))
        with torch.no_grad():
            first.after_step(step)
    second = build(name)
    second.load_state_dict(first.state_dict())
    assert not same(first.state_dict(), second.state_dict())
    latents = latents_for(first, seed=9)
    for quantizer in (first, second):               # a further step of both: hidden state would show
        quantizer.train()(latents)
        with torch.no_grad():
            quantizer.after_step(3)
    assert not same(first.state_dict(), second.state_dict())
    a, b = first.eval()(latents), second.eval()(latents)
    assert torch.equal(a.quantized, b.quantized) and not same(a.codes, b.codes)
    assert not same(a.losses, b.losses)


@every_quantizer
def test_builds_and_runs_on_the_meta_device(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        quantizer = build(name)
        out = quantizer(torch.empty(2, SHAPE.positions, quantizer.input_dim))
    assert out.quantized.is_meta and out.quantized.shape == (2, SHAPE.positions, quantizer.output_dim)
    assert out.codes is None or out.codes.shape[:2] == (2, quantizer.layout.num_tokens)


@every_quantizer
def test_works_alone_on_maps_and_on_sequences(name: str) -> None:
    quantizer = build(name).eval()
    sequence = latents_for(quantizer)
    maps = sequence.transpose(1, 2).unflatten(2, SHAPE.grid)
    from_maps, loss, codes = quantizer.quantize(maps)
    from_sequence, loss_again, codes_again = quantizer.quantize(sequence)
    out = quantizer(sequence)
    assert from_maps.shape == (3, quantizer.output_dim, *SHAPE.grid)
    assert torch.equal(from_maps.flatten(2).transpose(1, 2), from_sequence)
    assert torch.equal(from_sequence, out.quantized) and not same(codes, out.codes)
    assert not same(codes, codes_again)
    wanted = sum(quantizer.loss_weights[k] * float(v.detach()) for k, v in out.losses.items())
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-6) and torch.equal(loss, loss_again)


@every_quantizer
def test_gradient_reaches_the_latents(name: str) -> None:
    quantizer = build(name).train()
    latents = latents_for(quantizer).requires_grad_()
    quantizer(latents).quantized.square().sum().backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().max() > 0


# -- nearest code ------------------------------------------------------------------------------------------


def brute_force(z: Tensor, e: Tensor) -> np.ndarray:
    z, e = z.double().numpy(), e.double().numpy()
    return ((z[:, None] - e[None]) ** 2).sum(-1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), d=st.integers(1, 17), k=st.integers(1, 90), rows=st.integers(1, 70),
       seed=st.integers(0, 2**16))
def test_nearest_code_is_exact_with_ties_to_the_lowest(n: int, d: int, k: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # small whole numbers: every score is exact in fp32, so that ties are ties
    z = torch.randint(-3, 4, (n, d), generator=generator).float()
    e = torch.randint(-3, 4, (k, d), generator=generator).float()
    before = nearest_module.BLOCK_BYTES
    nearest_module.BLOCK_BYTES = rows * 4 * k                   # so many rows to a block
    try:
        codes = nearest_codes(z, e)
    finally:
        nearest_module.BLOCK_BYTES = before
    assert codes.dtype == torch.int64
    np.testing.assert_array_equal(codes.numpy(), brute_force(z, e).argmin(1))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), d=st.integers(1, 70), k=st.integers(1, 600), seed=st.integers(0, 2**16),
       spread=st.sampled_from([1e-3, 1.0, 50.0]))
def test_nearest_code_is_the_nearest_to_rounding(n: int, d: int, k: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, e = (torch.randn(rows, d, generator=generator) * spread for rows in (n, k))
    distances = brute_force(z, e)
    chosen = distances[np.arange(n), nearest_codes(z, e).numpy()]
    scale = z.double().square().sum(1).numpy() + e.double().square().sum(1).max().item()
    assert (chosen - distances.min(1) <= 1e-6 * scale).all()


# -- gradients in closed form ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), d=st.integers(1, 6), k=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_lookup_has_the_gradients_of_the_naive_formula(n: int, d: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z0, e0, mix = (torch.randn(r, d, generator=generator, dtype=torch.float64) for r in (n, k, n))
    codes = torch.randint(0, k, (n,), generator=generator)

    def gradients(naive: bool) -> list[Tensor]:
        z, e = z0.clone().requires_grad_(), e0.clone().requires_grad_()
        if naive:
            q = e[codes]
            commitment, codebook = F.mse_loss(z, q.detach()), F.mse_loss(z.detach(), q)
            handed = z + (q - z).detach()
        else:
            handed, commitment, codebook = straight_through_lookup(z, e, codes)
            assert torch.equal(handed, e0[codes])
        loss = (handed * mix).sum() + 0.25 * commitment + 1.7 * codebook
        return [loss.detach(), *torch.autograd.grad(loss, (z, e))]

    for ours, plain in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_each_loss_of_the_lookup_moves_its_own_side_only() -> None:
    z = torch.randn(5, 3, requires_grad=True)
    e = torch.randn(4, 3, requires_grad=True)
    handed, commitment, codebook = straight_through_lookup(z, e, torch.tensor([0, 1, 1, 3, 0]))
    assert torch.autograd.grad(commitment, e, retain_graph=True)[0].abs().max() == 0
    assert torch.autograd.grad(codebook, z, retain_graph=True)[0].abs().max() == 0
    assert torch.autograd.grad(handed.sum(), e, retain_graph=True)[0].abs().max() == 0
    assert torch.autograd.grad(codebook, e)[0][2].abs().max() == 0          # nothing chose code 2


@pytest.mark.parametrize("normalize", ["none", "codes", "both"])
def test_vq_has_the_gradients_of_the_naive_formula(normalize: str) -> None:
    quantizer = build("vq", normalize=normalize, entropy=True, entropy_temperature=0.5, init="normal")
    latents = latents_for(quantizer, scale=1.0)
    mix = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    ours = latents.clone().requires_grad_()
    out = quantizer(ours)
    weights = {"commitment": 0.25, "codebook": 0.8, "entropy": 0.3}
    loss = (out.quantized * mix).sum() + sum(weights[n] * v for n, v in out.losses.items())
    got = torch.autograd.grad(loss, (ours, quantizer.codebook))

    z_in = latents.double().requires_grad_()
    table = quantizer.codebook.detach().double().requires_grad_()
    z, e = z_in.flatten(0, 1), table
    if normalize != "none":
        e = e / e.norm(dim=1, keepdim=True)
    if normalize == "both":
        z = z / z.norm(dim=1, keepdim=True)
    compared = z / z.norm(dim=1, keepdim=True) if normalize == "codes" else z
    distances = (compared[:, None] - e[None]).square().sum(-1)
    codes = distances.argmin(1)
    q = e[codes]
    p = (-distances / 0.5).softmax(1)
    sample = -(p * p.log()).sum(1).mean()
    batch = -(p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    handed = (z + (q - z).detach()).view_as(mix)
    naive = (handed * mix).sum() + 0.25 * F.mse_loss(z, q.detach()) + 0.8 * F.mse_loss(z.detach(), q)
    naive = naive + 0.3 * (sample - batch)
    assert torch.equal(out.codes.flatten(), codes)
    torch.testing.assert_close(loss.double(), naive, rtol=1e-5, atol=1e-5)
    for mine, plain in zip(got, torch.autograd.grad(naive, (z_in, table)), strict=True):
        torch.testing.assert_close(mine.double(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_entropy_and_its_gradient_equal_the_whole_table(rows: int, temperature: float, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(3)
    z0, e0 = (torch.randn(n, 4, generator=generator, dtype=torch.float64) * 0.2 for n in (23, 11))
    monkeypatch.setattr(entropy_module, "BLOCK_BYTES", rows * 4 * len(e0))

    def naive(z: Tensor, e: Tensor) -> Tensor:
        p = (-(z[:, None] - e[None]).square().sum(-1) / temperature).softmax(1)
        mean = p.mean(0)
        return torch.special.entr(p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()

    found = []
    for formula in (naive, lambda z, e: assignment_entropy(z, e, temperature)):
        z, e = z0.clone().requires_grad_(), e0.clone().requires_grad_()
        value = formula(z, e)
        found.append([value.detach(), *torch.autograd.grad(value, (z, e))])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    assert found[0][1].abs().max() > 1e-6


# -- moving averages ---------------------------------------------------------------------------------------


class Averages:
    """Reference formulas in float64; X: xyfJASON, K: taming and khanhvu207, H: Sonnet and hoanhle."""

    def __init__(self, codebook: Tensor, policy: str, decay: float, epsilon: float = 1e-5) -> None:
        self.e = codebook.double().numpy().copy()
        self.policy, self.decay, self.epsilon, self.t = policy, decay, epsilon, 0
        self.m = np.zeros(len(self.e))
        self.s = np.zeros_like(self.e) if policy == "zero_debiased" else self.e.copy()

    def update(self, z: np.ndarray, codes: np.ndarray) -> None:
        k, g = len(self.e), self.decay
        n = np.array([(codes == i).sum() for i in range(k)], float)
        s = np.stack([z[codes == i].sum(0) for i in range(k)])
        self.t += 1
        if self.policy == "zero_debiased":
            self.m = self.m - (1 - g) * (self.m - n)
            self.s = self.s - (1 - g) * (self.s - s)
            m, total = self.m / (1 - g**self.t), self.s / (1 - g**self.t)
        else:
            self.m, self.s = g * self.m + (1 - g) * n, g * self.s + (1 - g) * s
            m, total = self.m, self.s
        if self.policy == "freeze":
            for i in np.flatnonzero(n):
                self.e[i] = total[i] / m[i]
        else:
            smoothed = (m + self.epsilon) / (m.sum() + k * self.epsilon) * m.sum()
            self.e = total / smoothed[:, None]


def clustered(quantizer: EMAVQ, step: int, batch: int = 8) -> Tensor:
    """Latents near a few of the first codes, others each step: most codes are not chosen."""
    generator = torch.Generator().manual_seed(100 + step)
    chosen = torch.randint(0, 5, (batch, SHAPE.positions), generator=generator) + 2 * step
    noise = torch.randn(batch, SHAPE.positions, quantizer.input_dim, generator=generator)
    return START[chosen % len(START)] + 0.02 * noise


START = torch.randn(16, 4, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("policy", ["freeze", "laplace", "zero_debiased"])
@pytest.mark.parametrize("decay", [0.99, 0.5, 0.0])
def test_ema_follows_the_published_formula(policy: str, decay: float, accumulation: int) -> None:
    quantizer = build("ema_vq", zero_count=policy, decay=decay).train()
    with torch.no_grad():
        quantizer.codebook.copy_(START)
        if policy != "zero_debiased":
            quantizer.mean_sums.copy_(START)
    reference = Averages(START, policy, decay)
    never = np.ones(16, bool)
    for step in range(5):
        latents = clustered(quantizer, step)
        before = quantizer.codebook.clone()
        codes = torch.cat([quantizer(part).codes for part in latents.chunk(accumulation)])
        assert torch.equal(quantizer.codebook, before)          # nothing moves before after_step
        quantizer.after_step(step)
        assert not quantizer.step_counts.any() and not quantizer.step_sums.any()
        flat = codes.flatten().numpy()
        never[flat] = False
        reference.update(latents.double().flatten(0, 1).numpy(), flat)
        scale = np.abs(reference.e).max(1, keepdims=True) + 1e-3
        assert (np.abs(quantizer.codebook.numpy() - reference.e) <= 2e-5 * scale).all(), step
        assert 0 < len(np.unique(flat)) < 16                    # some codes are not chosen in this step
        if policy == "freeze":
            assert torch.equal(quantizer.codebook[torch.from_numpy(never)], START[torch.from_numpy(never)])
        elif policy == "zero_debiased":
            assert not quantizer.codebook[torch.from_numpy(never)].any()


@pytest.mark.parametrize("policy", ["freeze", "laplace", "zero_debiased"])
def test_ema_is_the_same_in_one_and_in_four_micro_batches(policy: str) -> None:
    found = []
    for accumulation in (1, 4):
        quantizer = build("ema_vq", zero_count=policy, init="normal").train()
        for step in range(4):
            for part in latents_for(quantizer, batch=8, seed=step).chunk(accumulation):
                quantizer(part)
            quantizer.after_step(step)
        found.append(quantizer.state_dict())
    assert torch.equal(found[0]["mean_counts"], found[1]["mean_counts"])
    torch.testing.assert_close(found[0]["codebook"], found[1]["codebook"], rtol=1e-6, atol=1e-6)


def test_ema_does_not_learn_in_eval_and_has_no_parameters() -> None:
    quantizer = build("ema_vq").eval()
    before = {k: v for k, v in quantizer.state_dict().items() if isinstance(v, Tensor)}
    before = {k: v.clone() for k, v in before.items()}
    quantizer(latents_for(quantizer))
    assert not quantizer.step_counts.any()
    assert not list(quantizer.parameters())
    assert not same(before, {k: v for k, v in quantizer.state_dict().items() if isinstance(v, Tensor)})


# -- first codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init, bound", [("uniform", 1 / 512), ("kaiming", math.sqrt(6 / 32)),
                                         ("variance", math.sqrt(3 / 32))])
def test_first_codes_fill_their_published_range(init: str, bound: float) -> None:
    torch.manual_seed(0)
    table = initial_codebook(512, 32, init)
    assert table.shape == (512, 32) and table.dtype == torch.float32
    assert 0.999 * bound < table.abs().max() <= bound
    assert float(table.var()) == pytest.approx(bound**2 / 3, rel=0.02)      # of a uniform distribution
    if init == "kaiming":
        ours = nn.init.kaiming_uniform_(torch.empty(512, 32))
        assert float(ours.var()) == pytest.approx(float(table.var()), rel=0.03)


def test_normal_first_codes_have_unit_variance() -> None:
    torch.manual_seed(0)
    table = initial_codebook(512, 32, "normal")
    assert float(table.mean()) == pytest.approx(0, abs=0.03)
    assert float(table.std()) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("name", ["vq", "ema_vq"])
def test_sampled_first_codes_are_latents_of_the_first_training_batch(name: str) -> None:
    quantizer = build(name, init="samples")
    eval_only = quantizer.eval()(latents_for(quantizer, seed=5))
    assert not quantizer.started and eval_only.codes is not None            # looking does not start it
    first = latents_for(quantizer, batch=4, seed=6)
    quantizer.train()(first)
    rows = {tuple(r) for r in first.flatten(0, 1).tolist()}
    drawn = [tuple(r) for r in quantizer.codebook.tolist()]
    assert set(drawn) <= rows and len(set(drawn)) == 16                     # 48 latents: no repetition
    table = quantizer.codebook.detach().clone()
    quantizer(latents_for(quantizer, seed=7))
    assert torch.equal(quantizer.codebook, table)                           # once
    other = build(name, init="samples")
    other.load_state_dict(quantizer.state_dict())
    other.train()(latents_for(quantizer, seed=8))
    assert torch.equal(other.codebook, table)                         # a loaded table is not drawn again


def test_more_codes_than_latents_repeat_each_latent_about_equally() -> None:
    latents = torch.arange(5.0)[:, None]
    drawn = drawn_from(latents, 12).flatten().long()
    assert sorted(torch.bincount(drawn, minlength=5).tolist()) == [2, 2, 2, 3, 3]
    assert torch.equal(drawn_from(latents, 12).flatten().long(), drawn)


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
def test_an_empty_codebook_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="codebook_size"):
        kind(SHAPE, codebook_size=0, codebook_dim=4)


# -- the published network ---------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    vq = {"name": "vq", "codebook_size": 512, "codebook_dim": 64}
    published = {"hidden": 256, "resblocks": 2}
    model = small("tokenizer", "vqvae", quantizer=vq, **published).partial()(64)
    assert count(model.encoder) == 2_431_616
    assert count(model.decoder) == 2_431_363
    assert (count(model.to_latents), count(model.from_quantized)) == (16_448, 16_640)
    assert count(model.quantizer) == 512 * 64
    assert count(model) == 4_928_835
    narrow = small("tokenizer", "vqvae", quantizer=vq | {"codebook_dim": 4}, **published).partial()(64)
    assert count(narrow) == 4_867_335


class InPlaceBlock(nn.Module):
    """The published residual block: its first ReLU overwrites what the skip adds."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(inplace=True), block.conv1, nn.ReLU(inplace=True), block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class PlainBlock(nn.Module):
    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(), block.conv1, nn.ReLU(), block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


@pytest.mark.parametrize("rectified, twin", [(True, InPlaceBlock), (False, PlainBlock)])
@pytest.mark.parametrize("make, channels", [(simple_cnn_encoder, 3), (simple_cnn_decoder, 8)])
def test_rectified_skip_is_the_in_place_relu(rectified: bool, twin: type, make, channels: int) -> None:
    torch.manual_seed(0)
    ours = make(8, 2, rectified_skip=rectified)
    theirs = nn.Sequential(*(twin(m) if isinstance(m, ResidualBlock) else m for m in ours))
    x = torch.randn(2, channels, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x.clone()), rtol=0, atol=1e-6)
    weight = next(iter(ours.parameters()))
    ours_gradient, = torch.autograd.grad(ours(x).square().sum(), weight)
    theirs_gradient, = torch.autograd.grad(theirs(x.clone()).square().sum(), weight)
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-5, atol=1e-5)
    other = make(8, 2, rectified_skip=not rectified)
    other.load_state_dict(ours.state_dict())
    assert (other(x) - ours(x)).abs().max() > 1e-4              # the switch does change the network


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first, _ = build_model(train_spec())
    torch.manual_seed(2)
    again, _ = build_model(train_spec())
    other, _ = build_model(train_spec(seed=4))
    assert not same(first.state_dict(), again.state_dict())
    assert not torch.equal(first.encoder[0].weight, other.encoder[0].weight)
