"""Formats against goldens of the public networks themselves, at a small width: see tests/parity/make_formats.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.format_states import filled, pictures, scaled
from torch import Tensor

from bench.errors import BadInput
from bench.load import load_tokenizer

GOLDEN = np.load(Path(__file__).parent / "parity" / "formats.npz")
CASES = sorted({name.partition(".")[0] for name in GOLDEN.files})
SIZE = 16


def published(state: Mapping[str, Tensor], told: Mapping[str, Any], folder: Path) -> Path:
    """A file as the public code would have saved it."""
    torch.save({"model" if told["format"] == "xyfjason" else "state_dict": dict(state)}, folder / "published.pt")
    return folder / "published.pt"


def weights(told: Mapping[str, Any]) -> dict[str, Tensor]:
    return scaled(filled(told["shapes"]), told["last"])


@pytest.mark.parametrize("case", CASES)
def test_a_published_network_gives_what_the_public_code_gives(case: str, tmp_path: Path) -> None:
    told = json.loads(GOLDEN[f"{case}.told"].tobytes())
    path = published(weights(told), told, tmp_path)
    ours = load_tokenizer(path, format=told["format"], **told["keywords"])
    with torch.inference_mode():
        out = ours(pictures(ours.image_size))
    if f"{case}.codes" in GOLDEN.files:
        codes = torch.from_numpy(GOLDEN[f"{case}.codes"])
        assert torch.equal(out.codes, codes.long()) and len(codes.unique()) >= 8
    else:
        assert out.codes is None
    torch.testing.assert_close(out.quantized[..., ::2], torch.from_numpy(GOLDEN[f"{case}.quantized"]), rtol=0, atol=1e-5)
    shown, golden = out.reconstruction[..., :: ours.image_size // 8], torch.from_numpy(GOLDEN[f"{case}.reconstruction"])
    assert golden.abs().max() <= 1.01                           # pixels of about [-1, 1], as trained networks write them
    torch.testing.assert_close(shown, golden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_published_tensor_may_be_missing_or_unknown(case: str, tmp_path: Path) -> None:
    told = json.loads(GOLDEN[f"{case}.told"].tobytes())
    state = weights(told)
    prefix = "model." if all(key.startswith("model.") for key in state) else ""
    last = [key for key in state if "dec" in key and key.endswith("bias")][-1]
    for change, said in (({last: None}, "is missing"),
                         ({f"{prefix}decoder.conv_third.bias": torch.ones(1)}, r"conv_third\.bias: not known")):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(BadInput, match=said):
            load_tokenizer(published(changed, told, tmp_path), format=told["format"], **told["keywords"])


@pytest.mark.parametrize("case", ["ibq", "simvq"])
def test_moving_averages_take_the_place_of_the_weights(case: str, tmp_path: Path) -> None:
    told = json.loads(GOLDEN[f"{case}.told"].tobytes())
    average, path = filled(told["shapes"]), tmp_path / "averaged.ckpt"
    frozen = {"quantize.embedding.weight": average["quantize.embedding.weight"]} if case == "simvq" else {}     # no average
    state = filled(told["shapes"], seed=1) | frozen
    state |= {f"model_ema.{key.replace('.', '')}": value for key, value in average.items() if key not in frozen}
    torch.save({"state_dict": state | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}}, path)
    with torch.inference_mode():
        codes = load_tokenizer(path, format=told["format"], image_size=SIZE).tokenize(pictures(SIZE))
    assert torch.equal(codes, torch.from_numpy(GOLDEN[f"{case}.codes"]).long())


def test_latents_that_the_published_vqgan_lc_would_normalize_are_refused(tmp_path: Path) -> None:
    shapes = json.loads(GOLDEN["vqgan_lc.told"].tobytes())["shapes"]
    state = filled(shapes) | {"quant_conv.weight": torch.zeros(768, 16, 1, 1)}
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(BadInput, match="normalized by the published code"):
        load_tokenizer(tmp_path / "wide.pt", format="vqgan-lc", image_size=SIZE)


def test_rq_vaes_shared_table_is_one_table(tmp_path: Path) -> None:
    told = json.loads(GOLDEN["rqvae.told"].tobytes())
    state, path = filled(told["shapes"]), tmp_path / "shared.pt"
    state |= {key: state[f"quantizer.codebooks.0.{key.rpartition('.')[2]}"] for key in state if key.startswith("quantizer.")}
    torch.save({"state_dict": state}, path)
    ours = load_tokenizer(path, format="rqvae", image_size=SIZE)
    assert ours.model.kwargs["quantizer"].kwargs["shared"] and len(ours.tokenizer.quantizer.parts) == 1
    with torch.inference_mode():
        out = ours(pictures(SIZE))
    rows = state["quantizer.codebooks.0.weight"][out.codes].sum(2)
    torch.testing.assert_close(out.quantized, rows, rtol=0, atol=1e-5)
