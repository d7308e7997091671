"""VQ-VAE (arXiv:1711.00937) as trained in github.com/NimbleBoxAI/explore-weights: downsampling by 4, one grid of codes."""

from __future__ import annotations

from functools import partial

from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape, sides
from implementations.backbones.simple_cnn import ResidualBlock


@register("tokenizer", "vqvae_explore")
class VQVAEExplore(Tokenizer):
    """973,443 parameters at hidden 128 with 512 codes; residual blocks half as wide inside, whose skips carry the
    rectified input.

    The network takes pixels in [-0.5, 0.5] and writes them so; here they are in [-1, 1] as everywhere.
    Raises ValueError for an image size that is no multiple of 4, or an odd width.
    """

    title = "explore VQ-VAE"

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "vq", "codebook_size": 512},
        hidden: int = 128,
        resblocks: int = 2,
    ) -> None:
        super().__init__()
        height, width = sides(image_size)
        if height % 4 or width % 4:
            raise ValueError(f"vqvae_explore downsamples by 4, so dataset.image_size must be a multiple of 4, got {image_size}")
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden must be even and at least 2, got {hidden}")
        self.side, half = height // 4, hidden // 2
        self.quantizer = component("quantizer", quantizer)(
            LatentShape(positions=self.side * (width // 4), dim=hidden, grid=(self.side, width // 4)))

        def blocks() -> list[nn.Module]:
            return [ResidualBlock(hidden, rectified_skip=True, inner=half) for _ in range(resblocks)]

        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, 2, 1), nn.ReLU(), nn.Conv2d(half, hidden, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, 1, 1), *blocks(), nn.ReLU(),
        )
        self.to_latents = nn.Conv2d(hidden, self.quantizer.input_dim, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(self.quantizer.output_dim, hidden, 3, 1, 1), *blocks(), nn.ReLU(),
            nn.ConvTranspose2d(hidden, half, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(half, 3, 4, 2, 1),
        )

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(self.to_latents(self.encoder(images / 2)), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(rearrange(quantized, "b (h w) d -> b d h w", h=self.side)) * 2

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight
