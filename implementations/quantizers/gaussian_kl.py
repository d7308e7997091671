"""Continuous latents with a Gaussian posterior (arXiv:1312.6114), as in latent diffusion (arXiv:2112.10752)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.precision import without_autocast


@register("quantizer", "gaussian_kl")
class GaussianKL(Quantizer):
    """The encoder gives a mean and a log-variance; training hands on a sample, evaluation the mean. No codes.

    kl = KL(N(mean, var) || N(0, 1)) = (mean^2 + var - 1 - log var) / 2, in nats, reduced as `reduction` says:
    `image`: summed over an image's latents, averaged over images; `mean`: averaged over all elements.
    The weight 1e-6 is latent diffusion's. There it stands beside a pixel loss summed over an image: beside one that
    is averaged over the 196,608 values of a 256-pixel image the same balance is 1e-6 / 196,608, about 5e-12.

    dim: width of a latent; the tokenizer's where not given. logvar_range: the log-variance is clamped to it.
    Raises ValueError for a width below 1 or an empty range.
    """

    title = "Gaussian KL"

    def __init__(
        self,
        latent: LatentShape,
        *,
        dim: int | None = None,
        reduction: Literal["image", "mean"] = "image",
        logvar_range: tuple[float, float] = (-30.0, 20.0),
    ) -> None:
        super().__init__()
        dim = latent.dim if dim is None else dim
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if not logvar_range[0] < logvar_range[1]:
            raise ValueError(f"logvar_range must be (lower, upper), got {tuple(logvar_range)}")
        self.input_dim, self.output_dim = 2 * dim, dim
        self.layout = TokenLayout(latent.positions, (), (latent.grid,) if latent.grid else ())
        self.reduction, self.logvar_range = reduction, tuple(logvar_range)
        self.loss_weights = {"kl": 1e-6}

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            mean, logvar = latents.float().chunk(2, -1)                                 # [B, P, D] each
            logvar = logvar.clamp(*self.logvar_range)
            sample = mean + (0.5 * logvar).exp() * torch.randn_like(mean) if self.training else mean
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
            kl = kl.mean() if self.reduction == "mean" else kl.sum() / len(latents)
        return QuantizerOutput(sample.to(latents.dtype), None, {"kl": kl})
