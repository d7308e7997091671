"""Autoencoders of latent diffusion (arXiv:2112.10752): Stable Diffusion's KL-f8, SDXL's, and VQ-f4, f8, f16."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "ldm")
class LDM(ConvResTokenizer):
    """KL-f8: 83.7 M parameters, 32 x 32 Gaussian latents of width 4 for 256 pixels. SDXL's has the same network.

    | published | multipliers | attention | latent_channels | quantizer |
    |---|---|---|---|---|
    | KL-f4 / f8 | (1, 2, 4) / (1, 2, 4, 4) | () | 3 / 4 | gaussian_kl |
    | KL-f16 / f32 | (1, 1, 2, 2, 4) / (1, 1, 2, 2, 4, 4) | (16,) / (16, 32) | 16 / 64 | gaussian_kl |
    | VQ-f4 | (1, 2, 4) | () | 3 | vq, 8192 codes; `noattn` has mid_attention false |
    | VQ-f8 | (1, 2, 2, 4) | (8,) | 4 | vq, 16384 codes; `n256` has 256 |
    | VQ-f16 | (1, 1, 2, 2, 4) | (16,) | 8 | vq, 16384 codes |

    A quantizer that takes twice what it hands out (mean and log-variance) gets an encoder of twice the latent width.
    blocks: residual blocks a level of the encoder; the decoder has one more. attention: at which fractions 1/factor of
        the image's side; mid_attention: and between the middle blocks.
    Raises ValueError for widths that 32 groups do not divide, attention at a resolution that is not there, and image
    sizes that cannot be halved often enough.
    """

    title = "LDM"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "gaussian_kl"},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 4, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        mid_attention: bool = True,
        latent_channels: int = 4,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "attention": attention,
                   "mid_attention": mid_attention}
        moments = 2 if self.quantizer.input_dim == 2 * self.quantizer.output_dim else 1
        self.encoder = ConvEncoder(moments * latent_channels, blocks=blocks, **network)
        self.to_latents = nn.Conv2d(moments * latent_channels, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
