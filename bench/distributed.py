"""Processes of one run: who am I, sums and means across them. Every function is a no-op alone.

Gradients are averaged by a function after backward, not by a wrapper around the model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 * 2**20


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def start() -> None:
    """Join the group that torchrun's environment variables describe; nothing to do alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_across(value: Tensor) -> Tensor:
    """Sum over processes, without gradient; the argument is not changed."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def min_across(value: Tensor) -> Tensor:
    """Element-wise minimum over processes, without gradient; the argument is not changed."""
    if world_size() == 1:
        return value
    least = value.detach().clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return least


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process gets the same answer."""
    if world_size() == 1:
        return flag
    total = torch.tensor([float(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return bool(total.item())


class _MeanAcross(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Mean in the backward too: after `average_gradients` the result is the gradient of the global function.
        total = gradient.clone()
        dist.all_reduce(total)
        return total / world_size()


def mean_across(value: Tensor) -> Tensor:
    """Mean over processes, differentiable: mean forward, mean backward."""
    return value if world_size() == 1 else _MeanAcross.apply(value)


def gather(value: Tensor) -> Tensor:
    """Concatenate along the first axis in rank order; the same shape on every process."""
    if world_size() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Mean gradient over processes, in 32 MiB buckets of a fixed order.

    A parameter that some process used gets the mean (absent gradients count as zero); one that no process used
    keeps None, so that Adam skips it everywhere.
    """
    if world_size() == 1:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
    if parameters and parameters[0].is_cuda:
        used = used.to(parameters[0].device)
    dist.all_reduce(used)
    wanted = [p for p, n in zip(parameters, used.tolist(), strict=True) if n]
    bucket: list[Tensor] = []
    size = 0
    for i, p in enumerate(wanted):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        bucket.append(p.grad)
        size += p.grad.numel() * p.grad.element_size()
        if size >= BUCKET_BYTES or i == len(wanted) - 1:
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            flat /= world_size()
            for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(part.view_as(g))
            bucket, size = [], 0


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from named parts: the same on every machine and for any number of processes."""
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_step(seed: int, step: int) -> None:
    """Randomness is a function of (seed, step, rank): a resumed run draws what an uninterrupted one draws."""
    torch.manual_seed(derived_seed(seed, step, rank()))
