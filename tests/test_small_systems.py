"""Sonnet's VQ-VAE, VQ-VAE-2, DALL-E's dVAE, ViT-VQGAN, BSQ-ViT and TiTok: sizes as published, and what is particular."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import fail, small

from bench.code_histogram import entropy
from bench.interfaces import Tokenizer
from bench.losses.logit_laplace import LogitLaplace
from bench.metrics.rate import Rate
from bench.metrics.usage import Usage
from bench.spec import bind
from bench.types import Batch
from implementations.backbones.vit import Block, sine_positions
from implementations.codebook.alignments.contrastive import Contrastive
from implementations.codebook.distances.cosine import Cosine
from implementations.codebook.distances.l2 import L2


def on_meta(image_size: int, **written: Any) -> Tokenizer:
    with torch.device("meta"):
        return bind("tokenizer", written, ("tokenizer",), fail).partial()(image_size)


def tiny(name: str, image_size: int = 32, **keywords: Any) -> Tokenizer:
    torch.manual_seed(0)
    return small("tokenizer", name, **keywords).partial()(image_size)


EMA = {"name": "ema_vq", "codebook_size": 512, "zero_count": "zero_debiased", "init": "variance"}
#: (what a suite writes, image size, parameters of the public code without a codebook that is no parameter there, tokens)
PUBLISHED = [
    # hoanhle/vqvae: 256 and 256 channels, codes of 32
    ({"name": "vqvae_sonnet", "quantizer": EMA | {"codebook_dim": 32}}, 32, 4_357_155, 64),
    # lyndonzheng/CVQ-VAE: 128 and 32 channels, 512 codes of 64
    ({"name": "vqvae_sonnet", "hidden": 128, "residual_hidden": 32, "rectified_skip": True,
      "quantizer": {"name": "codebook_vq", "codebook_size": 512, "codebook_dim": 64}}, 32, 695_491, 64),
    # rosinality/vq-vae-2-pytorch, and with the paper's residual width
    ({"name": "vqvae2"}, 256, 1_388_867, 32 * 32 + 64 * 64),
    ({"name": "vqvae2", "residual_hidden": 64}, 256, 1_716_803, 32 * 32 + 64 * 64),
    # openai/DALL-E: 53,786,240 and 43,829,766, less 128 biases of the decoder's first layer, which are part of the codes
    ({"name": "dvae"}, 256, 97_616_006 - 128, 32 * 32),
    # thuanz123/enhancing-transformers: small, base, large
    ({"name": "vit_vqgan", "width": 512, "depth": 8, "heads": 8}, 256, 50_908_195, 32 * 32),
    ({"name": "vit_vqgan"}, 256, 170_664_483, 32 * 32),
    ({"name": "vit_vqgan", "width": 512, "depth": 8, "heads": 8, "decoder_width": 1280, "decoder_depth": 32,
      "decoder_heads": 16}, 256, 613_487_907, 32 * 32),
    # zhaoyue-zephyrus/bsq-vit
    ({"name": "bsq_vit"}, 256, 174_816_210, 32 * 32),
    ({"name": "bsq_vit", "quantizer": {"name": "bsq", "bits": 36}}, 256, 174_843_876, 32 * 32),
    # bytedance/1d-tokenizer: S-128, B-64, L-32 with the proxy's decoder, and B-64 that writes pixels
    ({"name": "titok", "tokens": 128, "width": 512, "depth": 8, "heads": 8, "head": "proxy", "mixed": True}, 256, 83_674_639, 128),
    ({"name": "titok", "head": "proxy", "mixed": True}, 256, 204_814_095, 64),
    ({"name": "titok", "tokens": 32, "width": 1024, "depth": 24, "heads": 16, "head": "proxy", "mixed": True}, 256, 641_054_735, 32),
    ({"name": "titok"}, 256, 171_909_216, 64),
]


@pytest.mark.parametrize("written, image_size, parameters, tokens", PUBLISHED,
                         ids=[f"{w['name']}-{n}" for w, _, n, _ in PUBLISHED])
def test_sizes_are_the_published_ones(written: dict[str, Any], image_size: int, parameters: int, tokens: int) -> None:
    model = on_meta(image_size, **written)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.layout.num_tokens == tokens


# -- Sonnet's VQ-VAE and CVQ-VAE -------------------------------------------------------------------------------------


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_sonnet_halves_as_often_as_it_is_told(halvings: int) -> None:
    model = tiny("vqvae_sonnet", 32, halvings=halvings).eval()
    out = model(torch.zeros(1, 3, 32, 32))
    assert out.latents.shape[1] == (32 // 2**halvings) ** 2 and out.reconstruction.shape == (1, 3, 32, 32)


def test_sonnets_pixel_range_scales_what_the_network_sees_and_writes() -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    whole, half = tiny("vqvae_sonnet").eval(), tiny("vqvae_sonnet", pixel_range=0.5).eval()
    with torch.no_grad():
        assert torch.equal(half.encode(images), whole.encode(images / 2))
        quantized = whole(images).quantized
        assert torch.equal(half.decode(quantized), whole.decode(quantized) * 2)


@pytest.mark.parametrize("distance", [L2(), Cosine(handed="raw")], ids=["l2", "cosine"])
@pytest.mark.parametrize("latents", [24, 5])
def test_the_contrastive_loss_is_the_cross_entropy_of_near_against_far_latents(distance: L2, latents: int) -> None:
    """Formula of the paper's code, latents one at a time, in float64."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(latents, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(8, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    found = Contrastive(table.detach())(z, table, distance)["contrastive"]
    expected = 0.0
    for code in table:
        if isinstance(distance, Cosine):
            similarities = F.cosine_similarity(code[None], z.detach())
        else:
            similarities = -(code - z.detach()).square().sum(1)
        order = similarities.argsort()
        positive = similarities[order[-max(1, latents // 8):]].mean()
        logits = torch.stack([positive, *similarities[order[: latents // 2]]]) / 0.07
        expected = expected - logits.log_softmax(0)[0] / 8
    torch.testing.assert_close(found, expected)
    found.backward()
    mine, table.grad = table.grad, None
    expected.backward()
    torch.testing.assert_close(mine, table.grad)
    assert z.grad is None and mine.any(1).all()         # unused codes learn, the encoder does not


# -- VQ-VAE-2 --------------------------------------------------------------------------------------------------------


def test_vqvae2_has_two_grids_with_codes_of_their_own() -> None:
    layout = on_meta(256, name="vqvae2").layout
    assert layout.grids == ((32, 32), (64, 64)) and layout.separate and layout.vocab_sizes == (1024,)
    assert layout.bits_per_image == 5120 * 9
    model = tiny("vqvae2", 32).eval()
    with torch.no_grad():
        coarse, fine = model(torch.rand(4, 3, 32, 32) * 2 - 1).codes.split([16, 64], 1)
    half = len(model.quantizer.codebooks()[0]) // 2
    assert (coarse < half).all() and (fine >= half).all()
    assert torch.equal(model.quantizer.codebooks()[0][half:], model.quantizer.parts[1].codebooks()[0])


def test_vqvae2s_fine_latents_see_the_coarse_codes_and_the_coarse_latents_learn_from_them() -> None:
    model = tiny("vqvae2", 32)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = model(images)
    gradients = torch.autograd.grad(out.latents[:, 16:].square().sum(), [model.to_coarse.weight, model.upsample.weight],
                                    allow_unused=True)
    assert gradients[0].any() and gradients[1] is None
    with torch.no_grad():
        before = model.eval().encode(images)
        model.quantizer.parts[0].codebook.add_(1.0)
        after = model.encode(images)
    assert torch.equal(before[:, :16], after[:, :16]) and not torch.equal(before[:, 16:], after[:, 16:])


def test_vqvae2_counts_each_image_once_a_step() -> None:
    model = tiny("vqvae2", 32)
    model(torch.rand(3, 3, 32, 32))
    assert [float(part.step_counts.sum()) for part in model.quantizer.parts] == [3 * 16, 3 * 64]


@pytest.mark.parametrize("quantizer, learned", [("ema_vq", False), ("vq", True)])
def test_vqvae2s_codes_that_learn_are_not_counted_twice(quantizer: str, learned: bool) -> None:
    model = tiny("vqvae2", 32, quantizer={"name": quantizer, "codebook_size": 16, "codebook_dim": 4})
    assert model.quantizer.fixed_codes() == (0 if learned else 2 * 16 * 4)


def test_separate_grids_are_measured_over_codes_of_their_own() -> None:
    model = tiny("vqvae2", 16).eval()
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        out = model(images)
    out.codes = torch.cat([torch.randint(16, (5, 4, 1)), torch.randint(7, (5, 16, 1)) + 16], 1)
    grids = out.codes[..., 0].split([4, 16], 1)
    shares = [len(grid.unique()) / 16 for grid in grids]
    usage, rate = Usage(), Rate(coding="entropy")
    for metric in (usage, rate):
        metric.begin(model.layout, 5, torch.device("cpu"))
        metric.update(images, out, torch.arange(5))
    found = usage.details(usage.sums())
    assert [found["scale0"], found["scale1"]] == pytest.approx(shares)
    assert usage.compute(usage.sums()) == pytest.approx(sum(shares) / 2)
    bits = sum(grid.numel() * float(entropy(grid.flatten().bincount().double())) for grid in grids) / math.log(2)
    assert rate.compute(rate.sums()) == pytest.approx(bits / 5)


# -- dVAE ------------------------------------------------------------------------------------------------------------


def test_the_dvaes_likelihood_is_that_of_its_own_location_and_scale() -> None:
    """Density of the mapped pixel under a Laplace distribution of its logit, by change of variables, in float64."""
    model = tiny("dvae", 16).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        out = model(images)
        location, log_scale = (t.double() for t in model._distribution(out.quantized))
        found = LogitLaplace()(Batch(images), out)
    y = 0.4 * (images.double() + 1) + 0.1
    density = torch.distributions.Laplace(location, log_scale.exp()).log_prob(torch.logit(y)) - (y * (1 - y)).log()
    torch.testing.assert_close(float(found), -float(density.mean()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(0.4 * (out.reconstruction.double() + 1) + 0.1, torch.sigmoid(location), rtol=0, atol=1e-6)


def test_the_dvae_mixes_codes_in_training_and_takes_one_in_eval() -> None:
    model = tiny("dvae", 16, quantizer={"name": "gumbel", "codebook_size": 16, "codebook_dim": 4, "full_width": True,
                                        "hard": False, "final_temperature": 0.0625, "temperature_steps": 10})
    assert model.quantizer.input_dim == 64 and model.quantizer.output_dim == 4
    images = torch.rand(2, 3, 16, 16) * 2 - 1

    def far_from_codes() -> float:
        with torch.no_grad():
            quantized = model(images).quantized
            return float(torch.cdist(quantized, model.quantizer.codebook[None]).amin(2).mean())

    model.before_step(0)
    warm = far_from_codes()
    model.before_step(10)
    cold = far_from_codes()
    assert far_from_codes() > 0 and cold < 0.5 * warm and model.quantizer.temperature == 0.0625
    model.eval()
    assert far_from_codes() == pytest.approx(0, abs=1e-3)


def test_gumbels_full_width_is_for_a_linear_map() -> None:
    with pytest.raises(ValueError, match="full_width is for logits: linear"):
        tiny("dvae", 16, quantizer={"name": "gumbel", "logits": "distance", "full_width": True, "codebook_dim": 4})


# -- transformers ----------------------------------------------------------------------------------------------------


def test_attention_is_torchs_multihead_attention_of_a_normalized_sequence() -> None:
    torch.manual_seed(1)
    block, theirs = Block(12, 3, 4, qkv_bias=True, activation=torch.nn.GELU), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.attention.qkv.weight)
        theirs.in_proj_bias.copy_(block.attention.qkv.bias)
        theirs.out_proj.load_state_dict(block.attention.out.state_dict())
        x = torch.randn(2, 5, 12)
        h = x + theirs(*[F.layer_norm(x, (12,))] * 3, need_weights=False)[0]
        expected = h + block.mlp(F.layer_norm(h, (12,)))
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)


def test_sine_positions_are_those_of_each_row_and_column() -> None:
    found = sine_positions(3, 8)
    for row in range(3):
        for column in range(3):
            wave = [f(p / 10_000 ** (i / 2)) for p in (column, row) for f in (math.sin, math.cos) for i in range(2)]
            assert found[3 * row + column].tolist() == pytest.approx(wave, abs=1e-6)


@pytest.mark.parametrize("name", ["vit_vqgan", "bsq_vit"])
def test_transformers_read_and_write_patches_where_they_are(name: str) -> None:
    """With blocks that add nothing, a pixel of the image reaches its own patch of the reconstruction alone."""
    model = tiny(name, 32, quantizer={"name": "fsq", "levels": [8, 8, 8, 8]}).eval()
    with torch.no_grad():
        for part in (model.encoder, model.decoder):
            for block in part.blocks:
                for layer in (block.attention.out, block.mlp[2]):
                    layer.weight.zero_()
        images = torch.rand(1, 3, 32, 32) * 2 - 1
        moved = images.clone()
        moved[:, :, 8:16, 24:32] *= -1                  # row 1, column 3 of 4 x 4
        latents = (model.encode(moved) - model.encode(images)).abs().sum(2)[0]
        change = (model.decode(model.encode(moved)) - model.decode(model.encode(images))).abs().sum((0, 1))
    assert latents.nonzero().flatten().tolist() == [1 * 4 + 3]
    assert change[8:16, 24:32].all()
    change[8:16, 24:32] = 0
    assert not change.any()


# -- TiTok -----------------------------------------------------------------------------------------------------------


def test_titoks_tokens_have_no_place_and_every_patch_reaches_each() -> None:
    model = tiny("titok", 32, patch=8, tokens=5).eval()
    assert model.layout.grids == () and model.layout.num_tokens == 5
    images = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    for token in range(5):
        gradient, = torch.autograd.grad(model.encode(images)[0, token].square().sum(), images)
        assert gradient.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((0, 1, 4, 5)).all()


def test_the_released_titoks_make_a_latent_of_pieces_of_several_tokens() -> None:
    plain, mixed = tiny("titok", 32, patch=8).eval(), tiny("titok", 32, patch=8, mixed=True).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for encoder in (plain.encoder, mixed.encoder):
            encoder.out = torch.nn.Identity()
        one, other = plain.encode(images), mixed.encode(images)
    for image in range(2):                              # memory order kept, rows and columns exchanged
        assert torch.equal(other[image].T.flatten(), one[image].flatten())
    assert not torch.equal(one, other)


def test_titoks_proxy_mixes_code_vectors_by_the_softmax_of_its_logits() -> None:
    model = tiny("titok", 32, patch=4, head="proxy", proxy_channels=32, proxy_multipliers=[1, 1, 1]).eval()
    with torch.no_grad():
        quantized = model(torch.rand(1, 3, 32, 32) * 2 - 1).quantized
        logits = model.proxy_logits(quantized)
        assert logits.shape == (1, 1024, 8, 8)
        model.to_logits[2].weight.zero_()
        model.to_logits[2].bias.fill_(-1e4)[7] = 0.0    # every patch is code 7
        expected = model.to_pixels(model.proxy_embedding[7].view(1, -1, 1, 1).expand(1, -1, 8, 8)) * 2 - 1
        torch.testing.assert_close(model.decode(quantized), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="patch must be"):
        tiny("titok", 32, patch=8, head="proxy", proxy_multipliers=[1, 1, 1])
