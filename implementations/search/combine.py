"""What quantizers made of other quantizers share: one straight-through over a whole, losses of the parts by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.distributed import derived_seed
from bench.interfaces import Incompatible, Quantizer
from bench.types import QuantizerOutput


class _HandOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient, None


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The values of `quantized`, bit for bit, with the gradient of `latents` (same shape)."""
    return _HandOver.apply(latents, quantized.detach())


def total_losses(parts: Sequence[dict[str, Tensor]], count: int, reduction: str) -> dict[str, Tensor]:
    """Losses of the parts by name: summed (`sum`), or that over `count`, how many parts there could be (`mean`)."""
    total: dict[str, Tensor] = {}
    for losses in parts:
        for name, value in losses.items():
            total[name] = total[name] + value if name in total else value
    return {name: value / count for name, value in total.items()} if reduction == "mean" else total


def with_codes(inner: Quantizer, combinator: str) -> Quantizer:
    """The same quantizer. Raises Incompatible where it is continuous."""
    if not inner.layout.vocab_sizes:
        raise Incompatible(f"{combinator} combines codes, and {type(inner).__name__} has none")
    return inner


@torch.no_grad()
def without_learning(inner: Quantizer, latents: Tensor) -> QuantizerOutput:
    """Zeros for what is handed out, and the codes as in eval: `inner` learns nothing from these latents."""
    inner.eval()
    try:
        codes = inner(latents).codes
    finally:
        inner.train()
    return QuantizerOutput(latents.new_zeros(*latents.shape[:2], inner.output_dim), codes)


class Draws(nn.Module):
    """Random numbers in training that are the same on every process and that no device waits for.

    They are a function of a seed, the step and the number of forwards in it. The seed comes from the random state that
    also gives the first weights, and is kept with them. Processes must agree, because a quantizer that exchanges sums
    in its forward must be called by all or by none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seed = int(torch.randint(2**62, (), device="cpu"))
        self.begin(0)

    def begin(self, step: int) -> None:
        self.step, self.forwards = step, 0

    def generator(self) -> torch.Generator:
        """For the next forward, on the CPU."""
        self.forwards += 1
        return torch.Generator().manual_seed(derived_seed(self.seed, self.step, self.forwards))

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seed = state["seed"]
