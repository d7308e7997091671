"""Residual quantization over resolutions with any quantizer (VAR, arXiv:2404.02905)."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial, reduce
from itertools import accumulate
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, Stages, TokenLayout
from implementations.search.combine import straight_through, total_losses, with_codes
from implementations.search.precision import without_autocast


@register("quantizer", "multi_scale")
class MultiScale(Quantizer):
    """From the coarsest scale to the grid itself, each scale codes what the scales before it left over (VAR, Alg. 1).

    For each scale s: the rest f - f_hat is averaged down to it (`area`, not at the last scale) and quantized; the
    vectors of its codes are brought back to the grid (bicubic, not at the last), phi_s(h) = (1 - r) h + r conv3x3(h)
    is added to f_hat. f_hat is handed out with one straight-through. Codes [B, sum of h_s w_s, inner levels], the
    coarsest scale first; `layout.grids` has each scale's grid.

    Losses are VAR's, on the grid and averaged over scales: `commitment` = mse(f, sg f_hat_s), `codebook` =
    mse(sg f, f_hat_s), where f_hat_s moves the convolutions and, through the inner quantizer's `lookup`, the tables
    that learn by gradient. They take the place (and the weights) of the inner quantizer's losses of these names; its
    other losses are averaged over scales. VAR's weights are 0.25 and 1.

    quantizer: any quantizer with codes that hands out the width it takes; one for all scales. It is called with fewer
        positions than it was built for. What it learns through what it hands out (Gumbel), it does not learn here.
    scales: longer sides of the scales, ascending, the last one that of the grid; the shorter side in proportion,
        rounded up. () is 1, 2, 4, ... up to the grid. VAR: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16).
    phi: which convolutions scales have: `shared` one, `partial` `phi_count` of them (the nearest of evenly placed
        ticks to s / (S - 1), as published), `separate` one each, `none`.
    phi_ratio: r, in [0, 1]; 0 is without convolutions.
    Raises Incompatible for latents without a grid, a continuous quantizer, one that changes the width or has scales
    itself; ValueError for values out of range.
    """

    title = "MS-VQ"

    def __init__(
        self,
        latent: LatentShape,
        *,
        quantizer: partial[Quantizer],
        scales: tuple[int, ...] = (),
        phi: Literal["shared", "partial", "separate", "none"] = "partial",
        phi_count: int = 4,
        phi_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        if latent.grid is None:
            raise Incompatible("multi_scale resizes a grid of latents, and these latents have none")
        if not 0 <= phi_ratio <= 1:
            raise ValueError(f"phi_ratio must be between 0 and 1, got {phi_ratio}")
        if phi_count < 1:
            raise ValueError(f"phi_count must be at least 1, got {phi_count}")
        longest = max(latent.grid)
        sides = scales or (*(2**i for i in range((longest - 1).bit_length())), longest)
        if sides[0] < 1 or list(sides) != sorted(sides) or sides[-1] != longest:
            raise ValueError(f"scales must ascend from at least 1 to the grid's longer side {longest}, got {scales}")
        inner = with_codes(quantizer(latent), "multi_scale")
        if inner.input_dim != inner.output_dim:
            raise Incompatible(
                f"multi_scale subtracts what a scale hands out from what it takes, and {type(inner).__name__} takes "
                f"{inner.input_dim} channels and hands out {inner.output_dim}")
        if inner.layout.num_tokens != latent.positions:
            raise Incompatible(f"multi_scale wants one token a position, and {type(inner).__name__} has "
                               f"{inner.layout.num_tokens} tokens for {latent.positions} positions")
        self.inner = inner
        self.grid = latent.grid
        self.grids = tuple(tuple(-(-side * n // longest) for n in latent.grid) for side in sides)
        self.input_dim = self.output_dim = inner.input_dim
        self.layout = TokenLayout(sum(h * w for h, w in self.grids), inner.layout.vocab_sizes, self.grids)
        self.stages = Stages(len(sides), "scale", refine=True, grids=True)
        kinds = {"shared": 1, "partial": phi_count, "separate": len(sides), "none": 0}[phi] if phi_ratio else 0
        self.phi = nn.ModuleList(nn.Conv2d(self.input_dim, self.input_dim, 3, padding=1) for _ in range(kinds))
        self.phi_of = [nearest_tick(i, len(sides), kinds) for i in range(len(sides))] if kinds else []
        self.phi_ratio = phi_ratio
        weights = {"commitment": 0.25, "codebook": 1.0} | dict(inner.loss_weights)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            del weights["codebook"]                     # nothing there that it could move
        self.loss_weights = weights

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            f = rearrange(latents.float(), "b (h w) d -> b d h w", h=self.grid[0]).contiguous()
            rest, f_hat = f, None
            codes, losses = [], []
            for scale, grid in enumerate(self.grids):
                seen = rest if grid == self.grid else F.interpolate(rest, size=grid, mode="area")
                out = self.inner(rearrange(seen, "b d h w -> b (h w) d"))
                h = self._on_grid(out.codes, scale)
                f_hat = h if f_hat is None else f_hat + h
                rest = rest - h.detach()
                codes.append(out.codes)
                own = {"commitment": F.mse_loss(f, f_hat.detach()), "codebook": F.mse_loss(f_hat, f.detach())}
                losses.append({k: own[k] if k in own else out.losses[k] for k in self.loss_weights})
            quantized = rearrange(straight_through(f, f_hat), "b d h w -> b (h w) d")
            total = total_losses(losses, len(self.grids), "mean")
        return QuantizerOutput(quantized.to(latents.dtype), torch.cat(codes, 1), total)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.partial_sums(codes)[-1]

    def partial_sums(self, codes: Tensor) -> list[Tensor]:
        """codes [B, N, inner levels], or of the first scales only -> [B, P, D] after each of them: the image as it
        looks at 1, 2, ... scales."""
        with without_autocast(codes):
            there = [scale for scale in range(len(self.grids)) if self._first(scale) < codes.shape[1]]
            sums = accumulate((self._added(codes, scale) for scale in there), add)
            return [rearrange(f_hat, "b d h w -> b (h w) d") for f_hat in sums]

    def lookup_stages(self, codes: Tensor, chosen: Collection[int]) -> Tensor:
        with without_autocast(codes):
            return rearrange(reduce(add, (self._added(codes, scale) for scale in sorted(chosen))), "b d h w -> b (h w) d")

    def codebooks(self) -> tuple[Tensor, ...]:
        return self.inner.codebooks()

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return self.inner.tables()

    def before_step(self, step: int) -> None:
        self.inner.before_step(step)

    def after_step(self, step: int) -> None:
        self.inner.after_step(step)

    def _first(self, scale: int) -> int:
        """The first token of a scale."""
        return sum(h * w for h, w in self.grids[:scale])

    def _added(self, codes: Tensor, scale: int) -> Tensor:
        return self._on_grid(codes[:, self._first(scale) : self._first(scale + 1)], scale)

    def _on_grid(self, codes: Tensor, scale: int) -> Tensor:
        """codes [B, h_s w_s, L] of one scale -> what it adds [B, D, h, w]."""
        grid = self.grids[scale]
        h = rearrange(self.inner.lookup(codes), "b (h w) d -> b d h w", h=grid[0]).contiguous()
        if grid != self.grid:
            h = F.interpolate(h, size=self.grid, mode="bicubic")
        if not self.phi_of:
            return h
        return h * (1 - self.phi_ratio) + self.phi[self.phi_of[scale]](h) * self.phi_ratio


def nearest_tick(scale: int, scales: int, count: int) -> int:
    """Which of `count` convolutions a scale uses: the first of the nearest ticks to its place in [0, 1]. Ticks are
    evenly placed from 1 / (2 count) to 1 - 1 / (2 count); of four, from 1/12 to 11/12, as in the published code."""
    place = scale / (scales - 1) if scales > 1 else 0.0
    first = 1 / (3 if count == 4 else 2) / count
    step = (1 - first - first) / max(count - 1, 1)
    ticks = [i * step + first for i in range(count - 1)] + [1 - first]      # rounded as published: ties are common
    return min(range(count), key=lambda i: abs(ticks[i] - place))
