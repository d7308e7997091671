"""The residual autoencoder against formulas written down a second time, and against the published parameter counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implementations.backbones.conv_res import (
    AdaptiveGroupNorm,
    AttnBlock,
    ConvDecoder,
    ConvEncoder,
    Group,
    ResBlock,
    SpatialNorm,
    doubled,
    halved,
)

SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with norms and biases that are not what they were at first."""
    torch.manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def maps(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- taming's forward, from a state dict alone ---------------------------------------------------------------------


def norm(w: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    grouped = x.unflatten(1, (32, -1))
    mean, var = grouped.mean((2, 3, 4), keepdim=True), grouped.var((2, 3, 4), keepdim=True, correction=0)
    x = ((grouped - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
    return x * w[f"{key}.weight"][:, None, None] + w[f"{key}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def conv(w: dict[str, Tensor], key: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, w[f"{key}.weight"], w[f"{key}.bias"], **how)


def res(w: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    h = conv(w, f"{key}.conv1", swish(norm(w, f"{key}.norm1", x)), padding=1)
    h = conv(w, f"{key}.conv2", swish(norm(w, f"{key}.norm2", h)), padding=1)
    return h + (conv(w, f"{key}.nin_shortcut", x) if f"{key}.nin_shortcut.weight" in w else x)


def attn(w: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    h = norm(w, f"{key}.norm", x)
    q, k, v = (conv(w, f"{key}.{part}", h).flatten(2) for part in "qkv")                # [B, C, P]
    weights = (torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5).softmax(2)
    mixed = torch.einsum("bcj,bij->bci", v, weights).view_as(x)
    return x + conv(w, f"{key}.proj_out", mixed)


def test_the_encoder_is_that_of_taming() -> None:
    encoder = shaken(ConvEncoder(6, **SMALL))
    w, x = dict(encoder.named_parameters()), maps(2, 3, 8, 8)
    h = conv(w, "conv_in", x, padding=1)
    h = res(w, "down.0.block.0", h)
    h = conv(w, "down.0.resample.1", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = attn(w, "down.1.attn.0", res(w, "down.1.block.0", h))
    h = res(w, "mid.2", attn(w, "mid.1", res(w, "mid.0", h)))
    h = conv(w, "conv_out", swish(norm(w, "norm_out", h)), padding=1)
    torch.testing.assert_close(encoder(x), h, rtol=0, atol=1e-10)


def test_the_decoder_is_that_of_taming() -> None:
    decoder = shaken(ConvDecoder(6, **SMALL | {"blocks": 2}))
    w, z = dict(decoder.named_parameters()), maps(2, 6, 4, 4)
    h = conv(w, "conv_in", z, padding=1)
    h = res(w, "mid.2", attn(w, "mid.1", res(w, "mid.0", h)))
    for i in range(2):
        h = attn(w, f"up.1.attn.{i}", res(w, f"up.1.block.{i}", h))
    h = conv(w, "up.1.resample.1", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    h = res(w, "up.0.block.1", res(w, "up.0.block.0", h))
    h = conv(w, "conv_out", swish(norm(w, "norm_out", h)), padding=1)
    torch.testing.assert_close(decoder(z), h, rtol=0, atol=1e-10)


def test_without_a_head_the_encoder_gives_its_features() -> None:
    encoder = ConvEncoder(None, **SMALL)
    assert encoder(torch.rand(1, 3, 8, 8)).shape == (1, encoder.width, 4, 4) and encoder.width == 64
    assert not [name for name, _ in encoder.named_parameters() if "out." in name and name.split(".")[-2] != "proj_out"]


# -- parts ---------------------------------------------------------------------------------------------------------


def test_depth_to_space_lays_channels_out_as_pixels() -> None:
    up = doubled(32, "depth_to_space").double()
    x = maps(1, 32, 3, 3)
    wide, out = up[0](x), up(x)
    assert out.shape == (1, 32, 6, 6)
    for p in range(2):
        for q in range(2):
            assert torch.equal(out[0, :, p::2, q::2], wide[0, 32 * (2 * p + q):32 * (2 * p + q + 1)])


@pytest.mark.parametrize("how, pad", [("pad_conv", (0, 1, 0, 1)), ("conv", (1, 1, 1, 1))])
def test_where_a_strided_convolution_stands(how: str, pad: tuple[int, ...]) -> None:
    down = halved(32, how).double()
    convolution = down if how == "conv" else down[1]
    x = maps(1, 32, 6, 6)
    around = F.pad(x, pad)
    patch = around[0, :, 2:5, 4:7]                              # of output (1, 2)
    wanted = (convolution.weight * patch).sum((1, 2, 3)) + convolution.bias
    found = down(x)
    assert found.shape == (1, 32, 3, 3)
    torch.testing.assert_close(found[0, :, 1, 2], wanted, rtol=0, atol=1e-10)


def test_average_pooling_has_nothing_to_learn() -> None:
    down = halved(32, "average")
    x = maps(1, 32, 4, 4)
    assert not list(down.parameters())
    torch.testing.assert_close(down(x)[0, :, 1, 0], x[0, :, 2:4, 0:2].mean((1, 2)), rtol=0, atol=1e-12)


def test_the_shortcut_of_maskgit_loses_the_input() -> None:
    """Its block sees x through a group norm alone, so the size of x is of no consequence; elsewhere it is."""
    x = 10 * maps(1, 32, 4, 4)
    kept = shaken(ResBlock(32, 64, Group, bias=False, shortcut="input"))
    lost = shaken(ResBlock(32, 64, Group, bias=False, shortcut="output"))
    torch.testing.assert_close(lost(2 * x), lost(x), rtol=0, atol=1e-6)
    assert (kept(2 * x) - kept(x)).abs().max() > 0.1
    h = lost.conv2(F.silu(lost.norm2(lost.conv1(F.silu(lost.norm1(x))))))
    torch.testing.assert_close(lost(x), h + F.conv2d(h, lost.nin_shortcut.weight), rtol=0, atol=1e-10)
    same = ResBlock(32, 32, Group, bias=False, shortcut="output").double()
    assert isinstance(same.nin_shortcut, nn.Identity) and (same(2 * x) - same(x)).abs().max() > 0.1


def test_attention_does_not_know_where_positions_are() -> None:
    block = shaken(AttnBlock(32, Group))
    x = maps(1, 32, 2, 6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    moved = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(block(moved), block(x).flatten(2)[..., order].view_as(x), rtol=0, atol=1e-10)


def test_spatial_norm_is_equation_4_of_movq() -> None:
    """q is brought to the size of x first, as the paper has it."""
    module = shaken(SpatialNorm(32, 4))
    x, q = maps(2, 32, 6, 6), maps(2, 4, 3, 3, seed=2)
    w = dict(module.named_parameters())
    large = q.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = norm(w, "norm_layer", x) * conv(w, "conv_y", large) + conv(w, "conv_b", large)
    torch.testing.assert_close(module(x, q), wanted, rtol=0, atol=1e-10)


def test_adaptive_group_norm_takes_deviation_and_mean_of_the_codes() -> None:
    module = shaken(AdaptiveGroupNorm(32, 4))
    x, q = maps(2, 32, 5, 5), maps(2, 4, 3, 3, seed=2)
    out = module(x, q)
    for image in range(2):
        values = q[image].flatten(1)
        deviation = (((values - values.mean(1, keepdim=True)) ** 2).sum(1) / 8 + 1e-6).sqrt()
        gamma = module.gamma.weight @ deviation + module.gamma.bias
        beta = module.beta.weight @ values.mean(1) + module.beta.bias
        plain = x[image].unflatten(0, (32, -1))
        plain = ((plain - plain.mean((1, 2, 3), keepdim=True))
                 / (plain.var((1, 2, 3), keepdim=True, correction=0) + 1e-6).sqrt()).flatten(0, 1)
        torch.testing.assert_close(out[image], plain * gamma[:, None, None] + beta[:, None, None], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["spatial", "adaptive"])
def test_what_the_decoder_is_told_reaches_every_level(kind: str) -> None:
    decoder = shaken(ConvDecoder(4, norm=kind, condition_channels=4, **SMALL))
    q = maps(1, 4, 4, 4).requires_grad_()
    told = decoder(maps(1, 4, 4, 4, seed=2), q)
    assert torch.autograd.grad(told.square().sum(), q)[0].abs().min() > 0
    if kind == "spatial":
        assert not [m for m in decoder.modules() if isinstance(m, Group)]
    else:
        assert len(decoder.adaptive) == len(decoder.up)


def test_attention_stands_where_it_is_asked_for() -> None:
    encoder = ConvEncoder(4, channels=32, multipliers=(1, 1, 2), blocks=2, attention=(2, 4), mid_attention=False)
    assert [len(level.attn) for level in encoder.down] == [0, 2, 2]
    assert not [m for m in encoder.mid if isinstance(m, AttnBlock)] and len(encoder.mid) == 2


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_the_published_trunks_have_their_parameters() -> None:
    """LlamaGen's VQ-16 (encoder 29.30 M, decoder 42.45 M) and VQ-8 (28.56 M, 41.42 M)."""
    with torch.device("meta"):
        for multipliers, factor, sizes in (((1, 1, 2, 2, 4), 16, (29_298_176, 42_449_795)),
                                           ((1, 2, 2, 4), 8, (28_560_000, 41_420_000))):
            network = {"multipliers": multipliers, "attention": (factor,)}
            for module, size in zip((ConvEncoder(256, **network), ConvDecoder(256, **network)), sizes, strict=True):
                assert sum(p.numel() for p in module.parameters()) == pytest.approx(size, rel=0 if factor == 16 else 2e-4)


@pytest.mark.parametrize("wrong, sentence", [
    ({"channels": 24}, "multiples of 32"), ({"multipliers": ()}, "multiples of 32"),
    ({"attention": (16,)}, "1/16 of the image's side, and the levels are at 1/1, 1/2"),
])
def test_impossible_networks_are_refused(wrong: dict, sentence: str) -> None:
    for made in (ConvEncoder, ConvDecoder):
        with pytest.raises(ValueError, match=sentence):
            made(4, **SMALL | wrong)
