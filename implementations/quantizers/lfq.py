"""Lookup-free quantization (MAGVIT-v2, arXiv:2310.05737): a code is the signs of its latents."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.bits import LARGEST_GROUP, batch_entropy, sample_entropy
from implementations.search.digits import Digits, levels_of_bits
from implementations.search.precision import without_autocast


@register("quantizer", "lfq")
class LFQ(Quantizer):
    """q = sign z in {-1, 1}^n (0 gives -1), straight-through, with commitment and entropy losses (Eq. 3-4).

    entropy = H_sample - gamma H_batch over p(code) ~ exp(2 z.code / temperature). H_sample is exact from single bits.
    `batch_entropy` says how H_batch is found: `full` over all 2^bits codes (exact), `grouped` as the sum over groups
    of `group_size` bits (upper bound), `bitwise` over single bits (cannot see bits that always move together).
    commitment = mean (z - sg q)^2. Weights 0.1 and 0.25 are those of Open-MAGVIT2 (arXiv:2409.04410); MaskBit
    (arXiv:2409.16211) takes 0.02 for the entropy.

    normalize: what happens to a latent before its signs. `none`, as published: the encoder has to end in a norm, or
        single bits never flip. `sphere` brings its length to sqrt(n), as BSQ and vector-quantize-pytorch's spherical
        form do: with temperature 1 it trains behind a plain convolution.
    bits: n, the width of the latents. levels: codes per position that share the bits; the fewest where not given.
    endian: `little` makes the first bit of a code the lowest (SEED-Voken, MaskBit), `big` the highest
        (vector-quantize-pytorch).
    entropy: emit the entropy loss. epsilon: inside the logarithm of H_batch. entropy_boost, boost_steps: in training
        the loss is times 1 + entropy_boost * max(0, 1 - step / boost_steps) (Open-MAGVIT2: 3 or 0; MaskBit: 2).
    Raises ValueError for numbers out of range, Incompatible for groups that do not divide the bits or a full table
    of more than 2^20 codes.
    """

    title = "LFQ"

    def __init__(
        self,
        latent: LatentShape,
        *,
        bits: int = 10,
        normalize: Literal["none", "sphere"] = "none",
        levels: int | None = None,
        endian: Literal["little", "big"] = "little",
        entropy: bool = True,
        batch_entropy: Literal["full", "grouped", "bitwise"] = "full",
        group_size: int = 9,
        temperature: float = 0.01,
        gamma: float = 1.0,
        epsilon: float = 1e-5,
        entropy_boost: float = 0.0,
        boost_steps: int = 2000,
    ) -> None:
        super().__init__()
        digits = Digits(levels_of_bits(bits, levels), last_first=endian == "big")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if boost_steps < 1:
            raise ValueError(f"boost_steps must be at least 1, got {boost_steps}")
        self.group = {"full": bits, "grouped": group_size, "bitwise": 1}[batch_entropy]
        if entropy and (self.group < 1 or bits % self.group):
            raise Incompatible(f"LFQ's group_size must divide its {bits} bits, got {group_size}")
        if entropy and self.group > LARGEST_GROUP:
            raise Incompatible(f"LFQ's batch entropy over 2^{self.group} codes is too large a table; take groups")
        self.input_dim = self.output_dim = bits
        self.digits = digits
        self.layout = TokenLayout(latent.positions, self.digits.sizes, (latent.grid,) if latent.grid else ())
        self.normalize = normalize
        self.entropy, self.temperature, self.gamma, self.epsilon = entropy, temperature, gamma, epsilon
        self.entropy_boost, self.boost_steps = entropy_boost, boost_steps
        self.boost = 1.0                            # of the current step; a Python number
        self.loss_weights = {"commitment": 0.25}
        if entropy:
            self.loss_weights["entropy"] = 0.1

    def before_step(self, step: int) -> None:
        self.boost = 1 + self.entropy_boost * max(0.0, 1 - step / self.boost_steps)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float()
            if self.normalize == "sphere":
                z = F.normalize(z, dim=-1) * z.shape[-1] ** 0.5
            q, commitment = _Signs.apply(z)
            codes = self.digits.pack((q.detach() + 1) / 2)
            losses = {"commitment": commitment}
            if self.entropy:
                logits = z.flatten(0, 1) * (4 / self.temperature)
                entropy = sample_entropy(logits) - self.gamma * batch_entropy(logits, self.group, self.epsilon)
                losses["entropy"] = entropy * self.boost if self.training else entropy
        return QuantizerOutput(q.to(latents.dtype), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return (2 * self.digits.unpack(codes) - 1).float()


class _Signs(torch.autograd.Function):
    """Signs with the identity as gradient, and mean (z - sg sign z)^2 from one residual."""

    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor]:
        q = torch.gt(z, 0, out=torch.empty_like(z)).mul_(2).sub_(1)
        residual = z - q
        ctx.save_for_backward(residual)
        return q, residual.square().mean()

    @staticmethod
    @once_differentiable                        # a second derivative would be wrong in silence: let it raise
    def backward(ctx, grad_q: Tensor, grad_commitment: Tensor) -> Tensor:
        residual, = ctx.saved_tensors
        return torch.addcmul(grad_q, residual, grad_commitment * (2.0 / residual.numel()))
