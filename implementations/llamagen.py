"""LlamaGen's tokenizer (arXiv:2406.06525): VQGAN's network with attention at its lowest resolution, codes of 8 numbers."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "llamagen")
class LlamaGen(ConvResTokenizer):
    """VQ-16: 71.9 M parameters, 256 tokens of 16,384 unit codes for 256 pixels. VQ-8 has multipliers (1, 2, 2, 4).

    blocks: residual blocks a level of the encoder; the decoder has one more.
    Raises ValueError for widths that 32 groups do not divide and for image sizes that cannot be halved often enough.
    """

    title = "LlamaGen"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "latent_channels": 8,
             "quantizer": {"name": "vq", "codebook_size": 16, "codebook_dim": 4, "normalize": "both"}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "vq", "codebook_size": 16384, "codebook_dim": 8, "normalize": "both"},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 256,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": (2 ** (len(multipliers) - 1),)}
        self.encoder = ConvEncoder(latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(latent_channels, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
