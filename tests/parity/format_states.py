"""State dicts of public networks from names, shapes and a seed alone: what make_formats.py recorded, a test fills again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SEED = 11


def filled(shapes: Mapping[str, Sequence[int]], seed: int = SEED) -> dict[str, Tensor]:
    """Seeded numbers under which activations keep about their size: matrices and kernels over the root of what they add up,
    tables of codes N(0, 1), scales about 1, offsets about 0. In the order of the names."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        numbers = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            state[name] = 0.1 * numbers + (1.0 if name.endswith("weight") and "in_proj" not in name else 0.0)
        elif "quantize" in name and ("embedding" in name or "codebooks" in name):
            state[name] = numbers
        else:
            state[name] = numbers / torch.Size(shape[1:]).numel() ** 0.5
    return state


def pictures(size: int) -> Tensor:
    """One image, [1, 3, size, size] in [-1, 1]."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(7)) * 2 - 1
