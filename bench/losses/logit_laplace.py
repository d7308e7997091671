"""Negative log-likelihood of a Laplace distribution of the pixels' logits (DALL-E's dVAE)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.interfaces import Loss
from bench.registry import register
from bench.types import Batch, TokenizerOutput

CLOSEST = 1e-6      # that a probability may come to 0 or 1


@register("loss", "logit_laplace")
class LogitLaplace(Loss):
    """mean |logit y - mu| / b + ln b + ln(y (1 - y)) + ln 2 (arXiv:2102.12092, Appendix A.3) over all elements.

    Pixels x of [0, 1] become y = (1 - 2 margin) x + margin. The reconstruction is the decoder's median in pixels, so that
    mu = logit y of it; outside of (0, 1) y is clamped and gives no gradient. ln b is the output's `log_scale` where the
    decoder has one, else the constant `log_scale`. The third term does not depend on the decoder and is part of the
    published number. Raises ValueError for a margin that is not between 0 and 1/2.
    """

    def __init__(self, *, margin: float = 0.1, log_scale: float = 0.0) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(f"margin must lie between 0 and 0.5, got {margin}")
        self.margin, self.log_scale = margin, log_scale

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        y = self._mapped(batch.images)
        mu = torch.logit(self._mapped(output.reconstruction.float()), eps=CLOSEST)
        log_scale = self.log_scale if output.log_scale is None else output.log_scale.float()
        distance = (torch.logit(y) - mu).abs()
        scaled = distance * (math.exp(-log_scale) if isinstance(log_scale, float) else torch.exp(-log_scale))
        return (scaled + log_scale + (y * (1 - y)).log() + math.log(2)).mean()

    def _mapped(self, pixels: Tensor) -> Tensor:
        """[-1, 1] -> [margin, 1 - margin]."""
        return (1 - 2 * self.margin) * (pixels + 1) / 2 + self.margin
