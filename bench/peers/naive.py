"""The formula that nearly every repository has copied: all N x K squared distances, their arg-min, a straight-through sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peer import Calls, Peer, step
from bench.registry import register


@register("peer", "naive")
class Naive(Peer):
    """|z|^2 + |e|^2 - 2 z.e in one table, arg-min along its rows; commitment and codebook loss, autograd for the rest.

    It stands for every quantizer with one codebook, whatever that quantizer adds: a lower bound of their published codes.
    """

    title = "naive"
    searches = True

    def form(self, quantizer: str, keywords: Mapping[str, Any]) -> str | None:
        return "VQ" if "codebook_size" in keywords else None

    def build(self, form: str, latents: Tensor, table: Tensor, keywords: Mapping[str, Any]) -> Calls:
        z, e = latents.detach().clone().requires_grad_(), table.float().clone().requires_grad_()
        ones = torch.ones_like(z)

        def codes(flat: Tensor) -> Tensor:
            distances = flat.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * flat @ e.T
            return distances.argmin(1)

        @torch.no_grad()
        def search() -> Tensor:
            return codes(z.float())

        def train() -> None:
            flat = z.float()
            q = F.embedding(codes(flat), e)
            loss = 0.25 * F.mse_loss(flat, q.detach()) + F.mse_loss(flat.detach(), q)
            step((flat + (q - flat).detach(), loss), z, ones)
            e.grad = None

        return {"search": search, "train": train}

    def distances(self, form: str) -> int:
        return 3
