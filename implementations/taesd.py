"""TAESD: the tiny autoencoder of latent-diffusion latents (github.com/madebyollin/taesd), downsampling by 8, no codes."""

from __future__ import annotations

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape, sides

DOWNSAMPLE = 8
LARGEST = 3.0               # latents that the decoder sees lie within +- this
POOL_GROUPS = 4


class Block(nn.Module):
    """relu(conv(x) + x) of three convolutions; with a pool first x + conv1x1(relu(norm(conv1x1(x)))), four times as wide
    and normalized over the whole image, which is how FLUX.2's variant sees beyond its convolutions."""

    def __init__(self, width: int, *, pool: bool) -> None:
        super().__init__()
        three = [layer for _ in range(3) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*three[:-1])
        wide = 4 * width
        self.pool = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.GroupNorm(POOL_GROUPS, wide), nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),
        ) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Bounded(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LARGEST) * LARGEST


@register("tokenizer", "taesd")
class TAESD(Tokenizer):
    """2.4 M parameters at width 64: TAESD and TAESDXL have 4 latent channels, TAESD3 and TAEF1 16, TAEF2 32 and a pool.

    Its latents imitate those of another, large autoencoder, which the published weights were distilled from.
    latent_pool: with a pool in the three blocks at the latent resolution of encoder and decoder (TAEF2).
    The network works on pixels in [0, 1]; here they are in [-1, 1] as everywhere.
    Raises ValueError for an image size that is no multiple of 8.
    """

    title = "TAESD"

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = "continuous",
        latent_dim: int = 4,
        width: int = 64,
        latent_pool: bool = False,
    ) -> None:
        super().__init__()
        height, wide = sides(image_size)
        if height % DOWNSAMPLE or wide % DOWNSAMPLE:
            raise ValueError(f"taesd downsamples by 8, so dataset.image_size must be a multiple of 8, got {image_size}")
        self.side, columns = height // DOWNSAMPLE, wide // DOWNSAMPLE
        self.quantizer = component("quantizer", quantizer)(
            LatentShape(positions=self.side * columns, dim=latent_dim, grid=(self.side, columns)))

        def blocks(pool: bool = False) -> list[nn.Module]:
            return [Block(width, pool=pool) for _ in range(3)]

        def down() -> nn.Module:
            return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)

        def up() -> list[nn.Module]:
            return [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]

        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), Block(width, pool=False),
            down(), *blocks(), down(), *blocks(), down(), *blocks(latent_pool),
            nn.Conv2d(width, self.quantizer.input_dim, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            Bounded(), nn.Conv2d(self.quantizer.output_dim, width, 3, padding=1), nn.ReLU(),
            *blocks(latent_pool), *up(), *blocks(), *up(), *blocks(), *up(),
            Block(width, pool=False), nn.Conv2d(width, 3, 3, padding=1),
        )

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(self.encoder((images + 1) / 2), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(rearrange(quantized, "b (h w) d -> b d h w", h=self.side)) * 2 - 1

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight
