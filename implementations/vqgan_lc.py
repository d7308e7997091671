"""VQGAN-LC (arXiv:2406.11837): VQGAN's network under 100,000 codes that never move, behind a learned projection."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "vqgan_lc")
class VQGANLC(ConvResTokenizer):
    """71.8 M parameters, 256 tokens of 100,000 codes for 256 pixels.

    quantizer: the published table holds features of CLIP: give `table: {name: loaded, file: ..., sha256: ...}`. Without
        a file the default is SimVQ's table, frozen rows N(0, 1/8) of the codes' width behind a linear map. (The released
        code's own random mode draws the frozen rows from U(+-1/K): all codes then begin within 1e-5 of each other.)
    blocks: residual blocks a level of the encoder; the decoder has one more. attention: at which fractions 1/factor of
        the image's side.
    Raises ValueError for widths that 32 groups do not divide, attention at a resolution that is not there, and image
    sizes that cannot be halved often enough.
    """

    title = "VQGAN-LC"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [4], "latent_channels": 8,
             "quantizer": {"name": "codebook_vq", "codebook_size": 16, "codebook_dim": 4, "table": "linear"}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "codebook_vq", "codebook_size": 100_000, "codebook_dim": 8,
                                         "table": "linear"},
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
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
