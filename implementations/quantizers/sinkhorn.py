"""Vector quantization with codes from a transport plan (OptVQ, arXiv:2412.15195)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.distributed import sum_across
from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.initial import drawn_from, initial_codebook
from implementations.search.lookup import straight_through_lookup
from implementations.search.nearest import nearest_codes
from implementations.search.precision import without_autocast
from implementations.search.sinkhorn_plan import sinkhorn_codes
from implementations.search.statistics import add_statistics


@register("quantizer", "sinkhorn")
class Sinkhorn(Quantizer):
    """In training the batch is spread evenly over all codes; in eval each latent takes its nearest code, or is spread too.

    The training plan gives every code the mass 1/K and every latent 1/N; a latent's code is the largest entry of its
    row (see `sinkhorn_codes`). It is defined over the whole batch of all processes, so the training forward sums
    across processes: one of the documented exceptions of `Quantizer.after_step`. With gradient accumulation the batch
    is the micro-batch. Straight-through gradient; `commitment` has weight 1 and `codebook` 0.25, as published.

    evaluation: `nearest` code, whatever else is in the batch; `plan`, as in the released code: the training's plan over
        the batch that is evaluated, so that the codes of an image change with its company, and alone it gets others.
        The published numbers come from batches of 64 images. No second stage should be trained on codes of `plan`.
    heads: a latent is cut into so many consecutive groups of channels. All groups are rows of one plan and share one
        table; each is a level of the layout. Published: 4 or 8.
    codebook_dim: width of a code, so of one head; the tokenizer's width over heads where it is not given.
    projection: the effective table is C W^T + b, with W ~ N(0, 1/D) and C, W, b all learned; without it, C.
    init: `normal` C ~ N(0, 1), as published; `samples` and `kmeans` take latents of the first training batch, or
        centres of them after `kmeans_iterations` of Lloyd's, and the projection starts as the identity.
    epsilon: multiplies the cost (1 / regularisation). iterations: half-steps of each side.
    cost: `standardized` over all distances of the batch (published configurations), `scaled` by 1 / sqrt(D), `plain`.
    stabilizer: added to every sum that is divided by, as published; 0 for the exact plan.
    Raises Incompatible where heads do not divide the tokenizer's width, ValueError for values out of range.
    """

    title = "OptVQ"
    neutral = {"evaluation": "nearest"}

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 16384,
        codebook_dim: int | None = None,
        heads: int = 1,
        projection: bool = True,
        init: Literal["normal", "samples", "kmeans"] = "normal",
        kmeans_iterations: int = 10,
        epsilon: float = 10.0,
        iterations: int = 5,
        cost: Literal["standardized", "scaled", "plain"] = "standardized",
        stabilizer: float = 1e-8,
        evaluation: Literal["nearest", "plan"] = "nearest",
    ) -> None:
        super().__init__()
        for key, value in (("heads", heads), ("iterations", iterations), ("kmeans_iterations", kmeans_iterations)):
            if value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon}")
        if not stabilizer >= 0:
            raise ValueError(f"stabilizer must be at least 0, got {stabilizer}")
        if codebook_dim is None and latent.dim % heads:
            raise Incompatible(f"{heads} heads do not divide a latent of width {latent.dim}")
        dim = latent.dim // heads if codebook_dim is None else codebook_dim
        first = "normal" if init == "normal" else "samples"
        self.codebook = nn.Parameter(initial_codebook(codebook_size, dim, first))       # [K, D]
        self.projection = nn.Linear(dim, dim) if projection else None
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=dim**-0.5)
        self.input_dim = self.output_dim = heads * dim
        self.layout = TokenLayout(latent.positions, (codebook_size,) * heads, (latent.grid,) if latent.grid else ())
        self.heads, self.dim = heads, dim
        self.started = init == "normal"             # a Python flag: a tensor in an `if` would synchronise
        self.lloyd = kmeans_iterations if init == "kmeans" else 0
        self.depends_on_batch = evaluation == "plan"
        self.plan = {"epsilon": epsilon, "iterations": iterations, "cost": cost, "stabilizer": stabilizer}
        self.loss_weights = {"commitment": 1.0, "codebook": 0.25}

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float().reshape(-1, self.dim)                                   # [N * heads, D]
            if self.training and not self.started:
                self._start(z)
            table = self._table()
            planned = self.training or self.depends_on_batch
            codes = sinkhorn_codes(z, table, **self.plan) if planned else nearest_codes(z, table)
            q, commitment, codebook = straight_through_lookup(z, table, codes)
        return QuantizerOutput(q.view(latents.shape).to(latents.dtype), codes.view(*latents.shape[:2], self.heads),
                               {"commitment": commitment, "codebook": codebook})

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        centers = drawn_from(z, len(self.codebook))
        if self.lloyd:
            centers = moved_centers(z, centers, self.lloyd)
        self.codebook.copy_(centers)
        if self.projection is not None:
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.started = True

    def get_extra_state(self) -> dict[str, bool]:
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.started = state["started"]

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._table()).flatten(2)

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self._table(),) * self.heads

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return (self.codebook,) * self.heads

    def _table(self) -> Tensor:
        return self.codebook if self.projection is None else self.projection(self.codebook)


@torch.no_grad()
def moved_centers(z: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm over the latents of all processes; a centre that nothing is nearest to stays."""
    for _ in range(iterations):
        codes = nearest_codes(z, centers)
        counts, sums = torch.zeros_like(centers[:, 0]), torch.zeros_like(centers)
        add_statistics(counts, sums, codes, z)
        counts, sums = sum_across(counts)[:, None], sum_across(sums)
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return centers
