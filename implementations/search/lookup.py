"""Look up codes with the straight-through gradient and both VQ losses, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Lookup(torch.autograd.Function):
    """Saves one residual [N, D] and the codes; the gradients of both losses are multiples of that residual."""

    @staticmethod
    def forward(ctx, z: Tensor, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = table.index_select(0, codes)                                    # [N, D]
        residual = z - q
        error = residual.square().mean()
        ctx.save_for_backward(residual, codes)
        ctx.rows = len(table)
        return q, error, error.clone()

    @staticmethod
    @once_differentiable                        # a second derivative would be wrong in silence: let it raise
    def backward(ctx, grad_q: Tensor, grad_commitment: Tensor, grad_codebook: Tensor):
        residual, codes = ctx.saved_tensors
        scale = 2.0 / residual.numel()
        grad_z = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.addcmul(grad_q, residual, grad_commitment * scale)
        if ctx.needs_input_grad[1]:
            # d mse(sg z, q) / d e_k = 2/(N D) * sum over i with code k of (e_k - z_i)
            sums = residual.new_zeros(ctx.rows, residual.shape[1]).index_add_(0, codes, residual)
            grad_table = sums.mul_(-scale * grad_codebook)
        return grad_z, grad_table, None


def straight_through_lookup(z: Tensor, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z [N, D], table [K, D], codes [N] -> (quantized [N, D], commitment, codebook).

    quantized = table[codes] exactly; its gradient goes to z unchanged (straight-through, arXiv:1308.3432) and not
    to the table. commitment = mse(z, sg q) moves z only, codebook = mse(sg z, q) moves the table only (Eq. 3 of
    arXiv:1711.00937; the mean is over all N * D elements).
    """
    return _Lookup.apply(z, table, codes)
