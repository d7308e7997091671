"""First codebooks, by the names of the distributions in the published code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.distributed import derived_seed, gather


def initial_codebook(codebook_size: int, dim: int, init: str) -> Tensor:
    """[K, D] float32. `uniform` U(+-1/K) (most VQ code), `kaiming` U(+-sqrt(6/D)), `variance` U(+-sqrt(3/D)),
    `normal` N(0, 1), `fan_in` N(0, 1/K), a layer's that takes one-hot codes, and `fan_in_uniform` U(+-sqrt(3/K)) of the
    same variance (MaskGIT); `samples` are drawn from the latents of the first training batch, see `drawn_from`.
    Raises ValueError for an empty table."""
    if codebook_size < 1:
        raise ValueError(f"codebook_size must be at least 1, got {codebook_size}")
    if dim < 1:
        raise ValueError(f"codebook_dim must be at least 1, got {dim}")
    table = torch.empty(codebook_size, dim)
    if init in ("normal", "samples"):
        return table.normal_()
    if init == "fan_in":
        return table.normal_(std=codebook_size**-0.5)
    bounds = {"uniform": 1 / codebook_size, "kaiming": math.sqrt(6 / dim), "variance": math.sqrt(3 / dim),
              "fan_in_uniform": math.sqrt(3 / codebook_size)}
    bound = bounds[init]
    return table.uniform_(-bound, bound)


@torch.no_grad()
def drawn_from(latents: Tensor, codebook_size: int) -> Tensor:
    """latents [N, D] of one process -> [K, D] drawn from those of all processes, without repetition where they
    suffice; the same draw on every process, and the same for any number of them."""
    candidates = gather(latents.detach())
    generator = torch.Generator().manual_seed(derived_seed("first codes", len(candidates), codebook_size))
    order = torch.randperm(len(candidates), generator=generator)
    return candidates[order.repeat(-(-codebook_size // len(order)))[:codebook_size].to(candidates.device)]
