"""Finite scalar quantization (arXiv:2309.15505): bound each coordinate, round it; no codebook and no loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.digits import Digits, fewest_levels
from implementations.search.precision import without_autocast

MARGIN = 1e-3               # of all published versions; keeps the ends of tanh off a rounding boundary
MOST_LEVELS = 1000          # from 1 / MARGIN + 1 on the margin is wider than a level
TILE = 128                  # rows to one row of constants: loops over few channels alone are five times slower


@register("quantizer", "fsq")
class FSQ(Quantizer):
    """Each coordinate takes one of L values: q = round(b(z)) / (L // 2), with b(z) = h tanh(z + s) - o (section 3.1).

    With o = 1/2 for even L and 0 for odd, and with margin m = 0.001, the published versions are
    `atanh`: h = (L-1)(1+m)/2, s = atanh(o/h), so that b(0) = 0 (xyfJASON since ad7fcbd, vector-quantize-pytorch);
    `google`: h = (L-1)(1-m)/2, s = tan(o/h), as in the authors' notebook: for even L b(0) is a little off 0;
    `symmetric`: q = 2/(L-1) floor((L-1)(tanh z + 1)/2 + 1/2) - 1, evenly spread over [-1, 1] for any L (section 3.2 of
        arXiv:2411.19842). In the other two an even L gives -1 .. 1 - 2/L, whose mean is -1/L.
    Rounding is straight-through, tanh keeps its gradient: it vanishes for latents far beyond +-2.

    levels: L of each coordinate; their number is the width of the latents. The first coordinate is the lowest digit
        of a code. A product above 2^18 gives several codes per position.
    Raises ValueError for no levels or one outside 2 .. 1000, Incompatible for 2 levels that are not symmetric: they
    would be -1 and 0, and nearly all latents 0.
    """

    title = "FSQ"

    def __init__(
        self,
        latent: LatentShape,
        *,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        variant: Literal["atanh", "google", "symmetric"] = "atanh",
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2 or max(levels) > MOST_LEVELS:
            raise ValueError(f"levels must be numbers from 2 to {MOST_LEVELS}, one per coordinate, got {tuple(levels)}")
        if variant != "symmetric" and min(levels) < 3:
            raise Incompatible(f"FSQ's variant {variant} needs at least 3 levels per coordinate, got {tuple(levels)}")
        self.digits = Digits(fewest_levels(levels))
        self.input_dim = self.output_dim = len(levels)
        self.layout = TokenLayout(latent.positions, self.digits.sizes, (latent.grid,) if latent.grid else ())
        self.symmetric = variant == "symmetric"
        # Rounded is slope * tanh(z + shift) + centre; quantized is (digit - lowest) / unit.
        shift, slope, centre = [], [], []
        for size in levels:
            offset = 0.5 * (size % 2 == 0)
            if variant == "symmetric":
                shift.append(0.0), slope.append((size - 1) / 2), centre.append(size / 2)
                continue
            half = (size - 1) * (1 + MARGIN if variant == "atanh" else 1 - MARGIN) / 2
            shift.append((math.atanh if variant == "atanh" else math.tan)(offset / half))
            slope.append(half), centre.append(-offset)
        unit = [(size - 1) / 2 if self.symmetric else size // 2 for size in levels]
        for name, values in (("shift", shift), ("slope", slope), ("centre", centre), ("unit", unit)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        self.register_buffer("lowest", torch.tensor([0 if self.symmetric else n // 2 for n in levels]), persistent=False)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            rounded, q = _BoundAndRound.apply(
                latents.float(), self.shift, self.slope, self.centre, self.unit, self.symmetric)
            codes = self.digits.pack(rounded + self.lowest)
        return QuantizerOutput(q.to(latents.dtype), codes)

    def lookup(self, codes: Tensor) -> Tensor:
        rounded = (self.digits.unpack(codes) - self.lowest).float()
        return _scaled(rounded, self.unit, self.symmetric)


def _scaled(rounded: Tensor, unit: Tensor, symmetric: bool) -> Tensor:
    """Whole numbers to values, in place."""
    rounded.div_(unit)
    return rounded.sub_(1) if symmetric else rounded


class _BoundAndRound(torch.autograd.Function):
    """Keeps tanh for the backward and nothing else.

    tanh x = 2 sigmoid(2x) - 1: the same to rounding, and torch's sigmoid is many times faster on CPU.
    """

    @staticmethod
    def forward(ctx, z: Tensor, shift: Tensor, slope: Tensor, centre: Tensor, unit: Tensor,
                symmetric: bool) -> tuple[Tensor, Tensor]:
        d = z.shape[-1]
        n = z.numel() // d
        rows = max(1, min(TILE, n & -n))                                    # a power of 2 that divides n
        wide = z.reshape(-1, rows * d)
        shift, slope, centre, unit = (v.repeat(rows) for v in (shift, slope, centre, unit))
        share = torch.add(2 * shift, wide, alpha=2).sigmoid_()
        rounded = torch.addcmul(centre - slope, share, 2 * slope)
        rounded = rounded.floor_() if symmetric else rounded.round_()
        q = _scaled(rounded.clone(), unit, symmetric)
        ctx.save_for_backward(share, 4 * slope / unit)
        rounded, q = rounded.view(z.shape), q.view(z.shape)
        ctx.mark_non_differentiable(rounded)
        return rounded, q

    @staticmethod
    @once_differentiable                        # a second derivative would be wrong in silence: let it raise
    def backward(ctx, _: Tensor, grad: Tensor):
        share, scale = ctx.saved_tensors
        inner = torch.ops.aten.sigmoid_backward(grad.reshape(share.shape), share)
        return inner.mul_(scale).view(grad.shape), None, None, None, None, None
