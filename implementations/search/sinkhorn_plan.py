"""Codes by a balanced transport plan (Sinkhorn), in the log domain and without the N x K table.

The plan is exp(-cost) scaled by one number per sample and one per code. Only these are kept; each half-step computes
the distances of a block of rows once more, in the same memory: blocks that are allocated anew each time pile up in the
heap (337 MiB at 4096 x 8 x 16384). Sums go across processes, so that the plan is that of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from bench.distributed import min_across, sum_across

BLOCK_BYTES = 8 * 2**20             # one table [rows, K]; three are alive. A whole problem that fits is computed once
BLOCK_BYTES_CUDA = 128 * 2**20
DOUBLES = 2**18                     # distances that are summed in float64 at a time


class _Distances:
    """Euclidean distances of z [N, D] to table [K, D], block of rows by block, as often as they are asked for."""

    def __init__(self, z: Tensor, table: Tensor) -> None:
        center = table.mean(0)                  # distances do not change; they lose fewer digits near the origin
        self.z, self.table = z - center, table - center
        self.norms = self.table.square().sum(1)
        self.size = min(len(z), max(1, (BLOCK_BYTES_CUDA if z.is_cuda else BLOCK_BYTES) // (4 * len(table))))
        self.memory = z.new_empty(3, self.size, len(table))             # of distances; two for whoever asks
        self.kept = self._block(self.z) if len(z) == self.size else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their distances), which may not be changed."""
        if self.kept is not None:
            yield slice(0, len(self.z)), self.kept
            return
        for start in range(0, len(self.z), self.size):
            rows = slice(start, start + self.size)
            yield rows, self._block(self.z[rows])

    def scratch(self, which: int, rows: int) -> Tensor:
        """[rows, K] to be overwritten, one of two."""
        return self.memory[1 + which, :rows]

    def _block(self, z: Tensor) -> Tensor:
        squares = torch.addmm(self.norms, z, self.table.T, alpha=-2, out=self.memory[0, : len(z)])
        return squares.add_(z.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()


@torch.no_grad()
def sinkhorn_codes(
    z: Tensor,
    table: Tensor,
    *,
    epsilon: float,
    iterations: int,
    cost: Literal["standardized", "scaled", "plain"],
    stabilizer: float,
) -> Tensor:
    """z [N, D] of this process, table [K, D], both fp32 -> codes int64 [N]: the largest entry of each sample's row.

    Q = exp(-epsilon A) over its sum, then `iterations` times: every code's mass becomes 1 / K, every sample's 1 / N.
    cost: A is the Euclidean distance, `standardized` over the whole matrix (less its mean, over its unbiased standard
    deviation + 1e-6, then shifted to a minimum of 0), `scaled` by 1 / sqrt(D), or `plain`.
    stabilizer: added to every sum that is divided by; 0 for the exact half-steps.
    N counts the samples of all processes. Lowest index where entries are equal.
    """
    n, (k, d) = len(z), table.shape
    if z.is_meta:
        return torch.empty(n, dtype=torch.int64, device="meta")
    log_stabilizer = torch.tensor(math.log(stabilizer) if stabilizer else -math.inf, device=z.device)
    distances = _Distances(z, table)

    def stabilized(log_sum: Tensor) -> Tensor:
        return torch.logaddexp(log_sum, log_stabilizer)

    # Each code's nearest sample makes its first sum safe from underflow: no entry of it is scaled above 1.
    moments = torch.zeros(3, dtype=torch.float64, device=z.device)          # samples, sum and square sum of distances
    closest = torch.full((k,), math.inf, device=z.device)
    double = torch.empty(min(DOUBLES, distances.memory[0].numel()), dtype=torch.float64, device=z.device)
    for _, block in distances:
        for part in block.flatten().split(len(double)):
            exact = double[: len(part)].copy_(part)
            moments[1] += exact.sum()
            moments[2] += exact.dot(exact)
        torch.minimum(closest, block.amin(0), out=closest)
    moments[0] = n
    samples, total, squares = sum_across(moments)
    closest = min_across(closest)
    log_samples, entries = samples.log().float(), samples * k
    rate, shift = torch.tensor(epsilon, device=z.device), torch.zeros((), device=z.device)
    if cost == "standardized":
        deviation = ((squares - total.square() / entries) / (entries - 1)).clamp(min=0).sqrt()
        rate, shift = (epsilon / (deviation + 1e-6)).float(), closest.min()
    elif cost == "scaled":
        rate = rate / math.sqrt(d)

    mass = torch.zeros(k, dtype=torch.float64, device=z.device)
    for _, block in distances:
        mass += torch.sub(closest, block, out=distances.scratch(0, len(block))).mul_(rate).exp_().sum(0)
    log_mass = sum_across(mass).log().float() - rate * (closest - shift)
    whole = stabilized(log_mass.logsumexp(0))
    code_scale = -whole - stabilized(log_mass - whole) - math.log(k)        # [K], logarithm
    sample_scale = z.new_zeros(n)                                           # [N], logarithm

    def log_plan(block: Tensor) -> Tensor:
        """Up to the samples' scale."""
        return torch.sub(shift, block, out=distances.scratch(0, len(block))).mul_(rate).add_(code_scale)

    for _ in range(iterations - 1):
        mass.zero_()
        for rows, block in distances:
            plan = log_plan(block)
            largest = plan.amax(1, keepdim=True)
            terms = torch.sub(plan, largest, out=distances.scratch(1, len(plan))).exp_()
            log_sums = terms.sum(1).log_() + largest[:, 0]
            before = log_sums + sample_scale[rows]
            scaled = stabilized(before) + log_samples
            shares = plan.sub_(log_sums[:, None]).exp_()                    # rows sum to 1
            mass += (before - scaled).exp() @ shares                        # of each code, after the samples' half-step
            sample_scale[rows] -= scaled
        code_scale = code_scale - stabilized(sum_across(mass).log().float()) - math.log(k)
    # The last half-step scales whole rows: it does not change which entry of a row is the largest.
    return torch.cat([log_plan(block).argmax(1) for _, block in distances])
