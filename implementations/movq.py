"""MoVQ (arXiv:2209.09002): every norm of VQGAN's decoder is modulated by the quantized map; four codes a cell."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "movq")
class MoVQ(ConvResTokenizer):
    """As in the paper: 78.3 M parameters, 256 tokens of four levels that share 1,024 codes of 64, for 256 pixels.

    ai-forever/MoVQGAN, the public re-implementation, codes one level: multipliers (1, 2, 2, 4), attention (8,),
    latent_channels 4, quantizer {name: vq, codebook_size: 16384}; its 67M and 102M have 2 and 4 blocks, its 270M 256
    channels.

    The decoder's norms look at the map as it is quantized, before its projection.
    blocks: residual blocks a level of the encoder; the decoder has one more. attention: at which fractions 1/factor of
        the image's side.
    Raises ValueError for widths that 32 groups do not divide, attention at a resolution that is not there, and image
    sizes that cannot be halved often enough.
    """

    title = "MoVQ"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [4], "latent_channels": 8,
             "quantizer": {"name": "grouped", "groups": 2, "shared": True,
                           "quantizer": {"name": "vq", "codebook_size": 16}}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "grouped", "groups": 4, "shared": True,
                                         "quantizer": {"name": "vq", "codebook_size": 1024}},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        latent_channels: int = 256,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": attention}
        self.encoder = ConvEncoder(latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(latent_channels, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, norm="spatial",
                                   condition_channels=self.quantizer.output_dim, **network)
