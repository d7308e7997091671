"""Residual quantization with any quantizer (RQ-VAE, arXiv:2203.01941; SoundStream, arXiv:2107.03312)."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial, reduce
from itertools import accumulate
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, Stages, TokenLayout
from implementations.search.combine import Draws, straight_through, total_losses, with_codes, without_learning
from implementations.search.precision import without_autocast


@register("quantizer", "residual")
class Residual(Quantizer):
    """Each level quantizes what the levels before it left over; their sum is handed out (arXiv:2203.01941).

    r_0 = z, q_i = quantizer_i(r_{i-1}), r_i = r_{i-1} - q_i, quantized = sum of q_i. A level's losses are those of
    its quantizer on r_{i-1} = z - sg(q_1 + ... + q_{i-1}): a commitment loss |r_{i-1} - sg q_i|^2 is therefore
    |z - sg(partial sum i)|^2, the cumulative commitment of RQ-VAE, and its gradient reaches the latents at
    every level. Codes [B, N, levels * inner levels], the first level first; N is that of the inner quantizer.

    quantizer: any quantizer with codes that hands out the width it takes; another combinator too.
    levels: how many there are, at least 1.
    shared: one quantizer for all levels, as RQ-VAE; otherwise each level has its own. The statistics of a moving
        average are gathered over all levels and applied once a step; RQ-VAE's own code moves its shared table after
        every level, within one forward.
    gradient: of the sum. `once`: one straight-through around the whole (RQ-VAE, encodec), nothing reaches the tables
        through it. `each`: the sum of the quantizers' own gradients, which is `levels` times the identity for
        straight-through quantizers (vector-quantize-pytorch). `chain`: residuals are not detached from earlier
        levels; what the chain rule gives, one identity for straight-through quantizers, whose losses at later levels
        then leave the latents alone (vector-quantize-pytorch's quant_grad_frac = 1). Quantizers whose tables
        learn through what they hand out (Gumbel) want one of the last two.
    loss_reduction: `mean` over levels (RQ-VAE) or `sum`.
    dropout: training on fewer levels, `fewest_levels` to `levels` with equal chance, rounded up to a multiple of
        `dropout_multiple`: one number for a `batch` (encodec) or for each `image` (SoundStream). The same draw on
        every process. A level that is left out adds nothing to the sum and learns nothing from that image; its codes
        are still reported. A `mean` still divides by all levels.
    shrink: level i (from 0) sees its residual divided by shrink**i and hands out its quantized times that: one number,
        or one for each channel (residual FSQ: the numbers of levels of its channels). 1.0 is off.
    Raises Incompatible for a continuous quantizer or one that changes the width; ValueError for values out of range.
    """

    title = "RQ"

    def __init__(
        self,
        latent: LatentShape,
        *,
        quantizer: partial[Quantizer],
        levels: int = 4,
        shared: bool = True,
        gradient: Literal["once", "each", "chain"] = "once",
        loss_reduction: Literal["mean", "sum"] = "mean",
        dropout: Literal["none", "batch", "image"] = "none",
        fewest_levels: int = 1,
        dropout_multiple: int = 1,
        shrink: float | tuple[float, ...] = 1.0,
    ) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        if not 1 <= fewest_levels <= levels:
            raise ValueError(f"fewest_levels must be between 1 and levels = {levels}, got {fewest_levels}")
        if dropout_multiple < 1:
            raise ValueError(f"dropout_multiple must be at least 1, got {dropout_multiple}")
        if min(shrink if isinstance(shrink, tuple) else (shrink,), default=0.0) <= 0:
            raise ValueError(f"shrink must be above 0, got {shrink}")
        parts = [with_codes(quantizer(latent), "residual") for _ in range(1 if shared else levels)]
        inner = parts[0]
        if inner.input_dim != inner.output_dim:
            raise Incompatible(
                f"residual subtracts what a level hands out from what it takes, and {type(inner).__name__} takes "
                f"{inner.input_dim} channels and hands out {inner.output_dim}")
        if isinstance(shrink, tuple) and len(shrink) != inner.input_dim:
            raise ValueError(f"shrink must have one number for each of the {inner.input_dim} channels, got {shrink}")
        self.parts = nn.ModuleList(parts)
        self.input_dim = self.output_dim = inner.input_dim
        self.layout = TokenLayout(inner.layout.num_tokens, inner.layout.vocab_sizes * levels, inner.layout.grids)
        self.stages = Stages(levels, "level", refine=True)
        self.loss_weights = dict(inner.loss_weights)
        self.levels, self.gradient, self.loss_reduction, self.shrink = levels, gradient, loss_reduction, shrink
        self.dropout, self.fewest_levels, self.dropout_multiple = dropout, fewest_levels, dropout_multiple
        self.draws = Draws() if dropout != "none" else None

    def forward(self, latents: Tensor) -> QuantizerOutput:
        counts = self._levels_of_images(len(latents)) if self.training and self.draws is not None else None
        with without_autocast(latents):
            z = residual = latents.float()
            quantized, codes, losses = None, [], []
            for level in range(self.levels):
                out = self._level(level, residual, counts)
                codes.append(out.codes)
                losses.append(out.losses)
                q = out.quantized
                quantized = q if quantized is None else quantized + q
                residual = residual - (q if self.gradient == "chain" else q.detach())
            if self.gradient == "once":
                quantized = straight_through(z, quantized)
            total = total_losses(losses, self.levels, self.loss_reduction)
        return QuantizerOutput(quantized.to(latents.dtype), torch.cat(codes, -1), total)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.partial_sums(codes)[-1]

    def partial_sums(self, codes: Tensor) -> list[Tensor]:
        """codes [B, N, levels * inner levels], or of the first levels only -> [B, P, D] after each of them: the
        image as it looks at 1, 2, ... levels."""
        return list(accumulate((self._added(codes, level) for level in range(codes.shape[-1] // self._width)), add))

    def lookup_stages(self, codes: Tensor, chosen: Collection[int]) -> Tensor:
        return reduce(add, (self._added(codes, level) for level in sorted(chosen)))

    @property
    def _width(self) -> int:
        """Codes of one level."""
        return len(self.layout.vocab_sizes) // self.levels

    def _added(self, codes: Tensor, level: int) -> Tensor:
        part = codes[..., level * self._width : (level + 1) * self._width]
        return self._scaled(self._part(level).lookup(part), level)

    def codebooks(self) -> tuple[Tensor, ...]:
        return tuple(self._scaled(book, i) for i in range(self.levels) for book in self._part(i).codebooks())

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return tuple(table for i in range(self.levels) for table in self._part(i).tables())

    def before_step(self, step: int) -> None:
        if self.draws is not None:
            self.draws.begin(step)
        for part in self.parts:
            part.before_step(step)

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)

    def _part(self, level: int) -> Quantizer:
        return self.parts[level if len(self.parts) > 1 else 0]

    def _factor(self, level: int, like: Tensor) -> float | Tensor:
        if isinstance(self.shrink, tuple):
            return like.new_tensor([s**level for s in self.shrink])
        return self.shrink**level

    def _scaled(self, quantized: Tensor, level: int) -> Tensor:
        return quantized if self.shrink == 1.0 or level == 0 else quantized * self._factor(level, quantized)

    def _level(self, level: int, residual: Tensor, counts: list[int] | None) -> QuantizerOutput:
        """One level on the images that reach it; zero and no loss for the others."""
        part = self._part(level)
        seen = residual if self.shrink == 1.0 or level == 0 else residual / self._factor(level, residual)
        kept = range(len(seen)) if counts is None else [i for i, count in enumerate(counts) if count > level]
        if len(kept) == len(seen):
            out = part(seen)
            return QuantizerOutput(self._scaled(out.quantized, level), out.codes, out.losses)
        left_out = without_learning(part, seen)
        if not kept:
            return left_out
        index = torch.tensor(kept, device=seen.device)
        out = part(seen[index])
        quantized = left_out.quantized.index_copy(0, index, self._scaled(out.quantized, level))
        return QuantizerOutput(quantized, left_out.codes.index_copy(0, index, out.codes), out.losses)

    def _levels_of_images(self, batch: int) -> list[int]:
        draws = batch if self.dropout == "image" else 1
        drawn = torch.randint(self.fewest_levels, self.levels + 1, (draws,), generator=self.draws.generator(),
                              device="cpu")
        counts = [min(-(-n // self.dropout_multiple) * self.dropout_multiple, self.levels) for n in drawn.tolist()]
        return counts if self.dropout == "image" else counts * batch
