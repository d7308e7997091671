"""GaussianQuant: a Gaussian VAE in training, quantization by a fixed random codebook in evaluation (arXiv:2512.06609)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.quasirandom import SobolEngine

from bench.distributed import min_across, sum_across
from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.nearest import largest_product
from implementations.search.precision import without_autocast

LARGEST_SHARE = 1e30        # of the KL's multiplier: in fp32 what has become infinite or 0 would stay so


@register("quantizer", "gaussian_quant")
class GaussianQuant(Quantizer):
    """The encoder gives mean and log-variance of D channels; the codes c_k are K fixed points of N(0, I), never trained.

    Training hands on a sample of the posterior and steers its KL to log2 K bits a token, so that K codes can carry it.
    Evaluation takes the code argmax_k sum_d [log N(c_k; mean, var) - beta log N(c_k; 0, 1)], also reported while
    training, and hands on c_k. Codes are scrambled Sobol points through the normal quantile.

    kl = lam * r * KL in bits, with r = lam_max where it is above log2 K + tolerance, lam_min where it is below
    log2 K - tolerance, 1 between. Once a step, from the KL of all tokens on all processes: lam is multiplied by
    lam_factor where the mean is above log2 K, else divided; lam_max is multiplied where the largest is above the band,
    else divided, at least 1; lam_min is divided where the smallest is below the band, else multiplied, at most 1.

    form: which of the authors' two classes.
        `first`: KL summed over an image's tokens, averaged over images; lam_min and lam_max within [1e-3, 1e3].
        `second`: KL averaged over tokens; within [1e-7, 1e7]; lam_max never falls (a statement of theirs has no
            effect); training hands on the code, with the sample's gradient (straight-through).
    codebook_size: K, at least 2. codebook_dim: D, the tokenizer's width where it is not given; input_dim is 2 D.
    beta: 1 is the importance ratio of posterior and prior; 0 the likeliest code under the posterior.
    tolerance: half the band's width, in bits. lam_factor: above 1.
    logvar_range: the log-variance is clamped to it.
    seed: of the scrambling. The codebook is part of the state: a checkpoint does not depend on how torch draws.
    Several codes a position: `grouped` around it, with `shared: true` for the authors' one controller.
    Raises ValueError for values out of range.
    """

    title = "GaussianQuant"
    assignment = "none"

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 65536,
        codebook_dim: int | None = None,
        form: Literal["first", "second"] = "first",
        beta: float = 1.0,
        tolerance: float = 0.5,
        lam_factor: float = 1.01,
        logvar_range: tuple[float, float] = (-30.0, 20.0),
        seed: int = 42,
    ) -> None:
        super().__init__()
        dim = latent.dim if codebook_dim is None else codebook_dim
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        if not 1 <= dim <= SobolEngine.MAXDIM:
            raise ValueError(f"codebook_dim must be within 1 and {SobolEngine.MAXDIM}, got {dim}")
        if tolerance < 0:
            raise ValueError(f"tolerance must be at least 0, got {tolerance}")
        if not lam_factor > 1:
            raise ValueError(f"lam_factor must be above 1, got {lam_factor}")
        if not logvar_range[0] < logvar_range[1]:
            raise ValueError(f"logvar_range must be (lower, upper), got {tuple(logvar_range)}")
        self.input_dim, self.output_dim = 2 * dim, dim
        self.layout = TokenLayout(latent.positions, (codebook_size,), (latent.grid,) if latent.grid else ())
        self.form, self.beta, self.tolerance, self.lam_factor = form, beta, tolerance, lam_factor
        self.bits, self.logvar_range = math.log2(codebook_size), tuple(logvar_range)
        self.largest = {"first": 1e3, "second": 1e7}[form]          # of lam_max, and of 1 / lam_min
        self.loss_weights = {"kl": 0.1}
        self.register_buffer("codebook", gaussian_points(codebook_size, dim, seed))     # [K, D]
        for name in ("lam", "lam_min", "lam_max"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("step_sums", torch.zeros(2), persistent=False)             # of the KL, of ones
        self.register_buffer("step_least", torch.full((2,), torch.inf), persistent=False)   # of the KL, of -KL

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            mean, logvar = latents.float().flatten(0, 1).chunk(2, 1)                    # [N, D] each
            logvar = logvar.clamp(*self.logvar_range)
            codes = self._codes(mean.detach(), logvar.detach())
            bits = (0.5 / math.log(2)) * (mean.square() + logvar.exp() - 1 - logvar).sum(1)     # [N]
            kl = self._kl(bits, len(latents))
            q = F.embedding(codes, self.codebook)
            if self.training:
                sample = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, device=mean.device)
                q = sample if self.form == "first" else q + (sample - sample.detach())
                self._observe(bits.detach())
        shape = latents.shape[:2]
        return QuantizerOutput(q.view(*shape, -1).to(latents.dtype), codes.view(*shape, 1), {"kl": kl})

    def _codes(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """The terms of the score in which k occurs are linear in c^2 and c: one product tells."""
        precision = (-logvar).exp()
        return largest_product(torch.cat([0.5 * (self.beta - precision), precision * mean], 1),
                               torch.cat([self.codebook.square(), self.codebook], 1))

    def _kl(self, bits: Tensor, images: int) -> Tensor:
        shares = torch.where(bits > self.bits + self.tolerance, self.lam_max, 1.0)
        shares = torch.where(bits < self.bits - self.tolerance, self.lam_min, shares)
        return self.lam * (shares * bits).sum() / (images if self.form == "first" else len(bits))

    def _observe(self, bits: Tensor) -> None:
        self.step_sums += torch.stack([bits.sum(), torch.ones_like(bits).sum()])
        torch.minimum(self.step_least, torch.stack([bits.min(), -bits.max()]), out=self.step_least)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        total, count = sum_across(self.step_sums)
        least, negated_most = min_across(self.step_least)
        seen, up = count > 0, self.lam_factor
        lam = self.lam * torch.where(total > count * self.bits, up, 1 / up)
        fall = 1 / up if self.form == "first" else 1.0
        lam_max = self.lam_max * torch.where(-negated_most > self.bits + self.tolerance, up, fall)
        lam_min = self.lam_min * torch.where(least < self.bits - self.tolerance, 1 / up, up)
        for share, moved, bounds in ((self.lam, lam, (1 / LARGEST_SHARE, LARGEST_SHARE)),
                                     (self.lam_max, lam_max, (1.0, self.largest)),
                                     (self.lam_min, lam_min, (1 / self.largest, 1.0))):
            share.copy_(torch.where(seen, moved.clamp(*bounds), share))
        self.step_sums.zero_()
        self.step_least.fill_(torch.inf)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self.codebook)

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self.codebook,)


def gaussian_points(count: int, dim: int, seed: int) -> Tensor:
    """[count, dim] float32, low-discrepancy points of N(0, I), on the default device; torch's random state stays.

    Sobol points are drawn in fp32 as published, where a coordinate may round to 0 or 1, whose quantile is infinite:
    those are moved inside by half a step.
    """
    device = torch.empty(0).device
    with torch.device("cpu"):
        points = SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float32).double()
        points = torch.special.ndtri(points.clamp(2.0**-31, 1 - 2.0**-25)).float()
    return points.to(device)
