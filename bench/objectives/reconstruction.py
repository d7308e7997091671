"""Reconstruction: named losses, weighted and summed; one player, the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from bench.interfaces import Loss, Objective, Tokenizer
from bench.losses.pixel import Pixel
from bench.registry import register
from bench.types import Batch, TokenizerOutput, Update


@register("objective", "reconstruction")
class Reconstruction(Objective):
    """sum over names of weight * loss (Eq. 3 of arXiv:1711.00937 with its defaults).

    losses: named summands; the mean squared error of the pixels, under the name `pixel`, where not given.
    weights: of these and of the losses that the tokenizer and its quantizer declare; a loss that is not named
        here has weight 1 (a summand) or the weight its owner declares.
    """

    def __init__(
        self, *, losses: dict[str, partial[Loss]] | None = None, weights: dict[str, float] | None = None
    ) -> None:
        super().__init__()
        parts = {"pixel": Pixel()} if losses is None else {name: make() for name, make in losses.items()}
        self.losses = nn.ModuleDict(parts)
        self.weights = dict(weights or {})

    def players(self, model: Tokenizer) -> dict[str, list[tuple[str, nn.Parameter]]]:
        heads = [(f"losses.{name}", p) for name, p in self.losses.named_parameters()]
        return {"tokenizer": [*model.named_parameters(), *heads]}

    def updates(self, model: Tokenizer, batch: Batch, step: int) -> Iterator[Update]:
        output = model(batch.images)
        terms = self.terms(batch, output)
        yield Update("tokenizer", self.weighted(terms, model), terms, output)

    def terms(self, batch: Batch, output: TokenizerOutput) -> dict[str, Tensor]:
        """Every loss by name, unweighted scalars: the summands, then the model's own."""
        return {name: loss(batch, output) for name, loss in self.losses.items()} | output.losses

    def weighted(self, terms: dict[str, Tensor], model: Tokenizer) -> Tensor:
        declared = {**model.loss_weights, **model.quantizer.loss_weights}
        total = next(iter(terms.values())).new_zeros(())
        for name, value in terms.items():
            weight = self.weights.get(name, declared.get(name, 1.0))
            total = total + weight * value
        return total

    def loss_names(self, model: Tokenizer) -> tuple[set[str], set[str]]:
        return {*self.losses, *model.loss_weights, *model.quantizer.loss_weights}, set(self.weights)
