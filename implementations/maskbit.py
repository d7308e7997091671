"""VQGAN+ and MaskBit's tokenizer (arXiv:2409.16211): MaskGIT's network with strided convolutions, codes that are bits."""

from __future__ import annotations

from functools import partial
from typing import Literal

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "maskbit")
class MaskBit(ConvResTokenizer):
    """54 M parameters, 256 tokens of 14 bits for 256 pixels; published are 10, 12, 14, 16 and 18 bits, and as VQGAN+
    a table of 1,024 or 4,096 codes of 256: quantizer {name: vq, codebook_size: 4096, entropy: true}.

    Where widths differ, the published shortcut is applied to the block's output: the block's input is lost.
    blocks: residual blocks a level and in the middle, of encoder and decoder. latent_channels: width of the latents
        for a quantizer that does not say its own.
    pixels: what the network sees: [-1, 1] as everywhere (`symmetric`), or [0, 1] as the published weights do (`unit`).
    Raises ValueError for widths that 32 groups do not divide and image sizes that cannot be halved often enough.
    """

    title = "MaskBit"
    neutral = {"pixels": "symmetric"}
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "quantizer": {"name": "lfq", "bits": 4}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "lfq", "bits": 14},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 256,
        pixels: Literal["symmetric", "unit"] = "symmetric",
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        self.unit = pixels == "unit"
        network = {"channels": channels, "multipliers": multipliers, "blocks": blocks, "mid_blocks": blocks,
                   "mid_attention": False, "bias": False, "shortcut": "output"}
        self.encoder = ConvEncoder(self.quantizer.input_dim, down="pad_conv", out_kernel=1, **network)
        self.decoder = ConvDecoder(self.quantizer.output_dim, **network)
