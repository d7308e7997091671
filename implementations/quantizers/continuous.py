"""No bottleneck: latents go to the decoder as they are (plain autoencoders, such as TAESD)."""

from __future__ import annotations

from torch import Tensor

from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout


@register("quantizer", "continuous")
class Continuous(Quantizer):
    """The identity: no codes, no loss. dim: width of a latent; the tokenizer's where not given.

    Raises ValueError for a width below 1.
    """

    title = "Continuous"

    def __init__(self, latent: LatentShape, *, dim: int | None = None) -> None:
        super().__init__()
        self.input_dim = self.output_dim = latent.dim if dim is None else dim
        if self.input_dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.layout = TokenLayout(latent.positions, (), (latent.grid,) if latent.grid else ())

    def forward(self, latents: Tensor) -> QuantizerOutput:
        return QuantizerOutput(latents, None, {})
