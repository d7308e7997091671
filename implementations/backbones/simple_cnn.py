"""SimpleCNN of the CelebA-64 baselines: two strided convolutions each way and residual blocks, no norm, no attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + Conv1x1(ReLU(Conv3x3(ReLU(x)))), C -> C, without bias; `inner` channels between them, C where not given.

    rectified_skip: the published block applies its first ReLU in place, which overwrites the very tensor that the
    skip adds afterwards, so it computes relu(x) + f(relu(x)). All published numbers come from that network; it is
    the default. False is the block as drawn in the papers, which is another network.
    """

    def __init__(self, channels: int, *, rectified_skip: bool, inner: int | None = None) -> None:
        super().__init__()
        self.rectified_skip = rectified_skip
        inner = channels if inner is None else inner
        self.conv1 = nn.Conv2d(channels, inner, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        skip = rectified if self.rectified_skip else x
        return skip + self.conv2(F.relu(self.conv1(rectified)))


def simple_cnn_encoder(hidden: int, resblocks: int, *, rectified_skip: bool) -> nn.Sequential:
    """[B, 3, H, W] -> [B, hidden, H/4, W/4]."""
    return nn.Sequential(
        nn.Conv2d(3, hidden // 2, 4, 2, 1), nn.LeakyReLU(0.01),
        nn.Conv2d(hidden // 2, hidden, 4, 2, 1), nn.LeakyReLU(0.01),
        nn.Conv2d(hidden, hidden, 3, 1, 1),
        *(ResidualBlock(hidden, rectified_skip=rectified_skip) for _ in range(resblocks)),
    )


def simple_cnn_decoder(hidden: int, resblocks: int, *, rectified_skip: bool) -> nn.Sequential:
    """[B, hidden, h, w] -> [B, 3, 4h, 4w] in (-1, 1); the layer that writes the pixels is the last but one."""
    return nn.Sequential(
        *(ResidualBlock(hidden, rectified_skip=rectified_skip) for _ in range(resblocks)),
        nn.LeakyReLU(0.01), nn.Conv2d(hidden, hidden, 3, 1, 1),
        nn.LeakyReLU(0.01), nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1),
        nn.LeakyReLU(0.01), nn.ConvTranspose2d(hidden // 2, 3, 4, 2, 1),
        nn.Tanh(),
    )
