"""Validation during training: every loss term, usage and perplexity on test images, beside the training ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from bench.data import to_model_range
from bench.distributed import apart
from bench.monitors.codebook_usage import level_name, perplexity
from bench.train import TrainState
from bench.types import Batch

BATCH = 64


@torch.no_grad()
def validate(
    state: TrainState, images: np.ndarray, device: torch.device, precision: Callable[[], AbstractContextManager],
    channels_last: bool,
) -> dict[str, float]:
    """images uint8 [n, 3, H, W] -> means over images of all loss terms; usage and perplexity of all their codes.

    In eval mode, without gradient; every process does the same, so nothing is exchanged.
    """
    model, sizes = state.model, state.model.layout.vocab_sizes
    counts = [torch.zeros(k, dtype=torch.int64, device=device) for k in sizes]
    sums: dict[str, torch.Tensor] = {}
    model.eval()
    for begin in range(0, len(images), BATCH):
        pixels = torch.from_numpy(np.ascontiguousarray(images[begin : begin + BATCH])).to(device)
        flips = torch.zeros(len(pixels), dtype=torch.bool)
        batch = Batch(to_model_range(pixels, flips, channels_last=channels_last))
        with precision(), apart():
            output = model(batch.images)
            terms = state.objective.terms(batch, output)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.double() * len(pixels)
        if output.codes is not None:
            codes = output.codes.flatten(0, 1)
            for level, table in enumerate(counts):
                table += torch.bincount(codes[:, level], minlength=len(table))
    model.train()
    row = {name: value / len(images) for name, value in sums.items()}
    for level, table in enumerate(counts):
        row[level_name("usage", level, len(counts))] = (table > 0).double().mean()
        row[level_name("perplexity", level, len(counts))] = perplexity(table)
    return dict(zip(row, torch.stack([v.double() for v in row.values()]).tolist(), strict=True)) if row else {}
