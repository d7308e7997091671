"""State dicts of public networks from names, shapes and a seed alone: what make_formats.py recorded, a test fills again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SEED = 11
TABLES = ("quantize.embedding", "codebooks.", "quantize_vis.embedding", "quantize_sem", "tok_embeddings")


def filled(shapes: Mapping[str, Sequence[int]], seed: int = SEED) -> dict[str, Tensor]:
    """Seeded numbers under which activations keep about their size: matrices and kernels N(0, 2 / what they add up),
    tables of codes N(0, 1), scales about 1, offsets about 0. In the order of the names."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        numbers = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            state[name] = 0.1 * numbers + (1.0 if name.endswith("weight") and "in_proj" not in name else 0.0)
        elif any(table in name for table in TABLES) and "proj" not in name:
            state[name] = numbers
        else:
            state[name] = numbers * (2 / torch.Size(shape[1:]).numel()) ** 0.5
    return state


def scaled(state: Mapping[str, Tensor], last: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """With the last layer's tensors times a factor and plus an offset, so that pixels are about in their range."""
    return {**state, **{name: state[name] * factor + offset for name, (factor, offset) in last.items()}}


def pictures(size: int) -> Tensor:
    """One image, [1, 3, size, size] in [-1, 1]: 8 x 8 squares of one colour under noise, so that positions differ."""
    generator = torch.Generator().manual_seed(7)
    squares = torch.rand(1, 3, 8, 8, generator=generator).repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    return (1.5 * squares + 0.5 * torch.rand(1, 3, size, size, generator=generator)) - 1
