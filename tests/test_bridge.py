"""FVQ's bridge against its authors' code, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.interfaces import Incompatible
from implementations.codebook.tables.bridge import Bridge

GOLDEN = Path(__file__).parent / "parity/fvq.npz"


def test_bridged_codes_and_their_gradient_are_the_published_ones() -> None:
    with np.load(GOLDEN) as file:
        golden = {name.removeprefix("bridge/"): torch.from_numpy(file[name]) for name in file.files}
    weights = {name.removeprefix("weights."): value for name, value in golden.items() if name.startswith("weights.")}
    bridge = Bridge(16, 4, patch=2, width=8, heads=2)
    names = {"compress": "x_embedder.proj", "recover": "final_layer.linear"}
    for i in range(2):
        names |= {f"blocks.{i}.qkv": f"blocks.{i}.attn.qkv", f"blocks.{i}.out": f"blocks.{i}.attn.proj",
                  f"blocks.{i}.mlp.0": f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.2": f"blocks.{i}.mlp.fc2"}
    state = {"codebook": golden["rows"]}
    for ours, theirs in names.items():
        state[f"{ours}.weight"] = weights.pop(f"{theirs}.weight").flatten(1)
        state[f"{ours}.bias"] = weights.pop(f"{theirs}.bias")
    assert not weights                          # nothing published is left without a counterpart
    bridge.load_state_dict(state)
    codes = bridge()
    torch.testing.assert_close(codes, golden["codes"], rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad((codes * golden["toward"]).sum(), bridge.codebook)
    torch.testing.assert_close(grad, golden["rows_grad"], rtol=1e-4, atol=1e-5)


def test_one_code_moves_those_at_its_place_in_every_patch_though_all_begin_at_the_origin() -> None:
    torch.manual_seed(0)
    bridge = Bridge(64, 4, patch=4, width=16)
    assert not bridge().any()
    moves = torch.optim.SGD(bridge.parameters(), lr=0.1)
    for _ in range(3):
        (bridge()[0] - 1).square().sum().backward()     # the code at row 0, column 0 of the 8 x 8 picture is pulled
        moves.step()
        moves.zero_grad()
    moved = (bridge().detach().norm(dim=1) > 0).view(8, 8).nonzero().tolist()
    assert moved == [[0, 0], [0, 4], [4, 0], [4, 4]]


@pytest.mark.parametrize("codes", [15, 36])
def test_a_table_that_cannot_be_cut_is_refused(codes: int) -> None:
    with pytest.raises(Incompatible, match="square of a multiple of 4"):
        Bridge(codes, 4, patch=4)
