"""Entropies of binary codes, without the table of all codes.

A code of n independent bits has p(code) = prod p(bit): the softmax over all 2^n corners +-1 of a cube (or of a
sphere), exp(2 z.c / temperature) normalised, is exactly that, with p(bit i = 1) = sigmoid(4 z_i / temperature).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.distributed import mean_across

BLOCK_BYTES = 16 * 2**20
LARGEST_GROUP = 20          # bits of one table of mean probabilities: 4 MiB


def sample_entropy(logits: Tensor) -> Tensor:
    """logits [N, n] of bits being 1 -> entropy in nats of each sample's code, averaged: exact, in O(N n)."""
    return mean_across(_BitEntropy.apply(logits))


def batch_entropy(logits: Tensor, group: int, epsilon: float) -> Tensor:
    """Entropy of the mean distribution over codes, -sum p log(p + epsilon), summed over groups of `group` bits.

    logits [N, n], n a multiple of group. One group of n is the entropy of whole codes; smaller groups give an upper
    bound that cannot see that bits of different groups move together. The mean is over all processes.
    """
    p = mean_across(_MeanJoint.apply(logits.unflatten(1, (-1, group))))     # [G, 2^group]
    return -(p * (p + epsilon).log()).sum()


class _BitEntropy(torch.autograd.Function):
    """H(sigmoid x) = log(1 + e^-|x|) + |x| sigmoid(-|x|), with derivative -x sigmoid(x) sigmoid(-x)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        size = x.abs()
        return torch.addcmul((-size).exp().log1p(), size, (-size).sigmoid()).sum() / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        share = x.sigmoid()
        return torch.ops.aten.sigmoid_backward(x, share).mul_(-grad / len(x))


class _MeanJoint(torch.autograd.Function):
    """logits [N, G, g] -> mean probabilities [G, 2^g], the first bit the most significant.

    The mean over samples of an outer product is a product of matrices: with the bits of a group in two halves,
    sum_i hi_i lo_i^T costs 2 N 2^g flops and keeps N 2^(g/2) numbers. Rows go in blocks; the backward computes each
    again. With W = G * p the gradient of sum(W) in logit j is sum over codes of W (bit_j - sigmoid_j).
    """

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        groups, bits = logits.shape[1:]
        total = 0
        for rows in logits.split(_rows(logits)):
            hi, lo = _halves(rows)
            total = total + hi.transpose(1, 2) @ lo
        return total.reshape(groups, 2**bits) / len(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        logits, = ctx.saved_tensors
        out = torch.empty_like(logits)
        first = logits.shape[2] - logits.shape[2] // 2
        grad = (grad / len(logits)).unflatten(1, (2**first, -1))                        # [G, 2^a, 2^b]
        size = _rows(logits)
        for rows, part in zip(logits.split(size), out.split(size), strict=True):
            hi, lo = _halves(rows)
            w_hi = hi * (lo @ grad.transpose(1, 2))
            w_lo = lo * (hi @ grad)
            inside = torch.cat([w_hi @ _corners(first, rows), w_lo @ _corners(lo.shape[2].bit_length() - 1, rows)], 2)
            part.copy_((inside - w_hi.sum(2, keepdim=True) * rows.transpose(0, 1).sigmoid()).transpose(0, 1))
        return out


def _rows(logits: Tensor) -> int:
    groups, bits = logits.shape[1:]
    return max(1, BLOCK_BYTES // (4 * groups * 2 ** (bits - bits // 2)))


def _corners(bits: int, like: Tensor) -> Tensor:
    """[2^bits, bits] of 0 and 1: the digits of 0, 1, 2, ..., the most significant first."""
    numbers = torch.arange(2**bits, device=like.device)
    places = torch.arange(bits - 1, -1, -1, device=like.device)
    return (numbers[:, None] >> places & 1).to(like.dtype)


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, G, g] -> joint probabilities of the first and of the other bits, [G, n, 2^a] and [G, n, 2^b]."""
    bits = rows.shape[2]
    parts = rows.transpose(0, 1).split([bits - bits // 2, bits // 2], 2)
    hi, lo = ((x @ _corners(x.shape[2], rows).T).softmax(2) for x in parts)
    return hi, lo
