"""Codebook vector quantization, composed: each of the field's choices is a part of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.distributed import gather, sum_across, world_size
from bench.interfaces import Incompatible, Quantizer
from bench.registry import register, resolve
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.codebook.parts import Alignment, Distance, Gradient, Init, Restart, Table, Update
from implementations.search.lookup import straight_through_lookup
from implementations.search.precision import without_autocast
from implementations.search.statistics import add_statistics


@register("quantizer", "codebook_vq")
class CodebookVQ(Quantizer):
    """Nearest code of a table of K, with the way it is compared, made, moved, revived and learned through named.

    distance: which code is nearest (`l2`, `cosine`, `dot`).
    table: where codes come from (`free`, `frozen`, `linear` = SimVQ, `projected`, `loaded` = VQGAN-LC, `bridge` = FVQ).
    update: how codes follow latents (`loss`, `ema`, `rq_vae`, `none`).
    restart: what becomes of dead codes (`none`, `random_restart`, `rq_vae`, `cvq`, `diveq_copy`).
    gradient: what passes the arg-min (`straight_through`, `rotation`, `reflection`, `diveq`).
    init: the table's first rows (`uniform`, `normal`, `samples`, `k_means`, `file`); the table's own where not given.
    alignment: a loss over the whole codebook (`none`, `entropy`, `orthogonal`, `wasserstein`).

    In Python a part is its name or a `functools.partial` of its class, as in
    `CodebookVQ(latent, codebook_size=1024, update=partial(EMA, decay=0.99), restart=partial(CVQ, anchor="closest"))`.
    In eval the decoder gets exactly the code whatever the parts. Moves of codes happen once per step, in `after_step`.
    Raises Incompatible for parts that contradict each other, ValueError for a codebook without codes.
    """

    title = "VQ"

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 512,
        codebook_dim: int | None = None,
        distance: partial[Distance] = "l2",
        table: partial[Table] = "free",
        update: partial[Update] = "loss",
        restart: partial[Restart] = "none",
        gradient: partial[Gradient] = "straight_through",
        init: partial[Init] | None = None,
        alignment: partial[Alignment] = "none",
    ) -> None:
        super().__init__()
        dim = latent.dim if codebook_dim is None else codebook_dim
        if codebook_size < 1:
            raise ValueError(f"codebook_size must be at least 1, got {codebook_size}")
        if dim < 1:
            raise ValueError(f"codebook_dim must be at least 1, got {dim}")
        self.input_dim = self.output_dim = dim
        self.layout = TokenLayout(latent.positions, (codebook_size,), (latent.grid,) if latent.grid else ())
        self.distance: Distance = _part("distance", distance)()
        self.gradient: Gradient = _part("gradient", gradient)()
        self.table: Table = _part("table", table)(codebook_size, dim)
        self.init: Init | None = None if init is None else _part("init", init)()
        rows = self.table.codebook.detach()
        self.update: Update = _part("update", update)(rows)
        self.restart: Restart = _part("restart", restart)(rows)
        self.alignment: Alignment = _part("alignment", alignment)(rows)
        self._must_fit_together()
        self.loss_weights = {**self.update.loss_weights, **self.alignment.loss_weights}

        learned = self.update.by_gradient or self.gradient.moves_table or self.alignment.moves_table
        if isinstance(self.table.codebook, nn.Parameter) and not learned:
            self.table.fix()
        self.started = self.init is None or not self.init.from_latents  # a Python flag: a tensor would synchronise
        if self.init is not None:
            self.table.start(self.init.draw(*self.table.codebook.shape))
        self.update.begin(self.table.codebook, first_batch=False)
        if self.update.sums or self.restart.active:
            self.register_buffer("step_counts", torch.zeros(codebook_size), persistent=False)
        if self.update.sums:
            self.register_buffer("step_sums", torch.zeros(codebook_size, dim), persistent=False)
        self._keep = self.restart.latents or self.alignment.latents
        self._step_latents: list[Tensor] = []

    def _must_fit_together(self) -> None:
        table, update = self.table, self.update
        name = type(table).__name__.lower()
        if not table.movable and (update.sums or self.restart.active):
            part = type(update if update.sums else self.restart).__name__
            raise Incompatible(f"{part} overwrites codes, which the table {name} does not allow: "
                               "take the table free, or update and restart that leave codes alone")
        if not any(p.requires_grad for p in table.parameters()) and (update.by_gradient or self.gradient.moves_table):
            raise Incompatible(f"nothing in the table {name} can learn from a loss or a gradient: say `update: none`, "
                               "and a gradient that moves the encoder alone")
        moves = (update.by_gradient or update.sums or self.restart.active or self.gradient.moves_table
                 or self.alignment.moves_table)
        if not moves and any(p.requires_grad for p in table.parameters()):
            raise Incompatible(f"nothing moves the table {name}: give an update, or take the table frozen")
        if self.init is not None and not table.writable:
            raise Incompatible(f"the table {name} brings its own codes: leave `init` out")
        if self.init is not None and self.init.from_latents and not (table.movable or name == "frozen"):
            raise Incompatible(f"the rows of the table {name} are no codes: latents cannot be their first values")

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = self.distance.latents(latents.float().flatten(0, 1))                    # [N, D]
            if self.training and not self.started:
                self._start(z)
            rows = self.table()
            table = self.distance.codes(rows)
            codes = self.distance.nearest(z.detach(), rows.detach())
            q, commitment, codebook = straight_through_lookup(z, table, codes)
            losses = {**self.update.losses(commitment, codebook), **self.alignment(z, rows, self.distance)}
            if self.training:
                self._observe(codes, z.detach())
                q = self.gradient.handed(z, q, table, codes)
        return QuantizerOutput(q.view(latents.shape).to(latents.dtype), codes.view(*latents.shape[:2], 1), losses)

    def _observe(self, codes: Tensor, z: Tensor) -> None:
        if self.update.sums:
            add_statistics(self.step_counts, self.step_sums, codes, z)
        elif self.restart.active:
            self.step_counts.scatter_add_(0, codes, self.step_counts.new_ones(()).expand(len(codes)))
        if self._keep:
            self._step_latents.append(z)

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        self.table.start(self.init.draw_from(z.detach(), len(self.table.codebook)))
        self.update.begin(self.table.codebook, first_batch=True)
        self.started = True

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        book = self.table.codebook
        seen, self._step_latents = self._step_latents, []
        wanted = self.alignment.latents or self.restart.looks(step)
        latents = gathered(seen) if seen and wanted else None
        if self.update.sums or self.restart.active:
            counts = sum_across(self.step_counts)
            if self.update.sums:
                self.update.apply(book, counts, sum_across(self.step_sums))
                self.step_sums.zero_()
            if self.restart.active and (seen or not self.restart.latents):
                dead = self.restart.apply(book, counts, latents, self.distance, step)
                if dead is not None:
                    self.update.restarted(dead, book)
            self.step_counts.zero_()
        if self.alignment.latents and latents is not None:
            self.alignment.after_step(latents)

    def get_extra_state(self) -> dict[str, bool]:
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.started = state["started"]

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self.codebooks()[0])

    def codebooks(self) -> tuple[Tensor, ...]:
        with without_autocast(self.table.codebook):
            return (self.distance.codes(self.table()),)

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        rows = self.table.codebook
        return (rows if isinstance(rows, nn.Parameter) else None,)


def gathered(parts: list[Tensor]) -> Tensor:
    """Latents [n, D] of the micro-batches of a step, one after the other, each with the rows of all processes in rank
    order: as one process would have seen them."""
    if world_size() == 1:
        return torch.cat(parts)
    everyone = gather(torch.cat(parts)).unflatten(0, (world_size(), -1))        # [processes, rows of all parts, D]
    return torch.cat([part.flatten(0, 1) for part in everyone.split([len(part) for part in parts], 1)])


def _part(kind: str, given: Any) -> Any:
    """A part by its registered name, or as it is given."""
    return resolve(kind, given) if isinstance(given, str) else given
