"""Codes distributed as the latents are: a Wasserstein distance between Gaussians (arXiv:2506.15078)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.registry import register
from implementations.codebook.parts import Alignment, Distance


def gaussian_wasserstein(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """W2 between two Gaussians, means [D] and covariances [D, D]; differentiable in the second.

    The trace of the matrix root is the sum of the roots of the product's eigenvalues, whose gradient needs no
    differences of eigenvalues: it is stable where they coincide.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov_b @ root
    roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=1e-12).sqrt().sum()
    square = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots
    return square.clamp(min=1e-12).sqrt()


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of rows [N, D], divided by N - 1."""
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / max(1, len(rows) - 1)


@register("alignment", "wasserstein")
class Wasserstein(Alignment):
    """W2 between the Gaussians of past latents and of the codes, which it alone moves (Eq. 6).

    queue: how many latents of past steps the first Gaussian is taken of. The authors push the current batch before
        they measure; here a step's latents enter after it, from all processes, so that a forward waits for nobody.
    spread: the latents' covariance is multiplied by its square; 0.5 in the authors' multi-scale code.
    unit: `deviation` divides latents and codes by the latents' largest standard deviation (the authors' VQGAN code),
        so that the loss does not depend on the latents' scale.
    epsilon: added to both covariances' diagonals.
    The loss is 0 until the queue holds as many latents as codes have dimensions plus one.
    """

    moves_table = True
    latents = True

    def __init__(self, codebook: Tensor, *, queue: int = 32768, spread: float = 1.0,
                 unit: Literal["none", "deviation"] = "none", epsilon: float = 1e-6) -> None:
        super().__init__()
        if queue <= codebook.shape[1]:
            raise ValueError(f"queue must be above the codes' width {codebook.shape[1]}, got {queue}")
        self.spread, self.unit, self.epsilon = spread, unit, epsilon
        self.loss_weights = {"wasserstein": 1.0}
        self.register_buffer("past", torch.zeros(queue, codebook.shape[1]))
        self.seen = 0                               # latents ever pushed: a Python number, mirrored in the state

    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        filled = min(self.seen, len(self.past))
        if filled <= table.shape[1]:
            return {"wasserstein": table.sum() * 0.0}
        ridge = self.epsilon * torch.eye(table.shape[1], device=table.device)
        mean, covariance = moments(self.past[:filled])
        codes_mean, codes_covariance = moments(table)
        if self.unit == "deviation":
            square = covariance.diagonal().max()
            mean, codes_mean = mean / square.sqrt(), codes_mean / square.sqrt()
            covariance, codes_covariance = covariance / square, codes_covariance / square
        return {"wasserstein": gaussian_wasserstein(mean, covariance * self.spread**2 + ridge,
                                                    codes_mean, codes_covariance + ridge)}

    def after_step(self, latents: Tensor | None) -> None:
        size = len(self.past)
        newest = latents[-size:]
        slots = (torch.arange(len(newest), device=newest.device) + self.seen) % size
        self.past.index_copy_(0, slots, newest)
        self.seen += len(newest)

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]
