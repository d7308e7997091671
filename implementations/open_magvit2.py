"""Open-MAGVIT2 (arXiv:2409.04410): a deep network without attention, whose decoder is normalised by the codes, under LFQ."""

from __future__ import annotations

from functools import partial

from bench.interfaces import Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer


@register("tokenizer", "open_magvit2")
class OpenMAGVIT2(ConvResTokenizer):
    """115.1 M parameters, 256 tokens of 18 bits for 256 pixels; that for 128 pixels has multipliers (1, 2, 2, 4). The
    encoder's last convolution (1x1) writes the latents and the decoder's first one reads codes: there are no
    projections.

    blocks: residual blocks a level and in the middle, of encoder and decoder. latent_channels: width of the latents
        for a quantizer that does not say its own.
    Raises ValueError for widths that 32 groups do not divide, and image sizes that cannot be halved often enough or
    leave a single position, over which the codes have no variance.
    """

    title = "Open-MAGVIT2"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "quantizer": {"name": "lfq", "bits": 4}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "lfq", "bits": 18},
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 4,
        latent_channels: int = 18,
    ) -> None:
        super().__init__(image_size, quantizer, multipliers, latent_channels)
        if self.side < 2:
            raise ValueError(f"open_magvit2 takes the variance of codes over positions, and {image_size} pixels leave one")
        network = {"channels": channels, "multipliers": multipliers, "blocks": blocks, "mid_blocks": blocks,
                   "mid_attention": False, "bias": False}
        self.encoder = ConvEncoder(self.quantizer.input_dim, down="conv", out_kernel=1, **network)
        width = self.quantizer.output_dim
        self.decoder = ConvDecoder(width, up="depth_to_space", norm="adaptive", condition_channels=width, **network)
