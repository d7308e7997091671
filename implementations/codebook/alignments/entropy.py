"""Sure assignments, and all codes used: the entropy regulariser (Eq. 4 of arXiv:2310.05737)."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Alignment, Distance


@register("alignment", "entropy")
class Entropy(Alignment):
    """H(p_i) averaged over latents minus H of the mean p, p_i = softmax(similarity / temperature), weight 0.1."""

    moves_table = True

    def __init__(self, codebook: Tensor, *, temperature: float = 0.01) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.loss_weights = {"entropy": 0.1}

    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        return {"entropy": distance.entropy(z, table, self.temperature)}
