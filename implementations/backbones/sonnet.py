"""The convolutional network of Sonnet's VQ-VAE example: strided convolutions and residual blocks, no norm, no attention.

It is the network of VQ-VAE (arXiv:1711.00937, section 4.1), of CVQ-VAE, and twice that of VQ-VAE-2.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + Conv1x1(ReLU(Conv3x3(ReLU(x)))), C -> residual_hidden -> C, with biases.

    rectified_skip: the skip carries relu(x): CVQ-VAE's first ReLU is in place and overwrites what the skip adds.
    """

    def __init__(self, channels: int, residual_hidden: int, *, rectified_skip: bool) -> None:
        super().__init__()
        self.rectified_skip = rectified_skip
        self.conv1 = nn.Conv2d(channels, residual_hidden, 3, 1, 1)
        self.conv2 = nn.Conv2d(residual_hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        return (rectified if self.rectified_skip else x) + self.conv2(F.relu(self.conv1(rectified)))


def sonnet_encoder(
    channels: int, hidden: int, residual_hidden: int, resblocks: int, halvings: int, *, rectified_skip: bool = False
) -> nn.Sequential:
    """[B, channels, H, W] -> [B, hidden, H / 2^halvings, W / 2^halvings], not negative. The first halving has half the
    width."""
    widths = [channels, hidden // 2, *[hidden] * (halvings - 1)]
    halving = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
    blocks = (ResidualBlock(hidden, residual_hidden, rectified_skip=rectified_skip) for _ in range(resblocks))
    return nn.Sequential(*halving, nn.Conv2d(widths[-1], hidden, 3, 1, 1), *blocks, nn.ReLU())


def sonnet_decoder(
    channels: int, out: int, hidden: int, residual_hidden: int, resblocks: int, doublings: int, *,
    rectified_skip: bool = False,
) -> nn.Sequential:
    """[B, channels, h, w] -> [B, out, 2^doublings h, 2^doublings w], linear; the layer that writes them is the last. Where
    there are several doublings, the last but one halves the width."""
    widths = [*[hidden] * (doublings - 1), *([hidden // 2] if doublings > 1 else [hidden]), out]
    doubling = [layer for a, b in pairwise(widths)
                for layer in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.ReLU())]
    blocks = (ResidualBlock(hidden, residual_hidden, rectified_skip=rectified_skip) for _ in range(resblocks))
    return nn.Sequential(nn.Conv2d(channels, hidden, 3, 1, 1), *blocks, nn.ReLU(), *doubling[:-1])
