"""Binary spherical quantization (arXiv:2406.07548): signs of a unit vector, on the sphere themselves."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.bits import LARGEST_GROUP, batch_entropy, sample_entropy
from implementations.search.digits import Digits, levels_of_bits
from implementations.search.precision import without_autocast


@register("quantizer", "bsq")
class BSQ(Quantizer):
    """u = z / |z|, q = sign(u) / sqrt n: the nearest corner of the cube inscribed in the unit sphere.

    The straight-through estimator is on the sign, before the scale (as released): the gradient reaches u times
    1 / sqrt n, and z through the normalisation.
    entropy = temperature * (H_sample - gamma H_batch) over p(bit i = 1) = sigmoid(4 u_i / (temperature sqrt n)),
    H_sample exact, H_batch the sum over groups of `group_size` bits (the paper's approximate rows have 1). Its weight
    0.1 is that of the released configurations, which also raise it to three times that at first, falling linearly
    over 2000 steps: entropy_boost 2 and boost_steps 2000. At temperature 1 bits are near a coin's, and the loss is a
    soft nudge; vector-quantize-pytorch's spherical LFQ has 0.01.

    bits: n, the width of the latents; more than 18 give several codes per position. levels: codes per position; the
        fewest where not given. endian: `big` makes the first bit of a code the highest, as released.
    commitment: emit mean over positions of |u - sg q|^2, summed over bits (0 in the released configurations).
    boost_commitment: the boost multiplies the commitment too; as released, where it multiplies the sum of both.
    Raises ValueError for numbers out of range, Incompatible for groups that do not divide the bits.
    """

    title = "BSQ"
    neutral = {"boost_commitment": False}

    def __init__(
        self,
        latent: LatentShape,
        *,
        bits: int = 18,
        levels: int | None = None,
        endian: Literal["little", "big"] = "big",
        entropy: bool = True,
        group_size: int = 1,
        temperature: float = 1.0,
        gamma: float = 1.0,
        epsilon: float = 1e-8,
        entropy_boost: float = 0.0,
        boost_steps: int = 2000,
        commitment: bool = False,
        boost_commitment: bool = False,
    ) -> None:
        super().__init__()
        digits = Digits(levels_of_bits(bits, levels), last_first=endian == "big")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if boost_steps < 1:
            raise ValueError(f"boost_steps must be at least 1, got {boost_steps}")
        if entropy and (not 1 <= group_size <= LARGEST_GROUP or bits % group_size):
            raise Incompatible(f"BSQ's group_size must divide its {bits} bits and be at most {LARGEST_GROUP}, "
                               f"got {group_size}")
        self.input_dim = self.output_dim = bits
        self.digits = digits
        self.layout = TokenLayout(latent.positions, self.digits.sizes, (latent.grid,) if latent.grid else ())
        self.entropy, self.group, self.temperature = entropy, group_size, temperature
        self.gamma, self.epsilon, self.commitment = gamma, epsilon, commitment
        self.entropy_boost, self.boost_steps, self.boost_commitment = entropy_boost, boost_steps, boost_commitment
        self.boost = 1.0                            # of the current step; a Python number
        self.scale = 1 / math.sqrt(bits)
        self.loss_weights = {"entropy": 0.1} if entropy else {}
        if commitment:
            self.loss_weights["commitment"] = 1.0

    def before_step(self, step: int) -> None:
        self.boost = 1 + self.entropy_boost * max(0.0, 1 - step / self.boost_steps)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            u = F.normalize(latents.float(), dim=-1)
            q = _ScaledSigns.apply(u, self.scale)
            codes = self.digits.pack((u.detach() > 0).float())
            losses = {}
            boost = self.boost if self.training else 1.0
            if self.entropy:
                logits = u.flatten(0, 1) * (4 * self.scale / self.temperature)
                entropy = sample_entropy(logits) - self.gamma * batch_entropy(logits, self.group, self.epsilon)
                losses["entropy"] = entropy * (self.temperature * boost)
            if self.commitment:
                losses["commitment"] = (u - q.detach()).square().sum(-1).mean() * (boost if self.boost_commitment else 1.0)
        return QuantizerOutput(q.to(latents.dtype), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return (2 * self.digits.unpack(codes) - 1).float() * self.scale


class _ScaledSigns(torch.autograd.Function):
    """scale * sign u; the gradient is times the scale."""

    @staticmethod
    def forward(ctx, u: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return torch.gt(u, 0, out=torch.empty_like(u)).mul_(2).sub_(1).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.scale, None
