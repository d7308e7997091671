"""Index backpropagation (IBQ): every code gets a gradient, streamed over row blocks with recomputation in the backward.

The N x K probabilities are needed by definition of the gradient. They live one block of rows at a time: the forward
keeps the latents, the table and the codes, and the backward computes the logits once more. All blocks use the same
memory: allocated anew each time, they would pile up in the heap.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from implementations.search.nearest import largest_product
from implementations.search.statistics import add_rows

BLOCK_BYTES = 4 * 2**20             # one of the tables [rows, K] of a block; three of them are alive
BLOCK_BYTES_CUDA = 128 * 2**20


def _rows(z: Tensor, codes: int) -> int:
    return max(1, min(len(z), (BLOCK_BYTES_CUDA if z.is_cuda else BLOCK_BYTES) // (z.element_size() * codes)))


class _IndexBackprop(torch.autograd.Function):
    """(z, table, codes) -> (quantized, error, error, error, sample entropy, mean of p), the last two of the entropy's
    softmax; zero where no entropy is asked for."""

    @staticmethod
    def forward(ctx, z: Tensor, table: Tensor, codes: Tensor, temperature: float, entropy_temperature: float | None):
        q = table.index_select(0, codes)                                    # [N, D]
        error = (z - q).square().mean()
        sample, mean = z.new_zeros(()), z.new_zeros(len(table))
        if entropy_temperature is not None:
            size = _rows(z, len(table))
            memory = z.new_empty(2, size, len(table))
            for rows in z.split(size):
                a, b = memory[:, : len(rows)]                               # [rows, K] each
                log_p = torch.log_softmax(torch.mm(rows, table.T, out=a).div_(entropy_temperature), 1, out=b)
                p = torch.exp(log_p, out=a)
                mean += p.sum(0)
                sample -= p.mul_(log_p).sum()
            sample /= len(z)
            mean /= len(z)
        ctx.save_for_backward(z, table, codes)
        ctx.temperature, ctx.entropy_temperature = temperature, entropy_temperature
        return q, error, error.clone(), error.clone(), sample, mean

    @staticmethod
    @once_differentiable                        # a second derivative would be wrong in silence: let it raise
    def backward(ctx, grad_q, grad_joint, grad_commitment, grad_codebook, grad_sample, grad_mean):
        z, table, codes = ctx.saved_tensors
        residual = (z - table.index_select(0, codes)).mul_(2.0 / z.numel())
        grad_h = torch.addcmul(grad_q, residual, grad_joint, value=-1)      # at h E: from the decoder and from `joint`
        grad_z = residual * (grad_joint + grad_commitment)
        grad_table = torch.zeros_like(table)
        add_rows(grad_table, codes, torch.addcmul(grad_h, residual, grad_codebook, value=-1))
        size = _rows(z, len(table))
        memory = z.new_empty(3, size, len(table))
        for rows, upper, lower in zip(z.split(size), grad_h.split(size), grad_z.split(size), strict=True):
            a, b, c = memory[:, : len(rows)]                                # [rows, K] each
            logits = torch.mm(rows, table.T, out=a)
            grad_logits = None
            if ctx.entropy_temperature is not None:
                log_p = torch.log_softmax(torch.div(logits, ctx.entropy_temperature, out=b), 1, out=c)
                p = torch.exp(log_p, out=b)
                inner = log_p.mul_(-grad_sample).add_(grad_mean)
                inner -= torch.linalg.vecdot(p, inner)[:, None]
                grad_logits = p.mul_(inner).div_(len(z) * ctx.entropy_temperature)
            p = torch.softmax(logits.div_(ctx.temperature), 1, out=c)
            inner = torch.mm(upper, table.T, out=a)                         # d loss / d h, so d / d p
            inner -= torch.linalg.vecdot(p, inner)[:, None]
            through_p = p.mul_(inner).div_(ctx.temperature)
            grad_logits = through_p if grad_logits is None else grad_logits.add_(through_p)
            lower.addmm_(grad_logits, table)
            grad_table.addmm_(grad_logits.T, rows)
        return grad_z, grad_table, None, None, None


def index_backprop(
    z: Tensor, table: Tensor, temperature: float, entropy_temperature: float | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """z [N, D], table [K, D] -> (quantized [N, D], codes [N], losses, (sample entropy, mean p [K])).

    With p = softmax(z E / temperature), k = argmax, h = onehot(k) + p - sg p: quantized = h E, which is E[k] exactly,
    with the gradient of h E to z and to every code. The losses are mean squares over all N * D elements and equal in
    value: (h E - z)^2 moves all that h E and z depend on, (sg E[k] - z)^2 moves z, (E[k] - sg z)^2 moves the code.
    The entropies are those of softmax(z E / entropy_temperature), this process's share; zeros where it is None.
    """
    codes = largest_product(z, table)
    q, *losses, sample, mean = _IndexBackprop.apply(z, table, codes, temperature, entropy_temperature)
    return q, codes, tuple(losses), (sample, mean)
