"""Index backpropagation quantization (IBQ, arXiv:2412.02692)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bench.distributed import mean_across
from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.index_backprop import index_backprop
from implementations.search.initial import initial_codebook
from implementations.search.precision import without_autocast


@register("quantizer", "ibq")
class IBQ(Quantizer):
    """The code with the largest inner product; the gradient goes through the softmax over all codes.

    With p = softmax(z E / temperature) and h = onehot(argmax p) + p - sg p, the decoder gets h E: the chosen code in
    value, while every code and, through p alone, the encoder get a gradient (there is no straight-through copy).
    Losses, means over all elements, as released with the paper: `joint` = (h E - z)^2 with gradient through h, E and
    z; `commitment` = (sg e - z)^2; `codebook` = (e - sg z)^2 with weight 0.25; `entropy` = mean H(p_i) - H(mean p_i)
    of the softmax at entropy_temperature, the mean p over all processes.

    codebook_dim: width of a code; the tokenizer's width where it is not given.
    temperature: of the softmax that carries the gradient; 1 as published.
    init: `normal` N(0, 1) as published. At U(+-1/K), as in one re-implementation, all logits are about 0 and the
        encoder gets next to no gradient.
    normalize: `none` as published. `codes` compares with and hands out unit codes, so that no code wins by its length;
        `both` normalizes the latents too (logits are cosines: give a temperature well below 1).
    entropy: whether to emit the entropy loss. At its published temperature its softmax is saturated for latents of
        unit size.
    Never more than a few blocks of the N x K probabilities exist. Raises ValueError for an empty table and for
    temperatures that are not above 0.
    """

    title = "IBQ"
    assignment = "dot"

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 16384,
        codebook_dim: int | None = None,
        temperature: float = 1.0,
        init: Literal["normal", "uniform", "kaiming", "variance"] = "normal",
        normalize: Literal["none", "codes", "both"] = "none",
        entropy: bool = True,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if not entropy_temperature > 0:
            raise ValueError(f"entropy_temperature must be above 0, got {entropy_temperature}")
        dim = latent.dim if codebook_dim is None else codebook_dim
        self.codebook = nn.Parameter(initial_codebook(codebook_size, dim, init))        # [K, D]
        self.input_dim = self.output_dim = dim
        self.layout = TokenLayout(latent.positions, (codebook_size,), (latent.grid,) if latent.grid else ())
        self.temperature, self.normalize = temperature, normalize
        self.entropy_temperature = entropy_temperature if entropy else None
        self.loss_weights = {"joint": 1.0, "commitment": 1.0, "codebook": 0.25}
        if entropy:
            self.loss_weights["entropy"] = 0.05

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float().flatten(0, 1)                                           # [N, D]
            if self.normalize == "both":
                z = F.normalize(z, dim=1)
            q, codes, (joint, commitment, codebook), (sample, mean) = index_backprop(
                z, self._table(), self.temperature, self.entropy_temperature)
            losses = {"joint": joint, "commitment": commitment, "codebook": codebook}
            if self.entropy_temperature is not None:
                mean = mean_across(mean)
                losses["entropy"] = mean_across(sample) + (mean * (mean + 1e-5).log()).sum()
        return QuantizerOutput(q.view_as(latents).to(latents.dtype), codes.view(*latents.shape[:2], 1), losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self._table())

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self._table(),)

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return (self.codebook,)

    def _table(self) -> Tensor:
        return self.codebook if self.normalize == "none" else F.normalize(self.codebook, dim=1)
