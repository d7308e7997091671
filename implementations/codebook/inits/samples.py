"""First codes drawn from the latents of the first training batch."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Init
from implementations.search.initial import drawn_from, initial_codebook


@register("init", "samples")
class Samples(Init):
    """Without repetition where the batch suffices; N(0, 1) until the first batch is seen."""

    from_latents = True

    def draw(self, codebook_size: int, dim: int) -> Tensor:
        return initial_codebook(codebook_size, dim, "samples")

    def draw_from(self, latents: Tensor, codebook_size: int) -> Tensor:
        return drawn_from(latents, codebook_size)
