"""Validation during training: what it says of the test images' codes, and that training does not notice it."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from bench.train import train
from bench.types import TokenizerOutput, TokenLayout
from bench.validate import BATCH, validate


class Counting(nn.Module):
    """Codes [B, 4, L] that follow from the images: pixel values of the first channel, scaled to each level's K."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layout = TokenLayout(4, sizes)

    def forward(self, images: Tensor) -> TokenizerOutput:
        levels = [codes_of(images, k) for k in self.layout.vocab_sizes]
        codes = torch.stack(levels, -1) if levels else None
        return TokenizerOutput(images, images.flatten(2), images.flatten(2), codes)


def codes_of(images: Tensor, k: int) -> Tensor:
    return ((images[:, 0, :2, :2].flatten(1) + 1) / 2 * (k - 1)).round().long()


def row_of(sizes: tuple[int, ...], pixels: np.ndarray) -> dict[str, float]:
    objective = SimpleNamespace(terms=lambda batch, output: {"pixel": batch.images.mean()})
    state: Any = SimpleNamespace(model=Counting(sizes), objective=objective)
    return validate(state, pixels, tiny.CPU, nullcontext, False)


@pytest.mark.parametrize("sizes", [(16,), (64, 7), ()])
def test_usage_used_codes_perplexity_and_ceiling_of_every_level(sizes: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH + 5, 3, 4, 4), np.uint8)
    row = row_of(sizes, pixels)
    assert row.pop("pixel") == pytest.approx(float(pixels.astype(np.float64).mean() / 127.5 - 1), abs=1e-5)
    wanted: dict[str, float] = {}
    for level, k in enumerate(sizes):
        codes = codes_of(torch.from_numpy(pixels).float() / 127.5 - 1, k).numpy().ravel()
        counts = np.unique(codes, return_counts=True)[1]
        share = counts / counts.sum()
        tail = f"/level{level}" if len(sizes) > 1 else ""
        wanted |= {f"usage{tail}": len(counts) / k, f"used_codes{tail}": len(counts),
                   f"perplexity{tail}": float(np.exp(-(share * np.log(share)).sum())),
                   f"ceiling{tail}": 1 - (1 - 1 / k) ** (4 * len(pixels))}
    assert row == pytest.approx(wanted, rel=1e-5) and row.keys() == wanted.keys()


def test_training_goes_on_as_if_nothing_had_looked() -> None:
    ends = []
    for looks in (False, True):
        spec = tiny.train_spec(steps=6)
        state = tiny.new_state(spec, ("codebook_usage", "codebook_norms", "quantization_error"))

        def after_step(state: Any, looks: bool = looks) -> bool:
            if looks:
                before = copy.deepcopy(state.state_dict())
                validate(state, tiny.images(9, seed=5), tiny.CPU, nullcontext, False)
                assert not tiny.same(before, state.state_dict()) and state.model.training
            return False

        train(state, tiny.batches(spec), spec, after_step)
        ends.append((state.state_dict(), state.terms.read(state.monitors)))
    assert not tiny.same(*ends)
