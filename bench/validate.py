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
    """images uint8 [n, 3, H, W] -> means over images of all loss terms; of all their codes, for each level (usage, or
    usage/level0, ...): usage, the share of K that occurs; used_codes, their number; perplexity; and ceiling, the usage
    that so many uniform codes would reach on average, 1 - (1 - 1/K)^codes.

    In eval mode, without gradient; every process does the same, so nothing is exchanged, and the device is waited for
    once, at the end.
    """
    model, sizes = state.model, state.model.layout.vocab_sizes
    counts = [torch.zeros(k, dtype=torch.int64, device=device) for k in sizes]
    one, seen = torch.ones(1, dtype=torch.int64, device=device), 0
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
                table.scatter_add_(0, codes[:, level], one.expand(len(codes)))      # unlike bincount, never waits
            seen += len(codes)
    model.train()
    row = {name: value / len(images) for name, value in sums.items()}
    for level, table in enumerate(counts):
        values = {
            "usage": (table > 0).double().mean(),
            "used_codes": (table > 0).sum(),
            "perplexity": perplexity(table),
            "ceiling": table.new_tensor(1 - (1 - 1 / len(table)) ** seen, dtype=torch.float64),
        }
        row |= {level_name(name, level, len(counts)): value for name, value in values.items()}
    return dict(zip(row, torch.stack([v.double() for v in row.values()]).tolist(), strict=True)) if row else {}
