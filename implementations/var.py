"""VAR's multi-scale tokenizer (arXiv:2404.02905): a wide VQGAN network, coded from one token to the whole grid."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "var")
class VAR(ConvResTokenizer):
    """vae_ch160v4096z32: 108.9 M parameters, 680 tokens on ten scales of 4,096 codes for 256 pixels. Another image
    size wants other scales.

    The projections around the quantizer are 3x3 convolutions, and attention is at the lowest resolution.
    blocks: residual blocks a level of the encoder; the decoder has one more.
    Raises ValueError for widths that 32 groups do not divide, and image sizes that cannot be halved often enough or do
    not end in the last scale.
    """

    title = "VAR"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "latent_channels": 8,
             "quantizer": {"name": "multi_scale", "scales": [1, 2, 5, 8],
                           "quantizer": {"name": "vq", "codebook_size": 16}}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {
            "name": "multi_scale", "scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            "quantizer": {"name": "vq", "codebook_size": 4096, "codebook_dim": 32}},
        channels: int = 160,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 32,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": (2 ** (len(multipliers) - 1),)}
        self.encoder = ConvEncoder(latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(latent_channels, self.quantizer.input_dim, 3, padding=1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 3, padding=1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
