"""SimVQ's tokenizer (arXiv:2411.02038): MAGVIT-v2's network without attention, for 128 pixels, under a linear codebook."""

from __future__ import annotations

from functools import partial

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "simvq")
class SimVQ(ConvResTokenizer):
    """64.2 M parameters, 256 tokens for 128 pixels; published codebooks have 1,024, 8,192, 65,536 and 262,144 codes
    of 128. The encoder's last convolution (1x1) writes the latents and the decoder's first one reads codes: there are
    no projections.

    blocks: residual blocks a level and in the middle, of encoder and decoder. latent_channels: width of the latents
        for a quantizer that does not say its own.
    Raises ValueError for widths that 32 groups do not divide and image sizes that cannot be halved often enough.
    """

    title = "SimVQ"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "latent_channels": 8,
             "quantizer": {"name": "codebook_vq", "codebook_size": 16, "table": "linear"}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "codebook_vq", "codebook_size": 65536, "table": "linear"},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 128,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        network = {"channels": channels, "multipliers": multipliers, "blocks": blocks, "mid_blocks": blocks,
                   "mid_attention": False, "bias": False}
        self.encoder = ConvEncoder(self.quantizer.input_dim, down="conv", out_kernel=1, **network)
        self.decoder = ConvDecoder(self.quantizer.output_dim, up="depth_to_space", **network)
