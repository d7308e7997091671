"""RQ-VAE (arXiv:2203.01941): VQGAN's network down to 8 x 8 cells, each coded by the sum of several codes of one table."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "rqvae")
class RQVAE(ConvResTokenizer):
    """8 x 8 x 4 for 256 pixels: 100.2 M parameters, 64 tokens of four levels, 16,384 codes of moving averages that
    all levels share. With `levels: 16` it is 8 x 8 x 16.

    Codes that nothing chooses begin anew; the released rule is `update: rq_vae` with `restart: rq_vae`, as in the suite.
    blocks: residual blocks a level of the encoder; the decoder has one more. attention: at which fractions 1/factor of
        the image's side.
    Raises ValueError for widths that 32 groups do not divide, attention at a resolution that is not there, and image
    sizes that cannot be halved often enough.
    """

    title = "RQ-VAE"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [4], "latent_channels": 8,
             "quantizer": {"name": "residual", "levels": 3, "quantizer": {
                 "name": "codebook_vq", "codebook_size": 16, "update": "ema", "restart": "random_restart"}}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "residual", "levels": 4, "quantizer": {
            "name": "codebook_vq", "codebook_size": 16384, "codebook_dim": 256, "update": "ema",
            "restart": "random_restart"}},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (32,),
        latent_channels: int = 256,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": attention}
        self.encoder = ConvEncoder(latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(latent_channels, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
