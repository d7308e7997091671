"""The rotation trick: the gradient turns as the latent turns into its code (arXiv:2410.06424)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.registry import register
from implementations.codebook.parts import Gradient


class _Rotate(torch.autograd.Function):
    """Hands out q; dL/dz = s R^T g with R = I - 2 w w^T + 2 q' z' and s, R held constant."""

    @staticmethod
    def forward(ctx, z: Tensor, q: Tensor, differentiate_norm: bool, scale: bool) -> Tensor:
        ctx.save_for_backward(z, q)
        ctx.form = differentiate_norm, scale
        return q.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        z, q = ctx.saved_tensors
        differentiate_norm, scale = ctx.form
        z_unit, q_unit = F.normalize(z, dim=1), F.normalize(q, dim=1)
        w = F.normalize(z_unit + q_unit, dim=1)
        turned = g - 2 * w * (w * g).sum(1, keepdim=True) + 2 * z_unit * (q_unit * g).sum(1, keepdim=True)
        if scale:
            turned = turned * (q.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-12))
        if differentiate_norm:                              # what z / |z| lets through: nothing along z
            turned = turned - z_unit * (z_unit * turned).sum(1, keepdim=True)
        return turned, None, None, None


@register("gradient", "rotation")
class Rotation(Gradient):
    """q = s R z with s = |q| / |z| and the rotation R of z onto q; s and R are constants of the backward (Eq. 4).

    form: `vector` rotates z (the authors' VQ-VAE; vector-quantize-pytorch); `direction` rotates z / |z| and
        differentiates that norm, so that the gradient along z is removed (the authors' VQGAN and ViT-VQGAN patches).
    scale: False leaves s out of the backward (an ablation of the paper; its released code keeps the 1 / |z| of the
        differentiated norm there, this has no scale at all).
    Undefined, and finite, where q points exactly away from z.
    """

    def __init__(self, *, form: Literal["vector", "direction"] = "vector", scale: bool = True) -> None:
        self.form, self.scale = form, scale

    def handed(self, z: Tensor, q: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        return _Rotate.apply(z, q.detach(), self.form == "direction", self.scale)
