"""First codebooks, by the names of the distributions in the published code."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def initial_codebook(codebook_size: int, dim: int, init: str) -> Tensor:
    """[K, D] float32. `uniform` U(+-1/K) (most VQ code), `kaiming` U(+-sqrt(6/D)), `variance` U(+-sqrt(3/D)),
    `normal` N(0, 1). Raises ValueError for an empty table."""
    if codebook_size < 1 or dim < 1:
        raise ValueError(f"a codebook needs at least one code of at least one number, got {codebook_size} x {dim}")
    table = torch.empty(codebook_size, dim)
    if init == "normal":
        return table.normal_()
    bound = {"uniform": 1 / codebook_size, "kaiming": math.sqrt(6 / dim), "variance": math.sqrt(3 / dim)}[init]
    return table.uniform_(-bound, bound)
