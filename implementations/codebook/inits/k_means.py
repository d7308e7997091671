"""First codes as k-means centres of the first training batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.distributed import gather
from bench.registry import register
from implementations.codebook.parts import Init
from implementations.search.initial import drawn_from, initial_codebook
from implementations.search.nearest import nearest_codes
from implementations.search.statistics import add_statistics


@register("init", "k_means")
class KMeans(Init):
    """Lloyd's iterations on the latents of the first batch of all processes, begun at drawn latents (SoundStream,
    arXiv:2107.03312, section III-C); a centre that nothing chooses stays where it is. N(0, 1) until then."""

    from_latents = True

    def __init__(self, *, iterations: int = 10) -> None:
        if iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {iterations}")
        self.iterations = iterations

    def draw(self, codebook_size: int, dim: int) -> Tensor:
        return initial_codebook(codebook_size, dim, "samples")

    @torch.no_grad()
    def draw_from(self, latents: Tensor, codebook_size: int) -> Tensor:
        centres = drawn_from(latents, codebook_size)
        everyone = gather(latents.detach())
        for _ in range(self.iterations):
            counts, sums = centres.new_zeros(codebook_size), torch.zeros_like(centres)
            add_statistics(counts, sums, nearest_codes(everyone, centres), everyone)
            centres = torch.where(counts[:, None] > 0, sums / counts[:, None], centres)
        return centres
