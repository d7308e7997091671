"""Formats of the transformer systems and the small convolutional ones, against goldens of the public networks themselves: see
tests/parity/make_formats_transformers.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.transformer_states import filled, patchwork
from torch import Tensor, nn

from bench.errors import BadInput
from bench.load import PretrainedTokenizer, load_tokenizer
from implementations.backbones.vit import sine_positions

GOLDEN = np.load(Path(__file__).parent / "parity" / "formats_transformers.npz")
TOLD = json.loads(GOLDEN["told"].tobytes())


def published(case: str) -> dict[str, Tensor]:
    """The state dict of the public network."""
    told = TOLD[case]
    state = filled(told["shapes"], told["changes"])
    for name, shape in told["others"].items():
        if name.endswith("_pos_embedding"):
            state[name] = sine_positions(round(shape[1] ** 0.5), shape[2])[None]
        else:
            state[name] = torch.zeros(shape, dtype=torch.int64)
    return state


def opened(case: str, folder: Path, state: dict[str, Tensor] | None = None, **wrapped: object) -> PretrainedTokenizer:
    state = published(case) if state is None else state
    if TOLD[case]["format"] == "dalle_dvae":
        for side in ("encoder", "decoder"):
            part = {key.removeprefix(f"{side}."): value for key, value in state.items() if key.startswith(f"{side}.")}
            torch.save(part, folder / f"{side}.pkl")
        path = folder
    else:
        path = folder / "published.pt"
        torch.save(wrapped or {"state_dict": state}, path)
    return load_tokenizer(path, format=TOLD[case]["format"], image_size=TOLD[case]["size"])


@pytest.mark.parametrize("case", TOLD)
def test_a_published_network_gives_what_the_public_code_gives(case: str, tmp_path: Path) -> None:
    ours, size = opened(case, tmp_path), TOLD[case]["size"]
    with torch.inference_mode():
        out = ours(patchwork(size))
    if f"{case}.codes" in GOLDEN.files:
        codes = torch.from_numpy(GOLDEN[f"{case}.codes"])
        assert torch.equal(out.codes, codes.long()) and len(codes.unique()) >= 4
    else:
        assert out.codes is None
    torch.testing.assert_close(out.quantized, torch.from_numpy(GOLDEN[f"{case}.quantized"]), rtol=0, atol=1e-5)
    golden = torch.from_numpy(GOLDEN[f"{case}.reconstruction"])
    assert golden.std() > 0.1
    torch.testing.assert_close(out.reconstruction[..., :: size // golden.shape[-1]], golden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", TOLD)
def test_no_published_tensor_may_be_missing_or_unknown(case: str, tmp_path: Path) -> None:
    state = published(case)
    name = next(key for key in reversed(state) if key.startswith("dec") and key.endswith(("bias", ".b")))
    with pytest.raises(BadInput, match="is missing"):
        opened(case, tmp_path, {key: value for key, value in state.items() if key != name})
    with pytest.raises(BadInput, match=r"decoder\.conv_third\.bias: not known"):
        opened(case, tmp_path, state | {"decoder.conv_third.bias": torch.ones(1)})


class Net(nn.Module):
    """Its pickle names this class; what it holds are tensors and classes of torch."""

    ran = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Upsample(scale_factor=2))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def __setstate__(self, state: dict) -> None:
        Net.ran += 1
        super().__setstate__(state)


def test_a_pickled_module_is_read_as_its_tensors_and_not_run(tmp_path: Path) -> None:
    from bench.load import _read

    net = Net()
    torch.save(net, tmp_path / "net.pkl")
    state = _read(tmp_path / "net.pkl")
    assert not Net.ran and list(state) == list(net.state_dict()) == ["kept", "inner.0.weight", "inner.0.bias"]
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    torch.save(nn.Upsample(scale_factor=2), tmp_path / "bare.pkl")
    assert _read(tmp_path / "bare.pkl") == {}
    torch.save(Path("somewhere"), tmp_path / "other.pkl")
    with pytest.raises(BadInput, match="an object of another program"):
        _read(tmp_path / "other.pkl")


def test_bsq_vits_moving_averages_come_before_the_weights_and_wrappers_are_taken_off(tmp_path: Path) -> None:
    average, weights = published("bsq_vit"), {}
    for key, value in average.items():
        weights[f"module.{key}"] = value + 1 if value.is_floating_point() else value
    averaged = {f"module.module.{key}": value for key, value in average.items()}
    golden = torch.from_numpy(GOLDEN["bsq_vit.codes"]).long()
    with torch.inference_mode():
        codes = opened("bsq_vit", tmp_path, state_dict=weights, ema_state_dict=averaged).tokenize(patchwork(16))
        raw = opened("bsq_vit", tmp_path, state_dict=weights, ema_state_dict=None).tokenize(patchwork(16))
    assert torch.equal(codes, golden) and not torch.equal(raw, golden)


def test_vit_vqgans_positions_must_be_the_sines_that_ours_are(tmp_path: Path) -> None:
    state = published("vit_vqgan")
    key = "decoder.de_pos_embedding"
    with pytest.raises(BadInput, match=rf"{key} holds other numbers than the sines"):
        opened("vit_vqgan", tmp_path, state | {key: state[key].roll(1, 1)})


def test_vq_vae_2s_keys_of_several_processes_are_the_same_keys(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in published("vqvae2").items()}
    with torch.inference_mode():
        codes = opened("vqvae2", tmp_path, state).tokenize(patchwork(32))
    assert torch.equal(codes, torch.from_numpy(GOLDEN["vqvae2.codes"]).long())


def test_titoks_first_stage_is_no_tokenizer_yet(tmp_path: Path) -> None:
    state = {key: value for key, value in published("titok_s").items() if not key.startswith("pixel_")}
    with pytest.raises(BadInput, match="there is no tensor 'pixel_decoder"):
        opened("titok_s", tmp_path, state)


def test_hoanhles_table_goes_on_from_its_corrected_averages(tmp_path: Path) -> None:
    state = published("hoanhle_ema")
    counts, sums = (state[f"vq.{part}_i_ts.average"].abs() for part in "Nm")
    state |= {"vq.N_i_ts.average": counts, "vq.m_i_ts.average": sums}
    quantizer = opened("hoanhle_ema", tmp_path, state).tokenizer.quantizer.train()
    latents = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(3))
    codes = quantizer(latents).codes.flatten()
    quantizer.after_step(0)
    one_hot = nn.functional.one_hot(codes, 64).float()
    counts = 0.99 * counts + 0.01 * one_hot.sum(0)
    sums = 0.99 * sums + 0.01 * latents[0].T @ one_hot
    smoothed = (counts + 1e-5) / (counts.sum() + 64 * 1e-5) * counts.sum()
    torch.testing.assert_close(quantizer.codebook, (sums / smoothed).T, rtol=1e-4, atol=1e-5)
    assert "mean_counts" not in dict(opened("hoanhle_loss", tmp_path).tokenizer.quantizer.named_buffers())
