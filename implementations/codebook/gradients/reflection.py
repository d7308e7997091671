"""The rotation trick's sibling: a Householder reflection takes the latent to its code (arXiv:2410.06424)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.registry import register
from implementations.codebook.parts import Gradient


class _Reflect(torch.autograd.Function):
    """Hands out q; dL/dz = s (I - 2 w w^T) g with w along z' - q', held constant."""

    @staticmethod
    def forward(ctx, z: Tensor, q: Tensor, differentiate_norm: bool) -> Tensor:
        ctx.save_for_backward(z, q)
        ctx.differentiate_norm = differentiate_norm
        return q.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        z, q = ctx.saved_tensors
        z_unit = F.normalize(z, dim=1)
        w = F.normalize(z_unit - F.normalize(q, dim=1), dim=1)
        scale = q.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-12)
        mirrored = (g - 2 * w * (w * g).sum(1, keepdim=True)) * scale
        if ctx.differentiate_norm:                          # what z / |z| lets through: nothing along z
            mirrored = mirrored - z_unit * (z_unit * mirrored).sum(1, keepdim=True)
        return mirrored, None, None


@register("gradient", "reflection")
class Reflection(Gradient):
    """q = s (I - 2 w w^T) z with w the unit vector along z/|z| - q/|q| and s = |q|/|z|, both constants of the backward.
    Where z and q point the same way there is no mirror, and the gradient is s times the straight-through one.

    form: `vector` reflects z; `direction` reflects z / |z| and differentiates that norm (the authors' patch).
    """

    def __init__(self, *, form: Literal["vector", "direction"] = "vector") -> None:
        self.form = form

    def handed(self, z: Tensor, q: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        return _Reflect.apply(z, q.detach(), self.form == "direction")
