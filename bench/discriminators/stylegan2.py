"""StyleGAN2's discriminator (arXiv:1912.04958), as ViT-VQGAN and BSQ-ViT train it: one logit per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interfaces import Discriminator
from bench.registry import register

GROUP = 4           # images whose deviation is one more channel
SLOPE = 0.2


@register("discriminator", "stylegan2")
class StyleGAN2(Discriminator):
    """Residual blocks with blurred strides from the image down to 4x4, the deviation within groups of four images as a
    channel, two linear layers; logits [B]. Weights are N(0, 1) and scaled where they are used.

    width: channels up to 32 pixels, and at most so many above, where 16,384 * multiplier / side would be. 28,864,129
    parameters for 256 pixels with the defaults.
    Raises ValueError for a side that is no power of two of at least 8, and in `forward` for a micro-batch above four
    images that cannot be split into equal groups.
    """

    def __init__(self, image_size: int, *, width: int = 512, multiplier: int = 2) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"stylegan2 halves images down to 4 pixels: image_size must be a power of two and at least 8, "
                             f"got {image_size}")

        def channels(side: int) -> int:
            return width if side <= 32 else min(width, 16_384 * multiplier // side)

        sides = [image_size >> i for i in range(image_size.bit_length() - 3)]          # image_size ... 8
        self.first = Convolution(3, channels(image_size), 1)
        self.blocks = nn.Sequential(*(Block(channels(side), channels(side // 2)) for side in sides))
        self.last = Convolution(width + 1, width, 3)
        self.hidden = Linear(width * 4 * 4, width)
        self.to_logit = Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.first(images))
        x = self.last(torch.cat([x, _deviation(x)], 1))
        x = _activate(self.hidden(x.flatten(1)))
        return self.to_logit(x).squeeze(1)


class Block(nn.Module):
    """Two 3x3 convolutions, the second of stride 2, beside a 1x1 convolution of stride 2; halves the side."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.one = Convolution(before, before, 3)
        self.two = Convolution(before, after, 3, halve=True)
        self.skip = Convolution(before, after, 1, halve=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.two(self.one(x)) + self.skip(x)) / math.sqrt(2)


class Convolution(nn.Module):
    """A convolution with equalised learning rate; a [1 3 3 1] blur before a stride of 2."""

    kernel: Tensor

    def __init__(self, before: int, after: int, size: int, *, halve: bool = False, activate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, size, size))
        self.bias = nn.Parameter(torch.zeros(after)) if activate else None
        self.scale = 1 / math.sqrt(before * size**2)
        self.halve, self.padding = halve, size // 2
        if halve:
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
            self.register_buffer("kernel", taps[:, None] * taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.halve:
            kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
            x = F.conv2d(x, kernel, padding=1 + self.padding, groups=x.shape[1])
            return self._act(F.conv2d(x, self.weight * self.scale, stride=2))
        return self._act(F.conv2d(x, self.weight * self.scale, padding=self.padding))

    def _act(self, x: Tensor) -> Tensor:
        return x if self.bias is None else _activate(x + self.bias[:, None, None])


class Linear(nn.Module):
    """A linear layer with equalised learning rate."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before))
        self.bias = nn.Parameter(torch.zeros(after))
        self.scale = 1 / math.sqrt(before)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE) * math.sqrt(2)


def _deviation(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 1, h, w]: the mean over features of the deviation within a group, the same for its images.

    Groups are images that are B / group apart in the batch.
    """
    batch, channels, h, w = x.shape
    group = batch // max(1, batch // GROUP)
    if batch % group:
        raise ValueError(f"stylegan2 compares images in groups of {GROUP}: {batch} images of one micro-batch and process "
                         f"cannot be split into groups of {group}; change batch_size or accumulation")
    groups = x.float().view(group, batch // group, channels, h, w)
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))         # [B / group]
    return deviation.repeat(group)[:, None, None, None].expand(-1, 1, h, w).to(x.dtype)
