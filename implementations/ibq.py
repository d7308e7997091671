"""IBQ's tokenizer (arXiv:2412.02692): VQGAN's network, twice as deep, under index backpropagation."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "ibq")
class IBQTokenizer(ConvResTokenizer):
    """IBQ-16384 of SEED-Voken: 111.0 M parameters, 256 tokens for 256 pixels; the other published codebooks have
    1,024, 8,192, 262,144.

    blocks: residual blocks a level of the encoder; the decoder has one more. attention: at which fractions 1/factor of
        the image's side.
    Raises ValueError for widths that 32 groups do not divide, attention at a resolution that is not there, and image
    sizes that cannot be halved often enough.
    """

    title = "IBQ"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [4], "latent_channels": 8,
             "quantizer": {"name": "ibq", "codebook_size": 16}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "ibq", "codebook_size": 16384, "codebook_dim": 256},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        latent_channels: int = 256,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": attention}
        self.encoder = ConvEncoder(latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(latent_channels, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
