"""VQ-VAE (arXiv:1711.00937) on SimpleCNN: downsampling by 4, one grid of codes."""

from __future__ import annotations

from functools import partial
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import register
from bench.types import LatentShape
from implementations.backbones.simple_cnn import simple_cnn_decoder, simple_cnn_encoder

NORM_GROUPS = 4


@register("tokenizer", "vqvae")
class VQVAE(Tokenizer):
    """The network of the published CelebA-64 table; 4,928,835 parameters at hidden 256 with 512 codes of 64.

    hidden: channels at the latent resolution. rectified_skip: see ResidualBlock; True is as published.
    encoder_norm: `none` as published; `group` puts a GroupNorm of four groups without parameters before the last 1x1
        convolution of the encoder. Quantizers whose entropy loss has a fixed scale (LFQ, IBQ) need it: the network
        has no norm of its own, and latents that may be of any size outrun the loss before it acts.
    Raises ValueError for an image size that is no multiple of 4, an odd width, or a norm of a width that four groups
    do not divide.
    """

    title = "SimpleCNN VQ-VAE"
    neutral = {"encoder_norm": "none"}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer],
        hidden: int = 256,
        resblocks: int = 2,
        rectified_skip: bool = True,
        encoder_norm: Literal["none", "group"] = "none",
    ) -> None:
        super().__init__()
        if image_size % 4:
            raise ValueError(f"vqvae downsamples by 4, so dataset.image_size must be a multiple of 4, got {image_size}")
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden must be even and at least 2, got {hidden}")
        if encoder_norm == "group" and hidden % NORM_GROUPS:
            raise ValueError(f"encoder_norm: group needs a multiple of {NORM_GROUPS} as hidden, got {hidden}")
        self.side = image_size // 4
        self.quantizer = quantizer(LatentShape(positions=self.side**2, dim=hidden, grid=(self.side, self.side)))
        self.encoder = simple_cnn_encoder(hidden, resblocks, rectified_skip=rectified_skip)
        self.norm = nn.GroupNorm(NORM_GROUPS, hidden, affine=False) if encoder_norm == "group" else nn.Identity()
        self.to_latents = nn.Conv2d(hidden, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, hidden, 1)
        self.decoder = simple_cnn_decoder(hidden, resblocks, rectified_skip=rectified_skip)

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(self.to_latents(self.norm(self.encoder(images))), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(self.from_quantized(rearrange(quantized, "b (h w) d -> b d h w", h=self.side)))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-2].weight
