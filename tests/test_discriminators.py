"""Discriminators: values of the published code (golden vectors of tests/parity), published sizes, and their contract."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.discriminators.blur import BlurGAN, Halve
from bench.discriminators.dino import DINOFeatures, GroupedBatchNorm
from bench.discriminators.patch import PatchGAN, SyncBatchNorm
from bench.discriminators.stylegan2 import StyleGAN2
from bench.errors import BadInput
from bench.interfaces import Discriminator
from bench.registry import available, resolve

#: keywords that make each small, and a side it takes
SMALL = {"patch": ({"width": 4}, 32), "blur": ({"width": 32, "stages": 2}, 32), "stylegan2": ({"width": 8}, 32),
         "dino": ({"trunk": "random", "width": 16, "depth": 3}, 32)}
every = pytest.mark.parametrize("name", available("discriminator"))


def make(name: str, side: int | None = None, **keywords: object) -> Discriminator:
    torch.manual_seed(0)
    small, usual = SMALL[name]
    return resolve("discriminator", name)(side or usual, **small | keywords)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pictures(batch: int, side: int, seed: int = 7) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- published code ------------------------------------------------------------------------------------------------


@cache
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "parity" / "discriminators.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def seeded(module: nn.Module) -> None:
    """As in tests/parity/make_discriminators.py: parameter i, in order, from the generator with seed i."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)


def check(case: str, discriminator: nn.Module, batch: int, side: int) -> None:
    x = pictures(batch, side).requires_grad_()
    logits = discriminator.train()(x).flatten()
    torch.testing.assert_close(logits, golden()[f"{case}/logits"], rtol=1e-5, atol=1e-5)
    toward = torch.randn(logits.shape, generator=torch.Generator().manual_seed(8))
    gradient = torch.autograd.grad(logits @ toward, x)[0][..., ::3, ::3]
    wanted = golden()[f"{case}/image_grad"]
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("layers", [2, 3])
def test_patch_gan_gives_the_values_of_taming(layers: int) -> None:
    ours = PatchGAN(32, width=4, layers=layers)
    seeded(ours)
    check(f"patch{layers}", ours, 2, 32)


def test_blur_gives_the_values_of_maskbit_also_for_odd_sides() -> None:
    ours = BlurGAN(25, width=32, stages=2)
    seeded(ours)
    check("blur", ours, 2, 25)


def test_stylegan2_gives_the_values_of_enhancing_transformers() -> None:
    ours = StyleGAN2(32, width=8)
    seeded(ours)
    check("stylegan2", ours, 4, 32)


def test_dino_gives_the_values_of_vars_discriminator() -> None:
    ours = DINOFeatures(16, trunk="random", width=64, depth=3)
    seeded(ours.trunk.network)
    seeded(ours.heads)
    at = 0
    for module in ours.heads.modules():
        if isinstance(module, nn.Conv1d):           # the power iteration goes on from the left vector alone
            u = module.parametrizations.weight[0]._u
            u.copy_(golden()["dino/u"][at : at + len(u)])
            at += len(u)
    assert at == len(golden()["dino/u"])
    check("dino", ours, 2, 16)


def test_published_sizes() -> None:
    """vqvae_vqgan_cvq.md (PatchGAN); the released code, built (blur, StyleGAN2); VAR's file says 7.39M for its heads."""
    with torch.device("meta"):
        assert count(PatchGAN(256)) == 2_765_633 and count(PatchGAN(256, layers=2)) == 663_361
        assert PatchGAN(256)(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
        assert count(BlurGAN(256)) == 7_431_297
        assert BlurGAN(256)(torch.empty(1, 3, 256, 256)).shape == (1, 1, 16, 16)
        assert count(StyleGAN2(256)) == 28_864_129 and StyleGAN2(256)(torch.empty(3, 3, 256, 256)).shape == (3,)
        assert round(count(DINOFeatures(256, trunk="random")) / 1e6, 2) == 7.39


# -- what each claims ----------------------------------------------------------------------------------------------


@every
def test_logits_reach_every_parameter_and_the_images(name: str) -> None:
    ours, x = make(name), pictures(4, 32).requires_grad_()
    logits = ours(x)
    assert logits.shape[0] == 4 and logits.isfinite().all()
    logits.square().sum().backward()
    assert x.grad.any() and not [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.any()]


@every
def test_it_builds_on_the_meta_device_and_its_state_dict_brings_it_back(name: str) -> None:
    with torch.device("meta"):
        make(name)
    first, second = make(name).eval(), make(name).eval()
    for p in second.parameters():
        p.data.zero_()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(pictures(2, 32)), second(pictures(2, 32)))


@every
def test_a_gradient_penalty_can_be_differentiated(name: str) -> None:
    ours, x = make(name), pictures(4, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize("name, side, keywords, said", [
    ("patch", 16, {}, "image_size 16"), ("patch", 32, {"layers": 0}, "layers"), ("blur", 32, {"width": 24}, "width 24"),
    ("blur", 8, {"width": 32, "stages": 4}, "image_size 8"), ("stylegan2", 48, {}, "power of two"), ("stylegan2", 4, {}, "at least 8"),
    ("dino", 32, {"trunk": "dino_vits16"}, "width 384"),
])
def test_what_cannot_be_is_refused_in_a_sentence(name: str, side: int, keywords: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(name, side, **keywords)


def test_the_smallest_images_that_leave_a_logit_are_accepted() -> None:
    assert make("patch", 24)(pictures(2, 24)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("name, batch", [("stylegan2", 9), ("dino", 9)])
def test_batches_that_cannot_be_grouped_are_refused(name: str, batch: int) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        make(name)(pictures(batch, 32))


def test_halving_is_a_blur_of_every_second_pixel() -> None:
    """Against a full convolution with the outer product, padded as SAME padding does."""
    x = pictures(1, 6)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    padded = torch.zeros(1, 3, 8, 8)
    padded[..., 1:7, 1:7] = x
    wanted = torch.stack([torch.stack([(padded[..., i : i + 4, j : j + 4] * taps[:, None] * taps).sum((-1, -2))
                                       for j in (0, 2, 4)], -1) for i in (0, 2, 4)], -2)
    torch.testing.assert_close(Halve()(x), wanted)


def test_stylegan2_sees_that_all_images_are_alike() -> None:
    """The deviation channel: four copies of an image get another logit than the image among different ones."""
    ours, x = make("stylegan2"), pictures(4, 32)
    alike = ours(x[:1].repeat(4, 1, 1, 1))
    assert torch.equal(alike, alike[:1].expand(4)) and not torch.isclose(alike[0], ours(x)[0], rtol=1e-4)


def test_dino_normalises_at_most_eight_images_together() -> None:
    norm, x = GroupedBatchNorm(4), torch.randn(12, 4, 10)
    parts = torch.cat([nn.functional.batch_norm(part, None, None, training=True, eps=1e-6) for part in x.split(6)])
    torch.testing.assert_close(norm(x), parts, rtol=1e-4, atol=1e-5)


def test_dino_crops_half_of_the_larger_images_in_training_and_none_afterwards() -> None:
    ours, x = make("dino", 256), pictures(1, 256)
    shrunk = nn.functional.interpolate(x, size=224, mode="area")
    def see() -> Tensor:
        return (ours._seen(x) - ours.shift) / ours.scale
    ours.eval()
    torch.testing.assert_close(see(), shrunk, rtol=1e-4, atol=1e-5)
    ours.train()
    torch.manual_seed(0)
    cropped = 0
    for _ in range(40):
        seen = see()
        if not torch.allclose(seen, shrunk, atol=1e-4):
            cropped += 1
            corner = x.unfold(2, 224, 1).unfold(3, 224, 1)[0, 0, :, :, 0, 0]           # [33, 33]: where crops begin
            assert (corner - seen[0, 0, 0, 0]).abs().min() < 1e-5
    assert 10 <= cropped <= 30


def test_published_dino_weights_are_loaded_strictly_without_the_keys_biases(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match="dino_deitsmall16_pretrain"):
        DINOFeatures(32)
    state = DINOFeatures(32, trunk="random").trunk.network.state_dict()
    state = {k: torch.ones_like(v) for k, v in state.items()} | {"norm.weight": torch.ones(384), "norm.bias": torch.ones(384)}
    torch.save(state, tmp_path / "dino_deitsmall16_pretrain.pth")
    ours = DINOFeatures(32)
    bias = ours.trunk.network.blocks[11].attn["qkv"].bias
    assert not bias[384:768].any() and bias[:384].all() and bias[768:].all()
    assert not any("trunk" in key for key in ours.state_dict()) and not any("trunk" in n for n, _ in ours.named_parameters())


def test_norms_across_processes_are_torchs_alone_and_the_same_for_two() -> None:
    ours, theirs = SyncBatchNorm(5), nn.BatchNorm2d(5)
    x = torch.randn(6, 5, 7, 7) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
