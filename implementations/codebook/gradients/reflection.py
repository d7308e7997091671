"""The rotation trick's sibling: a Householder reflection takes the latent to its code (arXiv:2410.06424)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.registry import register
from implementations.codebook.parts import Gradient


class _Reflect(torch.autograd.Function):
    """Hands out q; dL/dz = s (I - 2 w w^T) g with w along z' - q', held constant."""

    @staticmethod
    def forward(ctx, z: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(z, q)
        return q.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        z, q = ctx.saved_tensors
        w = F.normalize(F.normalize(z, dim=1) - F.normalize(q, dim=1), dim=1)
        scale = q.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return (g - 2 * w * (w * g).sum(1, keepdim=True)) * scale, None


@register("gradient", "reflection")
class Reflection(Gradient):
    """q = s (I - 2 w w^T) z with w the unit vector along z/|z| - q/|q| and s = |q|/|z|, both constants of the backward.
    Where z and q point the same way there is no mirror, and the gradient is s times the straight-through one."""

    def handed(self, z: Tensor, q: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        return _Reflect.apply(z, q.detach())
