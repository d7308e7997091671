"""What make_formats_transformers.py fills networks with, and shows them; the test does so again from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SEED = 11


def filled(shapes: Mapping[str, Sequence[int]], changes: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """Seeded numbers under which activations keep about their size, in the order of the names: matrices and kernels over the
    root of what they add up, tables of codes N(0, 1), scales about 1, offsets about 0; then `changes`: (factor, offset)."""
    generator = torch.Generator().manual_seed(SEED)
    state: dict[str, Tensor] = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        numbers = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            numbers = 0.1 * numbers + (1.0 if name.endswith("weight") else 0.0)
        elif not name.endswith("embedding.weight"):
            numbers = numbers / torch.Size(shape[1:]).numel() ** 0.5
        factor, offset = changes.get(name, (1.0, 0.0))
        state[name] = factor * numbers + offset
    return state


def patchwork(size: int) -> Tensor:
    """One image of 4 x 4 flat patches under a little noise, [1, 3, size, size] in [-1, 1], so that positions differ."""
    generator = torch.Generator().manual_seed(7)
    flat = torch.rand(1, 3, 4, 4, generator=generator).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
    noise = torch.rand(1, 3, size, size, generator=generator)
    return 1.8 * flat + 0.2 * noise - 1
