"""VQ-VAE (arXiv:1711.00937) and CVQ-VAE (arXiv:2307.15139) on Sonnet's network, for 28- to 128-pixel images."""

from __future__ import annotations

from functools import partial

from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import register
from bench.types import LatentShape
from implementations.backbones.sonnet import sonnet_decoder, sonnet_encoder


@register("tokenizer", "vqvae_sonnet")
class VQVAESonnet(Tokenizer):
    """A 1x1 convolution before the quantizer and none after it: the decoder's first 3x3 takes the codes themselves.

    hoanhle/vqvae has the defaults, codes of 32, and 4,357,155 parameters without the codebook; lyndonzheng/CVQ-VAE has
    hidden 128, residual_hidden 32, codes of 64 and rectified_skip.

    halvings: of the image's sides, 2 as published.
    rectified_skip: see ResidualBlock.
    pixel_range: the network works in [-pixel_range, pixel_range]; 0.5 is hoanhle's, 1.0 CVQ-VAE's.
    Raises ValueError for an image size that 2^halvings does not divide, an odd width, or no halving.
    """

    title = "Sonnet VQ-VAE"
    small = {"residual_hidden": 8}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer],
        hidden: int = 256,
        residual_hidden: int = 256,
        resblocks: int = 2,
        halvings: int = 2,
        rectified_skip: bool = False,
        pixel_range: float = 1.0,
    ) -> None:
        super().__init__()
        if halvings < 1 or image_size % 2**halvings:
            raise ValueError(f"dataset.image_size must be a multiple of 2^halvings, halvings at least 1, got {image_size} and "
                             f"{halvings}")
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden must be even and at least 2, got {hidden}")
        if not pixel_range > 0:
            raise ValueError(f"pixel_range must be above 0, got {pixel_range}")
        self.side, self.pixel_range = image_size // 2**halvings, pixel_range
        self.quantizer = quantizer(LatentShape(positions=self.side**2, dim=hidden, grid=(self.side, self.side)))
        inner = (hidden, residual_hidden, resblocks, halvings)
        self.encoder = sonnet_encoder(3, *inner, rectified_skip=rectified_skip)
        self.to_latents = nn.Conv2d(hidden, self.quantizer.input_dim, 1)
        self.decoder = sonnet_decoder(self.quantizer.output_dim, 3, *inner, rectified_skip=rectified_skip)

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(self.to_latents(self.encoder(images * self.pixel_range)), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(rearrange(quantized, "b (h w) d -> b d h w", h=self.side)) / self.pixel_range

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight
