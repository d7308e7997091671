"""PatchGAN with BatchNorm (arXiv:1611.07004), as VQGAN, LlamaGen and OptVQ train it: one logit per patch."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from bench.distributed import mean_across
from bench.interfaces import Discriminator
from bench.registry import register


@register("discriminator", "patch")
class PatchGAN(Discriminator):
    """4x4 convolutions, `layers` of stride 2 and two of stride 1; logits [B, 1, h, w], 30x30 of 256 pixels.

    2,765,633 parameters at width 64 with 3 layers, where a logit sees 70 pixels.
    norm: `batch` takes the statistics of one process's micro-batch, real and fake apart (taming, LlamaGen);
        `sync_batch` those of all processes (OptVQ).
    init: `normal` draws convolutions from N(0, 0.02) and scales from N(1, 0.02), as taming; `default` is torch's.
    Raises ValueError for images that leave no logit.
    """

    def __init__(
        self,
        image_size: int,
        *,
        width: int = 64,
        layers: int = 3,
        norm: Literal["batch", "sync_batch"] = "batch",
        init: Literal["normal", "default"] = "normal",
    ) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"patch needs at least width 1 and 1 layer, got width {width} and layers {layers}")
        side = image_size
        for _ in range(layers):
            side //= 2
        if side < 3:
            raise ValueError(f"patch with {layers} layers needs images of {3 * 2**layers} pixels, got image_size {image_size}")
        norms = nn.BatchNorm2d if norm == "batch" else SyncBatchNorm
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(itertools.pairwise(widths), 1):
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(before, after, 4, stride, 1, bias=False), norms(after), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        if init == "normal":
            self.apply(_draw)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of all processes, on any device; gradients are exact."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        moments = mean_across(torch.stack([wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))]))
        mean, variance = moments[0], moments[1] - moments[0].square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (wide * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
