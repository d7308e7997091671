"""Quantizers without a codebook search, and Gumbel and Gaussian latents: against dense float64 formulas under plain
autograd, torch.distributions, and vector-quantize-pytorch where it is installed."""

from __future__ import annotations

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from bench.interfaces import Incompatible
from bench.types import LatentShape
from implementations.quantizers import gumbel as gumbel_module
from implementations.quantizers.bsq import BSQ
from implementations.quantizers.fsq import FSQ
from implementations.quantizers.gaussian_kl import GaussianKL
from implementations.quantizers.gumbel import Gumbel
from implementations.quantizers.lfq import LFQ
from implementations.search import bits as bits_module
from implementations.search.bits import batch_entropy, sample_entropy
from implementations.search.digits import Digits, even_levels, fewest_levels

SHAPE = LatentShape(positions=12, dim=8, grid=(3, 4))
VARIANTS = ("atanh", "google", "symmetric")


def normal(*shape: int, seed: int = 0, **options) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def close(ours: Tensor, reference: Tensor, tolerance: float) -> None:
    """Apart by at most `tolerance` of the largest reference value, or of 1 where that is smaller."""
    assert ours.shape == reference.shape
    apart = (ours.detach().double() - reference.detach().double()).abs().max()
    assert apart <= tolerance * max(1.0, float(reference.detach().abs().max())), f"{float(apart):.2e} apart"


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves, retain_graph=True)


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    return soft + (hard - soft).detach()


def signs(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


# -- Digits --------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(radices=st.lists(st.integers(2, 40), min_size=1, max_size=9), last_first=st.booleans(),
       seed=st.integers(0, 2**16))
def test_digits_are_those_of_numpy(radices, last_first, seed) -> None:
    levels = fewest_levels(radices)
    assert tuple(itertools.chain(*levels)) == tuple(radices)
    digits = Digits(levels, last_first=last_first)
    values = np.random.default_rng(seed).integers(0, radices, (7, len(radices)))
    values[0], values[1] = 0, np.array(radices) - 1
    codes = digits.pack(torch.from_numpy(values).float())
    start = 0
    for i, level in enumerate(levels):
        part = tuple(values[:, start:start + len(level)].T)
        expected = np.ravel_multi_index(part, level, order="C" if last_first else "F")
        assert np.array_equal(codes[:, i].numpy(), expected)
        start += len(level)
    assert digits.sizes == tuple(math.prod(level) for level in levels) and max(digits.sizes) <= 2**18
    assert torch.equal(digits.unpack(codes), torch.from_numpy(values))
    assert all(math.prod(a) * b[0] > 2**18 for a, b in itertools.pairwise(levels))      # no level was cut too early


@given(bits=st.integers(1, 60), data=st.data())
def test_even_levels_share_all_bits(bits, data) -> None:
    levels = data.draw(st.integers(1, bits))
    sizes = [len(level) for level in even_levels(bits, levels)]
    assert (len(sizes), sum(sizes)) == (levels, bits)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


# -- Entropies of bits ---------------------------------------------------------------------------------------


def corners(bits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """All codes of -1 and 1, [2^bits, bits]."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits)), dtype=dtype)


def dense_entropies(z: Tensor, temperature: float, group: int, epsilon: float, scale: float = 1.0):
    """Sample entropy, and batch entropy summed over groups, from the softmax over all 2^n codes scale * (+-1)^n.

    A group's distribution is the marginal of the mean over whole codes.
    """
    n = z.shape[1]
    log_p = (2 * z @ (scale * corners(n)).T / temperature).log_softmax(1)
    sample = -(log_p.exp() * log_p).sum(1).mean()
    mean = log_p.exp().mean(0).reshape((2,) * n)
    batch = 0
    for start in range(0, n, group):
        others = [i for i in range(n) if not start <= i < start + group]
        p = mean.sum(others) if others else mean
        batch = batch - (p * (p + epsilon).log()).sum()
    return sample, batch


GROUPS = [(n, g) for n in range(1, 9) for g in range(1, n + 1) if n % g == 0]


@settings(max_examples=60, deadline=None)
@given(groups=st.sampled_from(GROUPS), rows=st.integers(1, 20), temperature=st.sampled_from((0.3, 1.0, 4.0)),
       epsilon=st.sampled_from((1e-5, 1e-8)), one_row=st.booleans(), seed=st.integers(0, 2**16))
def test_entropies_are_those_of_all_codes(groups, rows, temperature, epsilon, one_row, seed) -> None:
    n, group = groups
    z = normal(rows, n, seed=seed, dtype=torch.float64).requires_grad_()
    logits = 4 * z / temperature
    with mock.patch.object(bits_module, "BLOCK_BYTES", 1 if one_row else 2**24):        # blocks of one row, or one
        ours = sample_entropy(logits), batch_entropy(logits, group, epsilon)
        gradient = [gradients(value, z)[0] for value in ours]
    plain = dense_entropies(z, temperature, group, epsilon)
    for value, expected, slope in zip(ours, plain, gradient, strict=True):
        close(value, expected, 1e-12)
        close(slope, gradients(expected, z)[0], 1e-12)


@pytest.mark.parametrize("group", [8, 4, 2, 1])
def test_entropies_in_single_precision(group) -> None:
    z = normal(500, 8).requires_grad_()
    exact = z.detach().double().requires_grad_()
    ours = sample_entropy(4 * z), batch_entropy(4 * z, group, 1e-5)
    for value, expected in zip(ours, dense_entropies(exact, 1.0, group, 1e-5), strict=True):
        close(value, expected, 2e-6)
        slope, reference = gradients(value, z)[0], gradients(expected, exact)[0]
        close(500 * slope, 500 * reference, 3e-5)                           # of one row's share


def test_certain_bits_have_no_entropy_and_finite_gradients() -> None:
    logits = torch.tensor([[500.0, -500.0], [500.0, -500.0]], requires_grad=True)
    for value in (sample_entropy(logits), batch_entropy(logits, 2, 1e-5), batch_entropy(logits, 1, 1e-5)):
        close(value, torch.tensor(0.0), 1e-4)
        assert gradients(value, logits)[0].isfinite().all()


def test_only_the_full_table_sees_that_bits_move_together() -> None:
    together = torch.tensor([[60.0, 60.0], [-60.0, -60.0]])
    close(batch_entropy(together, 2, 1e-9), torch.tensor(math.log(2)), 1e-6)
    close(batch_entropy(together, 1, 1e-9), torch.tensor(2 * math.log(2)), 1e-6)


# -- FSQ -----------------------------------------------------------------------------------------------------


def plain_fsq(z: Tensor, levels: tuple[int, ...], variant: str) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized values, digits, and how far each bounded value is from the nearest rounding boundary."""
    size = torch.tensor(levels, dtype=torch.float64)
    if variant == "symmetric":
        bounded = (size - 1) * (z.tanh() + 1) / 2 + 0.5
        hard = bounded.floor()
        return 2 / (size - 1) * straight_through(bounded, hard) - 1, hard, (bounded - bounded.round()).abs()
    offset = torch.where(size % 2 == 0, 0.5, 0.0).double()
    half = (size - 1) * (1.001 if variant == "atanh" else 0.999) / 2
    shift = (offset / half).atanh() if variant == "atanh" else (offset / half).tan()
    bounded = half * (z + shift).tanh() - offset
    hard, width = bounded.round(), size // 2
    return straight_through(bounded, hard) / width, hard + width, 0.5 - (bounded - hard).abs()


@pytest.mark.parametrize("positions", [1, 7, 12, 256])
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (4, 7), (8, 8, 8, 6, 5), (16, 15, 1000, 999, 3, 4)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fsq_is_the_plain_formula(variant, levels, positions) -> None:
    fsq = FSQ(SHAPE, levels=levels, variant=variant)
    z = (1.5 * normal(2, positions, len(levels), seed=positions)).requires_grad_()
    exact = z.detach().double().requires_grad_()
    mix = normal(*z.shape, seed=1)
    output = fsq(z)
    expected, digits, margin = plain_fsq(exact, levels, variant)
    sure = margin > 1e-3                        # single precision may round the others either way
    assert sure.double().mean() > 0.9
    assert torch.equal(fsq.digits.unpack(output.codes)[sure], digits.long()[sure])
    close(output.quantized[sure], expected[sure], 1e-6)
    close(gradients((output.quantized * mix).sum(), z)[0], gradients((expected * mix).sum(), exact)[0], 2e-6)
    assert output.losses == {}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 15, 16, 64, 255, 256, 999, 1000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fsq_reaches_every_level_and_no_other(variant, size) -> None:
    if size == 2 and variant != "symmetric":
        with pytest.raises(Incompatible, match="at least 3 levels"):
            FSQ(SHAPE, levels=(size,), variant=variant)
        return
    fsq = FSQ(SHAPE, levels=(size,), variant=variant)
    sweep = torch.cat([torch.linspace(-1, 1, 100_001).double().mul(0.9999999).atanh().float(),
                       torch.tensor([-1e4, -60.0, 60.0, 1e4])])
    output = fsq(sweep[None, :, None])
    assert torch.equal(output.codes.unique(), torch.arange(size))
    values = fsq.lookup(torch.arange(size)[None, :, None]).flatten()
    assert torch.equal(output.quantized.flatten().unique(), values)
    lowest, highest = (-1, 1) if variant == "symmetric" or size % 2 else (-1, 1 - 2 / size)
    close(values, torch.linspace(lowest, highest, size, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 8, 8, 8, 5, 5)])
def test_fsq_codes_and_values_are_each_others_inverse(levels, variant) -> None:
    fsq = FSQ(SHAPE, levels=levels, variant=variant).eval()
    every = [torch.arange(k) for k in fsq.layout.vocab_sizes]
    codes = torch.stack([c[torch.arange(max(map(len, every))) % len(c)] for c in every], -1)[None]
    values = fsq.lookup(codes)
    assert len(values[0].unique(dim=0)) == codes.shape[1]
    # Latents that bound to the middle of each value's cell; the outermost are only reached in the limit.
    size = torch.tensor(levels)
    share = fsq.digits.unpack(codes) / (size - 1)
    if variant == "symmetric":
        latents = (2 * share - 1).clamp(-0.999999, 0.999999).atanh()
    else:
        latents = ((fsq.digits.unpack(codes) - fsq.lowest - fsq.centre) / fsq.slope).clamp(-0.999999, 0.999999)
        latents = latents.atanh() - fsq.shift
    output = fsq(latents)
    assert torch.equal(output.codes, codes)
    assert torch.equal(output.quantized, values)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (4, 7, 16)])
@pytest.mark.parametrize("variant", ["atanh", "symmetric"])
def test_fsq_is_that_of_vector_quantize_pytorch(variant, levels) -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    ours = FSQ(SHAPE, levels=levels, variant=variant)
    theirs = library.FSQ(list(levels), preserve_symmetry=variant == "symmetric")
    z = (1.5 * normal(4, 256, len(levels))).requires_grad_()
    mix = normal(*z.shape, seed=1)
    output = ours(z)
    quantized, codes = theirs(z)
    sure = (plain_fsq(z.detach().double(), levels, variant)[2] > 1e-4).all(-1)
    assert sure.double().mean() > 0.99
    assert torch.equal(output.codes[..., 0][sure], codes.long()[sure])
    close(output.quantized[sure], quantized[sure], 1e-6)
    close(gradients((output.quantized * mix).sum(), z)[0], gradients((quantized * mix).sum(), z)[0], 2e-6)
    every = torch.arange(math.prod(levels))
    close(ours.lookup(every[:, None]), theirs.indices_to_codes(every[None])[0], 1e-6)


# -- LFQ -----------------------------------------------------------------------------------------------------


def number(bits: Tensor, endian: str) -> int:
    text = "".join("1" if bit > 0 else "0" for bit in bits.tolist())
    return int(text if endian == "big" else text[::-1], 2)


@pytest.mark.parametrize("quantizer", [LFQ, BSQ])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize(("bits", "levels", "parts"), [(5, None, (5,)), (18, None, (18,)), (20, None, (10, 10)),
                                                       (7, 2, (4, 3)), (37, None, (13, 12, 12))])
def test_codes_are_binary_numbers(quantizer, endian, bits, levels, parts) -> None:
    module = quantizer(SHAPE, bits=bits, levels=levels, endian=endian, entropy=False)
    assert module.layout.vocab_sizes == tuple(2**part for part in parts)
    z = normal(2, 12, bits)
    output = module(z)
    for row, codes in zip(z.flatten(0, 1), output.codes.flatten(0, 1), strict=True):
        assert codes.tolist() == [number(part, endian) for part in row.split(parts)]
    assert torch.equal(module.lookup(output.codes), output.quantized)


def test_lfq_gives_minus_one_for_zero() -> None:
    output = LFQ(SHAPE, bits=3)(torch.tensor([[[0.0, -0.0, 1e-30]]]))
    assert output.quantized.tolist() == [[[-1, -1, 1]]] and output.codes.tolist() == [[[4]]]


@pytest.mark.parametrize(("kind", "group"), [("full", 8), ("grouped", 4), ("bitwise", 1)])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_lfq_is_the_plain_formula(kind, group, temperature) -> None:
    lfq = LFQ(SHAPE, bits=8, batch_entropy=kind, group_size=4, temperature=temperature, gamma=0.7)
    z = (0.3 * normal(3, 12, 8)).requires_grad_()
    exact = z.detach().double().requires_grad_()
    mix = normal(*z.shape, seed=1)
    output = lfq(z)
    hard = signs(exact)
    sample, batch = dense_entropies(exact.flatten(0, 1), temperature, group, 1e-5)
    plain = {"commitment": (exact - hard.detach()).square().mean(), "entropy": sample - 0.7 * batch}
    assert torch.equal(output.quantized.double(), hard)
    assert lfq.loss_weights == {"commitment": 0.25, "entropy": 0.1} and output.losses.keys() == plain.keys()
    for name, value in plain.items():
        close(output.losses[name], value, 5e-6)
        close(gradients(output.losses[name], z)[0], gradients(value, exact)[0], 5e-6)
    ours = (output.quantized * mix).sum() + sum(output.losses.values())
    reference = (straight_through(exact, hard) * mix).sum() + sum(plain.values())
    close(gradients(ours, z)[0], gradients(reference, exact)[0], 5e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_entropies_are_those_of_vector_quantize_pytorch(spherical) -> None:
    """LFQ, and BSQ as its spherical LFQ; there log is of max(p, 1e-5), so probabilities stay above that."""
    library = pytest.importorskip("vector_quantize_pytorch")
    inverse, bits = 2.0 if spherical else 1.0, 6
    theirs = library.LFQ(dim=bits, codebook_size=2**bits, spherical=spherical, commitment_loss_weight=0.25).train()
    options = {"bits": bits, "endian": "big", "temperature": 1 / inverse, "epsilon": 1e-30}
    ours = BSQ(SHAPE, **options, group_size=bits) if spherical else LFQ(SHAPE, **options)
    z = (0.5 * normal(4, 64, bits)).clamp(-0.4, 0.4).requires_grad_()
    (quantized, codes, _), parts = theirs(z, inv_temperature=inverse, return_loss_breakdown=True)
    output = ours(z)
    assert torch.equal(output.codes[..., 0], codes.long())
    close(output.quantized, quantized, 1e-6)
    expected = parts.per_sample_entropy - parts.batch_entropy
    entropy = output.losses["entropy"] * (inverse if spherical else 1)
    close(entropy, expected, 5e-6)
    rows = 4 * 64
    close(rows * gradients(entropy, z)[0], rows * gradients(expected, z)[0], 2e-5)      # of one row's share
    if not spherical:
        close(output.losses["commitment"], parts.commitment, 1e-6)
        mix = normal(*z.shape, seed=1)
        ours_q, theirs_q = (gradients((q * mix).sum(), z)[0] for q in (ours(z).quantized, theirs(z)[0]))
        close(ours_q, theirs_q, 1e-6)


@pytest.mark.parametrize("quantizer", [LFQ, BSQ])
def test_entropy_boost_falls_linearly_and_is_of_training_alone(quantizer) -> None:
    module = quantizer(SHAPE, bits=4, entropy_boost=2.0, boost_steps=100)
    z = normal(2, 12, 4)
    plain = module.eval()(z).losses["entropy"]
    for step, factor in ((0, 3.0), (25, 2.5), (100, 1.0), (1000, 1.0)):
        module.before_step(step)
        close(module.train()(z).losses["entropy"], factor * plain, 1e-6)
        assert torch.equal(module.eval()(z).losses["entropy"], plain)


def test_the_boost_of_bsqs_commitment_is_that_of_its_entropy() -> None:
    z = normal(2, 12, 4)
    alone, both = (BSQ(SHAPE, bits=4, entropy_boost=2.0, boost_steps=100, commitment=True, boost_commitment=b)
                   for b in (False, True))
    plain = alone.eval()(z).losses["commitment"]
    for step, factor in ((0, 3.0), (50, 2.0), (100, 1.0)):
        for module in (alone, both):
            module.before_step(step)
            module.train()
        close(both(z).losses["commitment"], factor * plain, 1e-6)
        assert torch.equal(alone(z).losses["commitment"], plain)
        assert torch.equal(both(z).losses["entropy"], alone(z).losses["entropy"])
        assert torch.equal(both.eval()(z).losses["commitment"], plain)


# -- BSQ -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [8, 4, 1])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_bsq_is_the_plain_formula(group, temperature) -> None:
    bsq = BSQ(SHAPE, bits=8, group_size=group, temperature=temperature, gamma=0.7, commitment=True)
    z = (3 * normal(3, 12, 8)).requires_grad_()
    exact = z.detach().double().requires_grad_()
    mix = normal(*z.shape, seed=1)
    output = bsq(z)
    u = exact / exact.square().sum(-1, keepdim=True).sqrt()
    q = straight_through(u, signs(u)) / math.sqrt(8)
    sample, batch = dense_entropies(u.flatten(0, 1), temperature, group, 1e-8, scale=1 / math.sqrt(8))
    plain = {"entropy": temperature * (sample - 0.7 * batch),
             "commitment": (u - q.detach()).square().sum(-1).mean()}
    close(output.quantized, q, 1e-7)
    assert bsq.loss_weights == {"entropy": 0.1, "commitment": 1.0} and output.losses.keys() == plain.keys()
    close(gradients((output.quantized * mix).sum(), z)[0], gradients((q * mix).sum(), exact)[0], 1e-6)
    for name, value in plain.items():
        close(output.losses[name], value, 5e-6)
        close(36 * gradients(output.losses[name], z)[0], 36 * gradients(value, exact)[0], 5e-6)


def test_bsq_is_the_nearest_corner_of_the_sphere() -> None:
    bsq = BSQ(SHAPE, bits=6)
    z = normal(2, 12, 6)
    output = bsq(z)
    close(output.quantized.norm(dim=-1), torch.ones(2, 12), 1e-6)
    table = bsq.lookup(torch.arange(64)[:, None])
    nearest = torch.cdist(F.normalize(z, dim=-1).flatten(0, 1), table).argmin(1)
    assert torch.equal(output.codes.flatten(), nearest)
    assert torch.equal(bsq(5 * z).codes, output.codes)


# -- Gumbel --------------------------------------------------------------------------------------------------


def gumbel_logits(module: Gumbel, z: Tensor, codebook: Tensor) -> Tensor:
    if module.to_logits is not None:
        return z @ module.to_logits.weight.detach().double().T + module.to_logits.bias.detach().double()
    return -(z[:, None] - codebook).square().sum(-1)


@pytest.mark.parametrize("logits", ["linear", "distance"])
def test_gumbel_evaluates_the_likeliest_code(logits) -> None:
    torch.manual_seed(0)
    module = Gumbel(SHAPE, codebook_size=32, logits=logits).eval()
    z = normal(3, 12, 8)
    output, again = module(z), module(z)
    table = gumbel_logits(module, z.double().flatten(0, 1), module.codebook.detach().double())
    assert torch.equal(output.codes.flatten(), table.argmax(1))
    assert torch.equal(output.quantized, module.codebook[output.codes[..., 0]])
    assert torch.equal(output.quantized, again.quantized) and torch.equal(output.codes, again.codes)
    expected = kl_divergence(Categorical(logits=table), Categorical(logits=torch.zeros_like(table))).mean()
    close(output.losses["kl"], expected, 2e-6)


@pytest.mark.parametrize("rows", [36, 10, 1])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("logits", ["linear", "distance"])
def test_gumbel_trains_on_the_mixture(logits, hard, rows, monkeypatch) -> None:
    """With the same noise: values and gradients of latents and codebook, in blocks of any number of rows."""
    monkeypatch.setattr(gumbel_module, "BLOCK_BYTES", 4 * 16 * rows)
    torch.manual_seed(0)
    module = Gumbel(SHAPE, codebook_size=16, logits=logits, hard=hard, temperature=0.7).train()
    z = normal(3, 12, 8).requires_grad_()
    mix = normal(3, 12, 8, seed=1)
    torch.manual_seed(5)
    output = module(z)
    ours = gradients((output.quantized * mix).sum() + output.losses["kl"], z, module.codebook)

    torch.manual_seed(5)
    noise = torch.cat([-torch.empty(min(rows, 36 - i), 16).exponential_().log() for i in range(0, 36, rows)]).double()
    exact = z.detach().double().requires_grad_()
    codebook = module.codebook.detach().double().requires_grad_()
    table = gumbel_logits(module, exact.flatten(0, 1), codebook)
    shares = ((table + noise) / 0.7).softmax(1)
    if hard:
        shares = straight_through(shares, F.one_hot(shares.argmax(1), 16).double())
    q = (shares @ codebook).view_as(exact)
    kl = kl_divergence(Categorical(logits=table), Categorical(logits=torch.zeros_like(table))).mean()
    close(output.quantized, q, 5e-6)
    close(output.losses["kl"], kl, 5e-6)
    assert torch.equal(output.codes.flatten(), table.argmax(1))
    for value, expected in zip(ours, gradients((q * mix).sum() + kl, exact, codebook), strict=True):
        close(value, expected, 5e-6)


def test_gumbel_noise_picks_codes_in_proportion() -> None:
    """The largest noisy logit is a draw from softmax(logits): 40,000 draws, at most 5 standard deviations away."""
    module = Gumbel(LatentShape(positions=40_000, dim=2), codebook_size=4, logits="distance").train()
    module.codebook.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])
    torch.manual_seed(0)
    with torch.no_grad():
        q = module(torch.zeros(1, 40_000, 2)).quantized[0]
    counts = torch.cdist(q, module.codebook.data).argmin(1).bincount(minlength=4).double()
    p = (-module.codebook.data.double().square().sum(1)).softmax(0)
    assert ((counts - 40_000 * p).abs() <= 5 * (40_000 * p * (1 - p)).sqrt()).all()


def test_gumbel_schedules() -> None:
    cosine = Gumbel(SHAPE, final_temperature=0.0625, temperature_steps=100, kl_steps=50)
    linear = Gumbel(SHAPE, final_temperature=0.5, temperature_steps=100, schedule="linear")
    constant = Gumbel(SHAPE, temperature=0.8)
    for step, warm, straight, share in ((0, 1.0, 1.0, 0.0), (25, 0.0625 + 0.9375 * (2 + 2**0.5) / 4, 0.875, 0.5),
                                        (50, 0.53125, 0.75, 1.0), (100, 0.0625, 0.5, 1.0), (999, 0.0625, 0.5, 1.0)):
        for module in (cosine, linear, constant):
            module.before_step(step)
        assert cosine.temperature == pytest.approx(warm) and linear.temperature == pytest.approx(straight)
        assert constant.temperature == 0.8 and constant.kl_share == 1.0
        z = normal(1, 12, 8)
        close(cosine.train()(z).losses["kl"], share * cosine.eval()(z).losses["kl"], 1e-6)


# -- Gaussian KL ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["image", "mean"])
def test_gaussian_kl_is_that_of_torch(reduction) -> None:
    module = GaussianKL(SHAPE, reduction=reduction).train()
    latents = normal(3, 12, 16).requires_grad_()
    exact = latents.detach().double().requires_grad_()
    mean, logvar = exact.chunk(2, -1)
    std = (logvar / 2).exp()
    kl = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
    kl = kl.mean() if reduction == "mean" else kl.sum((1, 2)).mean()
    torch.manual_seed(3)
    output = module(latents)
    torch.manual_seed(3)
    sample = mean + std * torch.randn(3, 12, 8).double()
    close(output.losses["kl"], kl, 1e-6)
    close(output.quantized, sample, 1e-6)
    mix = normal(3, 12, 8, seed=1)
    close(gradients((output.quantized * mix).sum() + output.losses["kl"], latents)[0],
          gradients((sample * mix).sum() + kl, exact)[0], 1e-6)
    assert output.codes is None and module.layout.vocab_sizes == ()


def test_gaussian_kl_evaluates_the_mean() -> None:
    module = GaussianKL(SHAPE, dim=5).eval()
    latents = normal(2, 12, 10)
    assert torch.equal(module(latents).quantized, latents[..., :5])
    module.train()
    assert not torch.equal(module(latents).quantized, module(latents).quantized)


def test_gaussian_kl_clamps_the_log_variance() -> None:
    module = GaussianKL(SHAPE, dim=3, logvar_range=(-4.0, 2.0), reduction="mean")
    latents = torch.tensor([[[0.0, 0.0, 0.0, -100.0, 100.0, 1.0]]], requires_grad=True)
    inside = torch.tensor([[[0.0, 0.0, 0.0, -4.0, 2.0, 1.0]]])
    assert torch.equal(module(latents).losses["kl"], module(inside).losses["kl"])
    slope = gradients(module(latents).losses["kl"], latents)[0].flatten()
    assert slope[3] == 0 and slope[4] == 0 and float(slope[5]) == pytest.approx((math.e - 1) / 6)
    torch.manual_seed(0)
    spread = (module.train()(latents.detach().expand(1, 4000, 6)).quantized[0]).std(0)
    assert torch.allclose(spread, torch.tensor([math.exp(-2), math.exp(1), math.exp(0.5)]), rtol=0.06)
    with pytest.raises(ValueError, match="logvar_range"):
        GaussianKL(SHAPE, logvar_range=(2.0, 2.0))


def test_lfq_on_the_sphere_is_lfq_of_latents_brought_to_length_sqrt_n() -> None:
    z = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1)) * 3
    mix = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(2))
    shape = LatentShape(positions=12, dim=5)
    found = []
    for normalize in ("sphere", "none"):
        leaf = z.clone().requires_grad_()
        given = leaf if normalize == "sphere" else leaf * (5**0.5 / leaf.norm(dim=2, keepdim=True))
        out = LFQ(shape, bits=5, normalize=normalize, temperature=1.0)(given)
        loss = (out.quantized * mix).sum() + out.losses["entropy"] + out.losses["commitment"]
        found.append((out.codes, loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-5, atol=1e-5)
