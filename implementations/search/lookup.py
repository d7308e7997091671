"""Look up codes with the straight-through gradient and both VQ losses, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from implementations.search.kernel import library
from implementations.search.shares import in_shares
from implementations.search.statistics import add_rows, compiled_takes

LEAST_NUMBERS = 2**16       # that are worth a thread


class _Lookup(torch.autograd.Function):
    """Saves one residual [N, D] and the codes; the gradients of both losses are multiples of that residual."""

    @staticmethod
    def forward(ctx, z: Tensor, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, residual, error = _residuals(z, table, codes)
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
            sums = residual.new_zeros(ctx.rows, residual.shape[1])
            add_rows(sums, codes, residual)
            grad_table = sums.mul_(-scale * grad_codebook)
        return grad_z, grad_table, None


def _residuals(z: Tensor, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q = table[codes] [N, D], z - q, and the mean square of that; compiled, in one pass and added up in double."""
    if not compiled_takes(z, table, codes) or z.dtype != torch.float32 or not z.numel():
        q = table.index_select(0, codes)
        residual = z - q
        return q, residual, residual.square().mean()
    compiled, (n, d) = library(), z.shape
    q, residual, sums = torch.empty_like(z), torch.empty_like(z), {}

    def look_up(first: int, last: int) -> None:
        at = 4 * d * first
        sums[first] = compiled.look_up(z.data_ptr() + at, last - first, d, table.data_ptr(), codes.data_ptr() + 8 * first,
                                       q.data_ptr() + at, residual.data_ptr() + at)

    in_shares(look_up, n, LEAST_NUMBERS // d)
    return q, residual, z.new_tensor(sum(sums[first] for first in sorted(sums)) / z.numel())


def straight_through_lookup(z: Tensor, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z [N, D], table [K, D], codes [N] -> (quantized [N, D], commitment, codebook).

    quantized = table[codes] exactly; its gradient goes to z unchanged (straight-through, arXiv:1308.3432) and not
    to the table. commitment = mse(z, sg q) moves z only, codebook = mse(sg z, q) moves the table only (Eq. 3 of
    arXiv:1711.00937; the mean is over all N * D elements).
    """
    return _Lookup.apply(z, table, codes)
