"""Formats against goldens of the public networks themselves, at a small width: see tests/parity/make_formats.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.format_states import filled, pictures

from bench.errors import BadInput
from bench.load import load_tokenizer

GOLDEN = np.load(Path(__file__).parent / "parity" / "formats.npz")
CASES = sorted({name.partition(".")[0] for name in GOLDEN.files})
SIZE = 16


@pytest.mark.parametrize("case", CASES)
def test_a_published_network_gives_what_the_public_code_gives(case: str, tmp_path: Path) -> None:
    told = json.loads(GOLDEN[f"{case}.told"].tobytes())
    state, path = filled(told["shapes"]), tmp_path / "published.pt"
    torch.save({"state_dict": state}, path)
    ours = load_tokenizer(path, format=told["format"], **told["keywords"])
    with torch.inference_mode():
        out = ours(pictures(ours.image_size))
    if f"{case}.codes" in GOLDEN.files:
        codes = torch.from_numpy(GOLDEN[f"{case}.codes"])
        assert torch.equal(out.codes, codes.long()) and len(codes.unique()) > 8
    else:
        assert out.codes is None
    torch.testing.assert_close(out.quantized, torch.from_numpy(GOLDEN[f"{case}.quantized"]), rtol=0, atol=1e-5)
    shown, golden = out.reconstruction[..., :: ours.image_size // SIZE], torch.from_numpy(GOLDEN[f"{case}.reconstruction"])
    # random weights write pixels beyond [-1, 1]: 1e-5 of what they reach
    torch.testing.assert_close(shown, golden, rtol=0, atol=1e-5 * max(1.0, float(golden.abs().max())))


@pytest.mark.parametrize("case", CASES)
def test_no_published_tensor_may_be_missing_or_unknown(case: str, tmp_path: Path) -> None:
    told = json.loads(GOLDEN[f"{case}.told"].tobytes())
    state, path = filled(told["shapes"]), tmp_path / "published.pt"
    for change, said in (({"decoder.conv_out.bias": None}, r"decoder\.conv_out\.bias is missing"),
                         ({"decoder.conv_third.bias": torch.ones(1)}, "conv_third.bias: not known")):
        prefix = "model." if all(key.startswith("model.") for key in state) else ""
        changed = {k: v for k, v in (state | {prefix + key: v for key, v in change.items()}).items() if v is not None}
        torch.save(changed, path)
        with pytest.raises(BadInput, match=said):
            load_tokenizer(path, format=told["format"], **told["keywords"])


def test_seed_vokens_moving_averages_take_the_place_of_the_weights(tmp_path: Path) -> None:
    told = json.loads(GOLDEN["ibq.told"].tobytes())
    average, path = filled(told["shapes"]), tmp_path / "averaged.ckpt"
    state = filled(told["shapes"], seed=1) | {f"model_ema.{key.replace('.', '')}": value for key, value in average.items()}
    torch.save({"state_dict": state | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}}, path)
    with torch.inference_mode():
        codes = load_tokenizer(path, format="seed-voken", image_size=SIZE).tokenize(pictures(SIZE))
    assert torch.equal(codes, torch.from_numpy(GOLDEN["ibq.codes"]).long())


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
