"""MaskGIT's tokenizer (arXiv:2202.04200): VQGAN without attention, with average pooling and convolutions without bias."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer

CUT_DEVIATION = 0.87962566103423978             # of a standard normal that is cut off at -2 and 2


@register("tokenizer", "maskgit_vqgan")
class MaskGITVQGAN(ConvResTokenizer):
    """54.5 M parameters, 256 tokens of 1,024 codes of 256 for 256 pixels. The encoder's last convolution (1x1) writes
    the latents and the decoder's first one reads codes: there are no projections.

    Where widths differ, the published shortcut is applied to the block's output: the block's input is lost.
    blocks: residual blocks a level and in the middle, of encoder and decoder. latent_channels: width of the latents
        for a quantizer that does not say its own.
    pixels: what the network sees: [-1, 1] as everywhere (`symmetric`), or [0, 1] as the published weights do (`unit`).
    init: of convolutions: torch's own (`torch`), or as published (`lecun`) a normal of variance 1 / fan-in, cut off at two
        deviations, with biases of zero. The published codebook begins as `fan_in_uniform`.
    Raises ValueError for widths that 32 groups do not divide and image sizes that cannot be halved often enough.
    """

    title = "MaskGIT VQGAN"
    neutral = {"pixels": "symmetric", "init": "torch"}
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "latent_channels": 8,
             "quantizer": {"name": "vq", "codebook_size": 16, "entropy": True}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "vq", "codebook_size": 1024, "entropy": True},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 256,
        pixels: Literal["symmetric", "unit"] = "symmetric",
        init: Literal["torch", "lecun"] = "torch",
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        self.unit = pixels == "unit"
        network = {"channels": channels, "multipliers": multipliers, "blocks": blocks, "mid_blocks": blocks,
                   "mid_attention": False, "bias": False, "shortcut": "output"}
        self.encoder = ConvEncoder(self.quantizer.input_dim, down="average", out_kernel=1, **network)
        self.decoder = ConvDecoder(self.quantizer.output_dim, **network)
        if init == "lecun":
            self.encoder.apply(lecun)
            self.decoder.apply(lecun)


def lecun(layer: nn.Module) -> None:
    """A convolution as jax draws it: variance 1 / fan-in after the cut at two deviations."""
    if isinstance(layer, nn.Conv2d):
        deviation = (layer.weight[0].numel() ** -0.5) / CUT_DEVIATION
        nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
