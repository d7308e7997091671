"""Residual, grouped and multi-scale quantization around any quantizer, against plain formulas and published code."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, same, small
from torch import Tensor, nn

from bench.interfaces import Incompatible, Quantizer
from bench.registry import available
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.quantizers.ema_vq import EMAVQ
from implementations.quantizers.grouped import Grouped, squared_cosine
from implementations.quantizers.multi_scale import MultiScale, nearest_tick
from implementations.quantizers.residual import Residual
from implementations.quantizers.vq import VQ

SHAPE = LatentShape(positions=12, dim=6, grid=(3, 4))
PARITY = Path(__file__).parent / "parity"
vq = partial(VQ, codebook_size=16, init="normal")
ema = partial(EMAVQ, codebook_size=16, init="normal")
COMBINATORS = [Residual, Grouped, MultiScale]
every_combinator = pytest.mark.parametrize("combinator", COMBINATORS)


def build(make, **keywords) -> Quantizer:
    torch.manual_seed(0)
    return make(SHAPE, **keywords)


def latents_for(quantizer: Quantizer, batch: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SHAPE.positions, quantizer.input_dim, generator=generator)


def golden(name: str, prefix: str = "") -> dict[str, Tensor]:
    with np.load(PARITY / f"{name}.npz") as file:
        return {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file.files if k.startswith(prefix)}


# -- any quantizer inside ----------------------------------------------------------------------------------


@every_combinator
@pytest.mark.parametrize("name", available("quantizer"))
def test_any_quantizer_fits_inside_or_says_why_not(combinator: type, name: str) -> None:
    try:
        quantizer = build(combinator, quantizer=small("quantizer", name).partial())
    except Incompatible:
        inner = build(small("quantizer", name).partial())
        scaled = combinator is MultiScale and inner.layout.num_tokens != SHAPE.positions
        assert not inner.layout.vocab_sizes or inner.input_dim != inner.output_dim or scaled
        return
    for step in range(2):
        quantizer.train().before_step(step)
        latents = latents_for(quantizer).requires_grad_()
        out = quantizer(latents)
        assert out.codes.shape == (3, quantizer.layout.num_tokens, len(quantizer.layout.vocab_sizes))
        assert (out.codes >= 0).all() and (out.codes < torch.tensor(quantizer.layout.vocab_sizes)).all()
        assert set(out.losses) == set(quantizer.loss_weights)
        out.quantized.square().sum().backward()
        assert latents.grad.isfinite().all() and latents.grad.abs().max() > 0
        with torch.no_grad():
            quantizer.after_step(step)
    out = quantizer.eval()(latents)
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)
    books = quantizer.codebooks()
    assert books == () or [len(b) for b in books] == list(quantizer.layout.vocab_sizes)
    assert len(quantizer.tables()) == len(quantizer.layout.vocab_sizes)


@pytest.mark.parametrize("make, levels, tokens", [
    (partial(Residual, quantizer=partial(Residual, quantizer=vq, levels=2), levels=3), 6, 12),
    (partial(Residual, quantizer=partial(Grouped, quantizer=ema, groups=3), levels=2, shared=False), 6, 12),
    (partial(Grouped, quantizer=partial(Residual, quantizer=vq, levels=3), groups=2), 6, 12),
    (partial(Grouped, quantizer=partial(MultiScale, quantizer=vq), groups=2, shared=True), 2, 1 + 4 + 12),
    (partial(Residual, quantizer=partial(MultiScale, quantizer=vq), levels=2), 2, 1 + 4 + 12),
    (partial(MultiScale, quantizer=partial(Grouped, quantizer=vq, groups=2)), 2, 1 + 4 + 12),
])
def test_combinators_combine(make, levels: int, tokens: int) -> None:
    quantizer = build(make)
    assert quantizer.layout.vocab_sizes == (16,) * levels and quantizer.layout.num_tokens == tokens
    out = quantizer.eval()(latents_for(quantizer))
    assert out.codes.shape == (3, tokens, levels) and torch.equal(quantizer.lookup(out.codes), out.quantized)
    again = build(make)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.eval()(latents_for(quantizer)).codes, out.codes)


class Continuous(Quantizer):
    def __init__(self, latent: LatentShape, *, width: int | None = None) -> None:
        super().__init__()
        self.input_dim, self.output_dim = latent.dim, width or latent.dim
        self.layout = TokenLayout(latent.positions, () if width is None else (2,))

    def forward(self, latents: Tensor) -> QuantizerOutput:
        return QuantizerOutput(latents, None)


@every_combinator
def test_continuous_quantizers_are_refused(combinator: type) -> None:
    with pytest.raises(Incompatible, match="Continuous has none"):
        build(combinator, quantizer=Continuous)


@pytest.mark.parametrize("combinator", [Residual, MultiScale])
def test_a_quantizer_that_changes_the_width_has_no_residual(combinator: type) -> None:
    with pytest.raises(Incompatible, match="takes 6 channels and hands out 5"):
        build(combinator, quantizer=partial(Continuous, width=5))


@pytest.mark.parametrize("make, word", [
    (partial(Residual, levels=0), "levels"), (partial(Residual, levels=2, fewest_levels=3), "fewest_levels"),
    (partial(Residual, dropout_multiple=0), "dropout_multiple"), (partial(Residual, shrink=0.0), "shrink"),
    (partial(Residual, shrink=(2.0, 2.0)), "shrink"), (partial(Grouped, groups=0), "groups"),
    (partial(Grouped, groups=1, disentangle=True), "disentangle"), (partial(Grouped, masking=(0.1, 0.2)), "masking"),
    (partial(Grouped, masking=(0.0,)), "masking"), (partial(Grouped, groups=7), "7 groups"),
    (partial(MultiScale, scales=(1, 3)), "scales"), (partial(MultiScale, scales=(2, 1, 4)), "scales"),
    (partial(MultiScale, phi_ratio=1.5), "phi_ratio"), (partial(MultiScale, phi_count=0), "phi_count"),
])
def test_bad_values_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build(make, quantizer=vq)


def test_multi_scale_wants_a_grid_and_one_token_a_position() -> None:
    with pytest.raises(Incompatible, match="grid"):
        MultiScale(LatentShape(12, 6), quantizer=vq)
    with pytest.raises(Incompatible, match="one token a position"):
        build(MultiScale, quantizer=partial(MultiScale, quantizer=vq))


# -- residual ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(levels=st.integers(1, 5), shared=st.booleans(), seed=st.integers(0, 2**16))
def test_residual_is_the_greedy_sum_of_brute_force(levels: int, shared: bool, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = Residual(SHAPE, quantizer=vq, levels=levels, shared=shared).eval()
    z = latents_for(quantizer, seed=seed)
    out = quantizer(z)
    rest, total, commitment = z.double().numpy(), 0.0, []
    for level, book in enumerate(quantizer.codebooks()):
        table = book.detach().double().numpy()
        codes = ((rest[:, :, None] - table) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(out.codes[..., level].numpy(), codes)
        total, rest = total + table[codes], rest - table[codes]
        commitment.append((rest**2).mean())
    np.testing.assert_allclose(out.quantized.detach().numpy(), total, rtol=1e-5, atol=1e-5)
    assert float(out.losses["commitment"].detach()) == pytest.approx(np.mean(commitment), rel=1e-5)


def test_partial_sums_of_a_residual_end_in_the_lookup_and_take_fewer_levels() -> None:
    quantizer = build(Residual, quantizer=vq, levels=3).eval()
    codes = quantizer(latents_for(quantizer)).codes
    sums = quantizer.partial_sums(codes)
    assert len(sums) == 3 and torch.equal(sums[-1], quantizer.lookup(codes))
    assert torch.equal(quantizer.lookup(codes[..., :2]), sums[1])


@pytest.mark.parametrize("gradient, times", [("once", 1), ("each", 3), ("chain", 1)])
def test_gradient_of_the_sum_of_straight_through_levels(gradient: str, times: int) -> None:
    quantizer = build(Residual, quantizer=vq, levels=3, gradient=gradient, shared=False).train()
    z = latents_for(quantizer).requires_grad_()
    mix = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    out = quantizer(z)
    got, = torch.autograd.grad((out.quantized * mix).sum(), z, retain_graph=True)
    torch.testing.assert_close(got, times * mix, rtol=1e-5, atol=1e-5)
    commitment, = torch.autograd.grad(out.losses["commitment"], z)
    sums = quantizer.partial_sums(out.codes)
    seen = sums[:1] if gradient == "chain" else sums
    wanted = sum(2 * (z - s) for s in seen) / z.numel() / 3
    torch.testing.assert_close(commitment, wanted.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reduction, factor", [("mean", 1), ("sum", 3)])
def test_losses_of_levels_are_averaged_or_summed(reduction: str, factor: int) -> None:
    mean = build(Residual, quantizer=vq, levels=3).train()
    other = build(Residual, quantizer=vq, levels=3, loss_reduction=reduction).train()
    z = latents_for(mean)
    for name, value in mean(z).losses.items():
        torch.testing.assert_close(other(z).losses[name], factor * value)
    assert other.loss_weights == {"commitment": 0.25, "codebook": 1.0}


def test_a_shared_moving_average_gathers_all_levels_and_moves_once() -> None:
    quantizer = build(Residual, quantizer=ema, levels=3).train()
    z = latents_for(quantizer)
    before = quantizer.codebooks()[0].clone()
    out = quantizer(z)
    inner = quantizer.parts[0]
    assert len(quantizer.parts) == 1 and torch.equal(inner.codebook, before)
    assert torch.equal(inner.step_counts.long(), torch.bincount(out.codes.flatten(), minlength=16))
    quantizer.after_step(0)
    assert int(inner.updates) == 1 and not inner.step_counts.any() and not torch.equal(inner.codebook, before)


@pytest.mark.parametrize("shared", [True, False])
def test_levels_dropped_for_the_batch_add_nothing_and_learn_nothing(shared: bool) -> None:
    quantizer = build(Residual, quantizer=ema, levels=4, dropout="batch", shared=shared).train()
    z = latents_for(quantizer)
    seen = set()
    for step in range(20):
        quantizer.before_step(step)
        out = quantizer(z)
        counts = [float(part.step_counts.sum()) for part in quantizer.parts]
        kept = round(sum(counts)) // z[..., 0].numel()
        seen.add(kept)
        assert torch.equal(out.quantized, quantizer.partial_sums(out.codes)[kept - 1])
        assert all(part.training for part in quantizer.parts)
        for part in quantizer.parts:
            part.step_counts.zero_()
    assert seen == {1, 2, 3, 4}
    quantizer.before_step(3)
    first = quantizer(z).quantized
    quantizer.before_step(3)
    assert torch.equal(quantizer(z).quantized, first)                   # a resumed step draws the same
    torch.manual_seed(5)
    other = Residual(SHAPE, quantizer=ema, levels=4, dropout="batch", shared=shared)
    other.load_state_dict(quantizer.state_dict())
    other.train().before_step(3)
    assert torch.equal(other(z).quantized, first)
    assert torch.equal(quantizer.eval()(z).quantized, quantizer.lookup(quantizer(z).codes))


def test_levels_dropped_for_each_image_and_their_rounding() -> None:
    quantizer = build(Residual, quantizer=ema, levels=4, dropout="image", dropout_multiple=2, shared=False).train()
    z = latents_for(quantizer, batch=32)
    out = quantizer(z)
    sums = torch.stack(quantizer.partial_sums(out.codes))
    kept = torch.tensor([[torch.equal(out.quantized[b], s[b]) for s in sums] for b in range(32)])
    assert (kept.sum(1) == 1).all() and set((kept.long().argmax(1) + 1).tolist()) == {2, 4}
    counts = [float(part.step_counts.sum()) for part in quantizer.parts]
    full = int(kept[:, 3].sum()) * SHAPE.positions
    assert counts == [32 * 12, 32 * 12, full, full]


@pytest.mark.parametrize("shrink", [2.0, (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)])
def test_shrinking_levels_search_a_finer_table(shrink) -> None:
    quantizer = build(Residual, quantizer=vq, levels=3, shrink=shrink).eval()
    z = latents_for(quantizer)
    out = quantizer(z)
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)
    table = quantizer.parts[0].codebook.detach()
    factors = torch.tensor(shrink) if isinstance(shrink, tuple) else torch.full((6,), shrink)
    rest = z
    for level, book in enumerate(quantizer.codebooks()):
        torch.testing.assert_close(book, table * factors**level)
        codes = torch.cdist(rest / factors**level, table).argmin(-1)
        assert torch.equal(out.codes[..., level], codes)
        rest = rest - book[codes]


@pytest.mark.parametrize("shared", [True, False])
def test_residual_has_the_values_of_rq_vae(shared: bool) -> None:
    """Codes and quantized are equal; loss and gradient to 1e-6."""
    given = golden("rq_vae", "shared." if shared else "own.")
    quantizer = Residual(LatentShape(12, 5, (3, 4)), quantizer=ema, levels=3, shared=shared)
    for part, book in zip(quantizer.parts, given["books"], strict=False):
        part.codebook.copy_(book)
    z = given["z"].flatten(1, 2).requires_grad_()
    out = quantizer.eval()(z)
    assert torch.equal(out.codes, given["codes"].flatten(1, 2))
    torch.testing.assert_close(out.quantized, given["quantized"].flatten(1, 2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.losses["commitment"].detach(), given["commitment"], rtol=1e-6, atol=1e-6)
    loss = (out.quantized * given["mix"].flatten(1, 2)).sum() + 0.25 * out.losses["commitment"]
    gradient, = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradient, given["gradient"].flatten(1, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fraction, gradient", [(0.0, "each"), (1.0, "chain")])
def test_residual_has_the_values_and_gradients_of_vector_quantize_pytorch(fraction: float, gradient: str) -> None:
    peer = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs = peer.ResidualVQ(dim=6, num_quantizers=3, codebook_size=16, quant_grad_frac=fraction, commitment_weight=1.0,
                             rotation_trick=False).train()
    quantizer = Residual(SHAPE, quantizer=ema, levels=3, shared=False, gradient=gradient, loss_reduction="sum").train()
    for part, layer in zip(quantizer.parts, theirs.layers, strict=True):
        layer._codebook.embed.copy_(torch.randn(1, 16, 6))
        part.codebook.copy_(layer._codebook.embed[0])
    z = latents_for(quantizer)
    mix = torch.randn(z.shape)
    found = []
    for ours in (True, False):
        x = z.clone().requires_grad_()
        if ours:
            out = quantizer(x)
            q, codes, loss = out.quantized, out.codes, out.losses["commitment"]
        else:
            q, codes, losses = theirs(x, freeze_codebook=True)
            loss = losses.sum()
        found.append((q.detach(), codes, loss.detach(), *torch.autograd.grad((q * mix).sum() + loss, x)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


# -- grouped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_are_quantized_on_their_own(groups: int, shared: bool) -> None:
    quantizer = build(Grouped, quantizer=vq, groups=groups, shared=shared).train()
    z = latents_for(quantizer).requires_grad_()
    out = quantizer(z)
    assert len(quantizer.parts) == (1 if shared else groups)
    losses = []
    for i, (part, book) in enumerate(zip(z.chunk(groups, -1), quantizer.codebooks(), strict=True)):
        codes = torch.cdist(part.double(), book.double()).argmin(-1)
        assert torch.equal(out.codes[..., i], codes)
        assert torch.equal(out.quantized.chunk(groups, -1)[i], book[codes])
        losses.append(F.mse_loss(part, book[codes]))
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(out.losses["commitment"], mean)
    summed = build(Grouped, quantizer=vq, groups=groups, shared=shared, loss_reduction="sum").train()(z).losses
    torch.testing.assert_close(summed["commitment"], groups * mean)
    gradient, = torch.autograd.grad(out.quantized.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_groups_that_do_not_divide_the_width_get_less_of_it() -> None:
    assert build(Grouped, quantizer=vq, groups=4).input_dim == 4
    assert build(Grouped, quantizer=partial(vq, codebook_dim=8), groups=4).input_dim == 32


def test_disentanglement_is_the_mean_squared_cosine_and_leaves_tables_alone() -> None:
    quantizer = build(Grouped, quantizer=vq, groups=3, disentangle=True).train()
    z = latents_for(quantizer).requires_grad_()
    out = quantizer(z)
    assert quantizer.loss_weights["disentangle"] == 0.1
    parts = out.quantized.detach().double().numpy().reshape(3, 12, 3, 2)
    cosines = [(parts[:, :, i] * parts[:, :, j]).sum(-1)
               / np.linalg.norm(parts[:, :, i], axis=-1) / np.linalg.norm(parts[:, :, j], axis=-1)
               for i, j in combinations(range(3), 2)]
    assert float(out.losses["disentangle"].detach()) == pytest.approx(np.mean(np.square(cosines)), rel=1e-5)
    found = torch.autograd.grad(out.losses["disentangle"], [z, *quantizer.parameters()], allow_unused=True)
    assert found[0].abs().max() > 0 and all(g is None or not g.any() for g in found[1:])
    with pytest.raises(Incompatible, match="disentangle"):
        build(Grouped, quantizer=partial(Grouped, quantizer=vq, groups=3, disentangle=True), groups=2,
              disentangle=True)


def test_squared_cosine_of_orthogonal_and_parallel_parts() -> None:
    a, b = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
    assert float(squared_cosine([a, b])) == 0 and float(squared_cosine([a, -2 * a])) == 1
    assert float(squared_cosine([a, b, a])) == pytest.approx(1 / 3)


def test_disentanglement_has_the_value_and_gradients_of_fqgan() -> None:
    """To 1e-6."""
    given = golden("fqgan")
    parts = [given[k].flatten(2).transpose(1, 2).contiguous().requires_grad_() for k in "ab"]
    loss = 0.1 * squared_cosine(parts)
    torch.testing.assert_close(loss.detach(), given["loss"], rtol=1e-6, atol=1e-7)
    for gradient, k in zip(torch.autograd.grad(loss, parts), "ab", strict=True):
        torch.testing.assert_close(gradient, given[f"grad_{k}"].flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shared", [True, False])
def test_masked_groups_are_the_last_ones_and_learn_nothing(shared: bool) -> None:
    quantizer = build(Grouped, quantizer=ema, groups=3, shared=shared, masking=(0.0, 0.4, 0.7)).train()
    z = latents_for(quantizer)
    whole = build(Grouped, quantizer=ema, groups=3, shared=shared).eval()(z)
    seen = set()
    for step in range(40):
        quantizer.before_step(step)
        out = quantizer(z)
        kept = round(float(sum(part.step_counts.sum() for part in quantizer.parts))) // z[..., 0].numel()
        seen.add(kept)
        assert torch.equal(out.quantized[..., : 2 * kept], whole.quantized[..., : 2 * kept])
        assert not out.quantized[..., 2 * kept :].any() and torch.equal(out.codes, whole.codes)
        rests = (z - whole.quantized).chunk(3, -1)
        wanted = sum(rest.square().mean() for rest in rests[:kept]) / 3
        if not shared:
            torch.testing.assert_close(out.losses["commitment"], wanted)
        for part in quantizer.parts:
            part.step_counts.zero_()
    assert seen == {1, 2, 3}


# -- multi-scale -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid, scales, wanted", [
    ((3, 4), (), ((1, 1), (2, 2), (3, 4))), ((8, 8), (), ((1, 1), (2, 2), (4, 4), (8, 8))), ((1, 1), (), ((1, 1),)),
    ((2, 5), (), ((1, 1), (1, 2), (2, 4), (2, 5))), ((4, 2), (2, 2, 4), ((2, 1), (2, 1), (4, 2))),
])
def test_scales_of_a_grid(grid, scales, wanted) -> None:
    quantizer = MultiScale(LatentShape(grid[0] * grid[1], 3, grid), quantizer=vq, scales=scales)
    assert quantizer.layout.grids == wanted and quantizer.layout.num_tokens == sum(h * w for h, w in wanted)


def test_vars_scales_make_680_tokens() -> None:
    scales = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    quantizer = MultiScale(LatentShape(256, 4, (16, 16)), quantizer=vq, scales=scales)
    assert quantizer.layout.num_tokens == 680


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("scales", range(2, 15))
def test_ticks_are_those_of_the_published_code(count: int, scales: int) -> None:
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    wanted = [int(np.argmin(np.abs(ticks - s / (scales - 1)))) for s in range(scales)]
    assert [nearest_tick(s, scales, count) for s in range(scales)] == wanted


def test_one_scale_without_convolutions_is_the_quantizer_itself() -> None:
    quantizer = build(MultiScale, quantizer=vq, scales=(4,), phi="none").train()
    z = latents_for(quantizer)
    ours, plain = quantizer(z), quantizer.inner(z)
    assert torch.equal(ours.quantized, plain.quantized) and torch.equal(ours.codes, plain.codes)
    for name, value in plain.losses.items():
        torch.testing.assert_close(ours.losses[name], value)


def test_partial_sums_of_scales_end_in_the_lookup_and_take_fewer_scales() -> None:
    quantizer = build(MultiScale, quantizer=vq).eval()
    codes = quantizer(latents_for(quantizer)).codes
    sums = quantizer.partial_sums(codes)
    assert len(sums) == 3 and torch.equal(sums[-1], quantizer.lookup(codes))
    assert torch.equal(quantizer.lookup(codes[:, :5]), sums[1])


def test_only_what_can_learn_has_a_codebook_loss() -> None:
    assert build(MultiScale, quantizer=ema, phi="none").loss_weights == {"commitment": 0.25}
    assert build(MultiScale, quantizer=ema).loss_weights == {"commitment": 0.25, "codebook": 1.0}
    entropy = build(MultiScale, quantizer=partial(vq, entropy=True)).train()
    assert set(entropy(latents_for(entropy)).losses) == {"commitment", "codebook", "entropy"}


@pytest.mark.parametrize("phi", ["shared", "partial", "separate"])
def test_multi_scale_has_the_values_and_gradients_of_var(phi: str) -> None:
    """Codes are equal, values to 1e-5, gradients to 1e-5."""
    given = golden("var", f"{phi}.")
    quantizer = MultiScale(LatentShape(36, 5, (6, 6)), quantizer=vq, scales=(1, 2, 3, 4, 6), phi=phi).train()
    with torch.no_grad():
        quantizer.inner.codebook.copy_(given["table"])
        for conv, weight, bias in zip(quantizer.phi, given["weights"], given["biases"], strict=True):
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)
    f = given["f"].flatten(2).transpose(1, 2).contiguous().requires_grad_()
    out = quantizer(f)
    assert torch.equal(out.codes[..., 0], given["codes"])
    torch.testing.assert_close(out.quantized, given["f_hat"].flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    loss = sum(quantizer.loss_weights[k] * v for k, v in out.losses.items())
    torch.testing.assert_close(loss.detach(), given["loss"], rtol=1e-5, atol=1e-6)
    first = quantizer.phi[0]
    total = (out.quantized * given["mix"].flatten(2).transpose(1, 2)).sum() + loss
    found = torch.autograd.grad(total, [f, quantizer.inner.codebook, first.weight, first.bias])
    wanted = [given["grad_f"].flatten(2).transpose(1, 2), given["grad_table"], given["grad_weight"], given["grad_bias"]]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@every_combinator
def test_it_trains_alone(combinator: type) -> None:
    quantizer = build(combinator, quantizer=vq).train()
    head = nn.Linear(4, quantizer.input_dim)
    optimizer = torch.optim.Adam([*quantizer.parameters(), *head.parameters()], lr=1e-2)
    features = torch.randn(8, 12, 4, generator=torch.Generator().manual_seed(3), device=CPU)
    values = []
    for step in range(60):
        quantizer.before_step(step)
        target = head(features)
        quantized, loss, _ = quantizer.quantize(target)
        optimizer.zero_grad()
        (loss + F.mse_loss(quantized, latents_for(quantizer, batch=8))).backward()
        optimizer.step()
        with torch.no_grad():
            quantizer.after_step(step)
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


@every_combinator
def test_eval_does_not_depend_on_the_other_images(combinator: type) -> None:
    quantizer = build(combinator, quantizer=vq).eval()
    z = latents_for(quantizer, batch=5)
    together, alone = quantizer(z), [quantizer(image[None]) for image in z]
    assert not same(together.codes, torch.cat([out.codes for out in alone]))
    torch.testing.assert_close(together.quantized, torch.cat([out.quantized for out in alone]), rtol=1e-5, atol=1e-6)
