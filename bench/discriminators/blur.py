"""Convolutions that blur before they halve, with GroupNorm: the discriminator of MaskBit's VQGAN+ and of TiTok."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interfaces import Discriminator
from bench.registry import register

GROUPS = 32
SLOPE = 0.1
LOGITS = 16         # logits along each side


@register("discriminator", "blur")
class BlurGAN(Discriminator):
    """`stages` times: 3x3 convolution, [1 3 3 1] blur of stride 2, GroupNorm, LeakyReLU 0.1. Then the largest of each of
    16x16 regions, and a logit for each: [B, 1, 16, 16].

    MaskBit has width 128 and 4 stages, TiTok 3. arXiv:2409.16211; released code of both. Widths double from the second
    stage on. Raises ValueError for a width that is no multiple of the 32 groups, and for images that vanish.
    """

    def __init__(self, image_size: int, *, width: int = 128, stages: int = 4) -> None:
        super().__init__()
        if stages < 1 or width < 1 or width % GROUPS:
            raise ValueError(f"blur needs at least 1 stage and a multiple of {GROUPS} as width, got width {width} and "
                             f"stages {stages}")
        if image_size < 2**stages:
            raise ValueError(f"blur with {stages} stages needs images of {2**stages} pixels, got image_size {image_size}")
        widths = [width, *(width * 2**i for i in range(stages))]
        self.first = nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.LeakyReLU(SLOPE))
        self.stages = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), Halve(), nn.GroupNorm(GROUPS, after), nn.LeakyReLU(SLOPE))
            for before, after in itertools.pairwise(widths)
        ))
        self.pool = nn.AdaptiveMaxPool2d((LOGITS, LOGITS))
        self.to_logits = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(SLOPE), nn.Conv2d(widths[-1], 1, 5, padding=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.to_logits(self.pool(self.stages(self.first(images))))


class Halve(nn.Module):
    """Blur with [1 3 3 1] x [1 3 3 1] / 64 and take every second pixel; an odd side is rounded up, as SAME padding does."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", taps[:, None] * taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if h % 2 or w % 2:
            x = F.pad(x, (0, w % 2, 0, h % 2))
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])
