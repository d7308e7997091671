"""Groups of channels, each quantized on its own: product quantization with any quantizer."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, Stages, TokenLayout
from implementations.search.combine import Draws, total_losses, with_codes, without_learning
from implementations.search.precision import without_autocast


@register("quantizer", "grouped")
class Grouped(Quantizer):
    """Consecutive groups of channels through a quantizer each; what they hand out is put side by side again.

    MoVQ (arXiv:2209.09002) and OptVQ's heads (arXiv:2412.15195): one shared table. FQGAN (arXiv:2411.16681), GSQ
    (arXiv:2412.02632), MGVQ (arXiv:2507.07997): a table for each group. A group is offered floor(D / groups) channels
    of the latents' width D; `input_dim` is `groups` times what its quantizer takes. Codes [B, N, groups * inner
    levels], the first group first. FQGAN's adapters and MGVQ's grouped 1x1 convolutions around it belong to the
    tokenizer.

    quantizer: any quantizer with codes; another combinator too.
    groups: how many, at least 1.
    shared: one quantizer that sees the groups as further images of the batch, [B * groups, P, D / groups], the groups
        of an image one after the other: so the order is the same for any number of processes.
    loss_reduction: of the groups' losses, `mean` (the loss of the ungrouped channels, for losses that are means over
        elements; MoVQ, OptVQ) or `sum` (FQGAN). A shared quantizer's loss is a mean over groups already and is
        multiplied by their number for `sum`.
    disentangle: also emit `disentangle`, weight 0.1: mean over images, positions and pairs of groups of
        cos^2(q_a, q_b), of what is handed out (FQGAN). Through straight-through quantizers it
        reaches the latents only, not the tables.
    masking: nested masking of MGVQ's first stage: probabilities with which each group is left out in training,
        ascending from 0; () is off. One number u in [0, 1) a forward, the same on every process, leaves out all groups
        with u < p: they hand out zeros and learn nothing, their codes are still reported. Published: (0, .2, .3, .4).
    Raises Incompatible for a continuous quantizer; ValueError for values out of range.
    """

    title = "grouped"

    def __init__(
        self,
        latent: LatentShape,
        *,
        quantizer: partial[Quantizer],
        groups: int = 2,
        shared: bool = False,
        loss_reduction: Literal["mean", "sum"] = "mean",
        disentangle: bool = False,
        masking: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        if latent.dim < groups:
            raise Incompatible(f"{groups} groups need at least as many channels, and the latents have {latent.dim}")
        if disentangle and groups < 2:
            raise ValueError(f"disentangle compares groups and needs groups of at least 2, got {groups}")
        if masking and (len(masking) != groups or list(masking) != sorted(masking) or masking[0] or masking[-1] > 1):
            raise ValueError(f"masking must be {groups} ascending probabilities from 0, one for each group, got {masking}")
        part = LatentShape(latent.positions, latent.dim // groups, latent.grid)
        self.parts = nn.ModuleList(with_codes(quantizer(part), "grouped") for _ in range(1 if shared else groups))
        inner = self.parts[0]
        self.input_dim, self.output_dim = groups * inner.input_dim, groups * inner.output_dim
        self.layout = TokenLayout(inner.layout.num_tokens, inner.layout.vocab_sizes * groups, inner.layout.grids)
        self.stages = Stages(groups, "group", refine=False)
        self.loss_weights = dict(inner.loss_weights)
        if disentangle:
            if "disentangle" in self.loss_weights:
                raise Incompatible("disentangle is asked for in a grouped quantizer and in the one inside it")
            self.loss_weights["disentangle"] = 0.1
        self.groups, self.shared, self.loss_reduction = groups, shared, loss_reduction
        self.disentangle, self.masking = disentangle, masking
        self.draws = Draws() if masking else None

    def forward(self, latents: Tensor) -> QuantizerOutput:
        kept = self._groups_kept() if self.training and self.draws is not None else self.groups
        with without_autocast(latents):
            z = latents.float().chunk(self.groups, -1)
            parts = self._shared(z, kept) if self.shared else self._own(z, kept)
            losses = total_losses([part.losses for part in parts], self.groups, self.loss_reduction)
            quantized = [part.quantized for part in parts]
            if self.disentangle:
                losses["disentangle"] = squared_cosine(quantized)
        codes = torch.cat([part.codes for part in parts], -1)
        return QuantizerOutput(torch.cat(quantized, -1).to(latents.dtype), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return torch.cat(self._groups(codes), -1)

    def lookup_stages(self, codes: Tensor, chosen: Collection[int]) -> Tensor:
        parts = self._groups(codes)
        return torch.cat([part if i in chosen else torch.zeros_like(part) for i, part in enumerate(parts)], -1)

    def _groups(self, codes: Tensor) -> list[Tensor]:
        return [self._part(i).lookup(part) for i, part in enumerate(codes.chunk(self.groups, -1))]

    def codebooks(self) -> tuple[Tensor, ...]:
        return tuple(book for i in range(self.groups) for book in self._part(i).codebooks())

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        return tuple(table for i in range(self.groups) for table in self._part(i).tables())

    def before_step(self, step: int) -> None:
        if self.draws is not None:
            self.draws.begin(step)
        for part in self.parts:
            part.before_step(step)

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)

    def _part(self, group: int) -> Quantizer:
        return self.parts[0 if self.shared else group]

    def _own(self, z: tuple[Tensor, ...], kept: int) -> list[QuantizerOutput]:
        return [part(group) if i < kept else without_learning(part, group)
                for i, (part, group) in enumerate(zip(self.parts, z, strict=True))]

    def _shared(self, z: tuple[Tensor, ...], kept: int) -> list[QuantizerOutput]:
        """The mean loss over the kept groups belongs to each of them alike."""
        inner = self.parts[0]
        out = inner(torch.stack(z[:kept], 1).flatten(0, 1))                             # [B * kept, P, D / groups]
        parts = [QuantizerOutput(q, codes, out.losses)
                 for q, codes in zip(*(t.unflatten(0, (-1, kept)).unbind(1) for t in (out.quantized, out.codes)),
                                     strict=True)]
        return parts + [without_learning(inner, group) for group in z[kept:]]

    def _groups_kept(self) -> int:
        u = float(torch.rand((), generator=self.draws.generator(), device="cpu"))
        return sum(u >= p for p in self.masking)


def squared_cosine(parts: list[Tensor]) -> Tensor:
    """Each [B, P, D] -> mean over images, positions and pairs of parts of the squared cosine between them."""
    units = [F.normalize(part, dim=-1) for part in parts]
    pairs = [(a * b).sum(-1).square().mean() for a, b in combinations(units, 2)]
    return torch.stack(pairs).mean()
