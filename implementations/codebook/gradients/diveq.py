"""DiVeQ: the error's length is differentiable, its direction a constant (arXiv:2509.26469)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Gradient


@register("gradient", "diveq")
class DiVeQ(Gradient):
    """q = z + |e - z| sg[u], u the unit vector along e - z + noise (Eq. 5): one gradient moves latents and codes, and no
    VQ loss is needed (`update: {name: none, commitment: false}`). In training q lies slightly off the code.

    noise_std: of the noise; 0 is the paper's "detach" variant. The option that the authors' code calls variance is used
        as a standard deviation there.
    """

    moves_table = True

    def __init__(self, *, noise_std: float = 1e-3) -> None:
        if noise_std < 0:
            raise ValueError(f"noise_std must be at least 0, got {noise_std}")
        self.noise_std = noise_std

    def handed(self, z: Tensor, q: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        error = table.index_select(0, codes) - z
        towards = error.detach()
        if self.noise_std:
            towards = towards + torch.randn_like(towards) * self.noise_std
        return z + error.norm(dim=1, keepdim=True) * F.normalize(towards, dim=1)
