"""Reconstruction against a discriminator: what VQGAN (arXiv:2012.09841) and all that follow it are trained with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.distributed import mean_across
from bench.interfaces import Discriminator, Loss, Tokenizer
from bench.objectives.reconstruction import Reconstruction
from bench.registry import register
from bench.types import Batch, Update

OWN = ("adversarial", "discriminator")      # what its own losses are called


@register("objective", "adversarial")
class Adversarial(Reconstruction):
    """Named losses as in `reconstruction`, and from step `start` on weights[adversarial] * scale * generator loss.

    Two players: `tokenizer` (with the heads of losses) and `discriminator`. Each step both look at the same
    reconstruction, which the discriminator gets without its graph, and then both move; so a step is one update of the
    generator, and starts are counted in them. (Frameworks that count every optimizer reach a published start twice as
    early.) x is an image, y its reconstruction, D a logit; every mean is over all logits of a micro-batch.

    generator_loss: `hinge` -mean D(y) (also what several projects pair with their vanilla loss); `non_saturating`
        mean softplus(-D(y)) (what ViT-VQGAN and BSQ-ViT call vanilla); `vanilla` mean log(1 - sigmoid D(y)), the minimax
        game of arXiv:1406.2661.
    generator_over: `images` averages the logits of each image first (Open-MAGVIT2, IBQ).
    discriminator_loss: `hinge` (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2; `vanilla`
        (mean softplus(-D(x)) + mean softplus(D(y))) / 2; `non_saturating` the same without the half.
    weights: besides those of the losses `adversarial` and `discriminator`, 1 where not named.
    adaptive: scale = |g(losses)| / (|g(generator loss)| + 1e-4), gradients at the tokenizer's last layer, averaged over
        processes, clamped to [0, most] (Eq. 7 and the released code); else 1. Logged before and after the clamp. The
        weighted sum of all losses is taken; those of the codebook do not reach that layer. It is one number per
        micro-batch, as BatchNorm's statistics are: here accumulation is not the same as a larger batch.
    start, discriminator_start: first steps at which the generator feels the discriminator, and at which that learns;
        null: together. taming and LlamaGen start together, OptVQ trains the discriminator from step 0.
    lecam: weight of LeCam (arXiv:2104.03310), relu(R - f)^2 + relu(r - F)^2 with r, f moving averages of the mean logits
        of images and reconstructions over steps (`lecam_decay`, from 0, moved after the step). `lecam_over`: R, F are
        the mean logits of the micro-batch over all processes (`batch`: MaskBit, TiTok), or each logit, and the terms are
        averaged (`logits`: Open-MAGVIT2, IBQ, which move r and f before they use them).
    r1: gamma of mean |grad_x sum D(x)|^2 * gamma / 2 (arXiv:1801.04406), on every `r1_every`-th step, times r1_every
        (StyleGAN2). ViT-VQGAN and BSQ-ViT: 10 on every 16th.

    The gradients of `adaptive` and `r1` are taken outside of autocast. Raises ValueError for a summand that is called
    like one of its own losses, and for a discriminator that starts later than the generator feels it.
    """

    def __init__(
        self,
        *,
        discriminator: partial[Discriminator],
        losses: dict[str, partial[Loss]] | None = None,
        weights: dict[str, float] | None = None,
        generator_loss: Literal["hinge", "non_saturating", "vanilla"] = "hinge",
        generator_over: Literal["logits", "images"] = "logits",
        discriminator_loss: Literal["hinge", "non_saturating", "vanilla"] = "hinge",
        adaptive: bool = True,
        most: float = 1e4,
        start: int = 0,
        discriminator_start: int | None = None,
        lecam: float = 0.0,
        lecam_decay: float = 0.999,
        lecam_over: Literal["batch", "logits"] = "batch",
        r1: float = 0.0,
        r1_every: int = 1,
    ) -> None:
        super().__init__(losses=losses, weights=weights)
        for name in OWN:
            if name in self.losses:
                raise ValueError(f"losses: {name} is what the objective's own loss is called; call the summand otherwise")
        first = start if discriminator_start is None else discriminator_start
        if min(start, first) < 0 or first > start:
            raise ValueError(f"discriminator_start must lie between 0 and start = {start}, got {discriminator_start}")
        if min(lecam, r1) < 0 or r1_every < 1 or most <= 0 or not 0 <= lecam_decay < 1:
            raise ValueError(f"lecam {lecam} and r1 {r1} must not be negative, r1_every {r1_every} at least 1, most {most} "
                             f"above 0, lecam_decay {lecam_decay} in [0, 1)")
        self.make = discriminator
        self.generator_loss, self.generator_over, self.discriminator_loss = generator_loss, generator_over, discriminator_loss
        self.adaptive, self.most, self.start, self.first = adaptive, most, start, first
        self.lecam, self.lecam_decay, self.lecam_over = lecam, lecam_decay, lecam_over
        self.r1, self.r1_every = r1, r1_every
        self.parts = 0                                              # micro-batches of this step, for LeCam
        if lecam:
            self.register_buffer("usual", torch.zeros(2))           # r, f
            self.register_buffer("seen", torch.zeros(2), persistent=False)

    def begin(self, image_size: int) -> None:
        """Builds the discriminator. Raises ValueError where it has no use for images of this side."""
        self.discriminator = self.make(image_size)

    def players(self, model: Tokenizer) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {**super().players(model), "discriminator": list(self.discriminator.named_parameters())}

    def loss_names(self, model: Tokenizer) -> tuple[set[str], set[str]]:
        known, weighted = super().loss_names(model)
        return known | set(OWN), weighted

    def updates(self, model: Tokenizer, batch: Batch, step: int) -> Iterator[Update]:
        output = model(batch.images)
        terms = self.terms(batch, output)
        loss = self.weighted(terms, model)
        if step >= self.start:
            fooling = self.fooling(self.discriminator(output.reconstruction).float())
            terms["adversarial"] = fooling
            scale: float | Tensor = 1.0
            if self.adaptive:
                ratio = self.ratio(loss, fooling, model.last_layer)
                scale = ratio.clamp(0, self.most)
                terms |= {"adaptive_weight_unclamped": ratio, "adaptive_weight": scale}
            loss = loss + self.weights.get("adversarial", 1.0) * scale * fooling
        reconstruction = output.reconstruction.detach()
        yield Update("tokenizer", loss, terms, output)
        if step >= self.first:
            loss, terms = self.judging(batch.images, reconstruction, step)
            yield Update("discriminator", loss, terms)

    def fooling(self, logits: Tensor) -> Tensor:
        """The generator's loss, from the logits [B, ...] of reconstructions."""
        if self.generator_over == "images":
            logits = logits.flatten(1).mean(1)
        match self.generator_loss:
            case "hinge":
                return -logits.mean()
            case "non_saturating":
                return F.softplus(-logits).mean()
        return -F.softplus(logits).mean()

    def ratio(self, loss: Tensor, fooling: Tensor, last_layer: nn.Parameter) -> Tensor:
        """How much larger the losses' gradient at the last layer is than the discriminator's."""
        with torch.autocast(loss.device.type, enabled=False):
            reference, opposed = (
                mean_across(torch.autograd.grad(value, last_layer, retain_graph=True)[0]).norm() for value in (loss, fooling)
            )
        return reference / (opposed + 1e-4)

    def judging(self, images: Tensor, reconstruction: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss and its terms, from images and reconstructions [B, 3, H, W] without a graph."""
        penalised = self.r1 > 0 and step % self.r1_every == 0
        if penalised:
            images = images.detach().requires_grad_()
            with torch.autocast(images.device.type, enabled=False):
                real = self.discriminator(images)
        else:
            real = self.discriminator(images)
        real, fake = real.float(), self.discriminator(reconstruction).float()
        judged = self.judged(real, fake)
        terms = {"discriminator": judged, "logits_real": real.mean(), "logits_fake": fake.mean()}
        loss = self.weights.get("discriminator", 1.0) * judged
        if self.lecam:
            terms["lecam"] = self.regularised(real, fake)
            loss = loss + self.lecam * terms["lecam"]
        if penalised:
            with torch.autocast(images.device.type, enabled=False):
                (gradient,) = torch.autograd.grad(real.sum(), images, create_graph=True)
                terms["r1"] = gradient.square().flatten(1).sum(1).mean()
            loss = loss + self.r1 / 2 * self.r1_every * terms["r1"]
        return loss, terms

    def judged(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.discriminator_loss == "hinge":
            return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        both = F.softplus(-real).mean() + F.softplus(fake).mean()
        return both / 2 if self.discriminator_loss == "vanilla" else both

    def regularised(self, real: Tensor, fake: Tensor) -> Tensor:
        """LeCam's distance, and the mean logits noted for `after_step`."""
        self.seen += torch.stack([real.detach().mean(), fake.detach().mean()])
        self.parts += 1
        if self.lecam_over == "batch":
            real, fake = mean_across(torch.stack([real.mean(), fake.mean()]))
        return F.relu(real - self.usual[1]).square().mean() + F.relu(self.usual[0] - fake).square().mean()

    def after_step(self, step: int) -> None:
        if self.parts:
            self.usual.lerp_(mean_across(self.seen / self.parts), 1 - self.lecam_decay)
            self.seen.zero_()
            self.parts = 0
