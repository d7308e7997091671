"""VQGAN (arXiv:2012.09841), the network of CompVis/taming-transformers: attention at one resolution, codes of 256."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "vqgan")
class VQGAN(ConvResTokenizer):
    """imagenet_f16_1024: 72.1 M parameters, 256 tokens of 1,024 codes for 256 pixels; f16_16384 has that codebook_size.

    blocks: residual blocks a level of the encoder; the decoder has one more. attention: at which fractions 1/factor of
        the image's side; the published network says it in pixels (16 of 256).
    attention_epsilon: of the norms before attention; 1e-5 in xyfJASON's re-implementation.
    The published commitment and codebook losses have their weights swapped (1 and 0.25): give them in the objective.
    Raises ValueError for widths that 32 groups do not divide, attention at a resolution that is not there, and image
    sizes that cannot be halved often enough.
    """

    title = "VQGAN"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [4], "latent_channels": 8,
             "quantizer": {"name": "vq", "codebook_size": 16}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "vq", "codebook_size": 1024, "codebook_dim": 256},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        latent_channels: int = 256,
        attention_epsilon: float = 1e-6,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": attention,
                   "attention_epsilon": attention_epsilon}
        self.encoder = ConvEncoder(latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(latent_channels, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
