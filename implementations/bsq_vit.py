"""BSQ-ViT (arXiv:2406.07548; zhaoyue-zephyrus/bsq-vit): transformers over patches around signs on a sphere."""

from __future__ import annotations

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape
from implementations.backbones.vit import Patches, Transformer, patch_side

STD = 0.02                  # of the first weights and positions, truncated at two


@register("tokenizer", "bsq_vit")
class BSQViT(Tokenizer):
    """32 x 32 codes of 18 bits for 256 pixels; 174,816,210 parameters. 36 bits: `quantizer.bits: 36`.

    Learned positions, a norm before the blocks, patches read without bias and written by tanh and two linear maps.
    The released code clamps its output in training too, where pixels beyond the range then get no gradient; this does not.
    Its configurations ask for no commitment loss, but the model's constructor sets its coefficient to 0.25: as it runs it is
    `quantizer.commitment: true` with the weight 0.25 * 0.1.

    pixel_width: channels of the layer before the pixels.
    Raises ValueError for an image size that the patch does not divide or heads that do not divide the width.
    """

    title = "BSQ-ViT"
    small = {"width": 8, "depth": 1, "heads": 2, "pixel_width": 16, "quantizer": {"name": "bsq", "bits": 6}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "bsq", "bits": 18, "entropy_boost": 2.0},
        patch: int = 8,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        pixel_width: int = 3072,
    ) -> None:
        super().__init__()
        self.side, self.patch = patch_side(image_size, patch), patch
        self.quantizer = component("quantizer", quantizer)(
            LatentShape(positions=self.side**2, dim=width, grid=(self.side, self.side)))
        self.patches = Patches(patch, width, bias=False)
        self.encoder_position_embedding = nn.Parameter(torch.randn(self.side**2, width) * STD)
        self.encoder = Transformer(width, depth, heads)
        self.to_latents = nn.Linear(width, self.quantizer.input_dim)
        self.from_quantized = nn.Linear(self.quantizer.output_dim, width)
        self.decoder_position_embedding = nn.Parameter(torch.randn(self.side**2, width) * STD)
        self.decoder = Transformer(width, depth, heads)
        self.to_pixels = nn.Sequential(nn.Linear(width, pixel_width), nn.Tanh(), nn.Linear(pixel_width, 3 * patch**2))
        for part in (self.patches, self.encoder, self.decoder, self.to_pixels):
            part.apply(_draw)
        for part in (self.encoder, self.decoder):
            part.apply(_without_bias)

    def encode(self, images: Tensor) -> Tensor:
        return self.to_latents(self.encoder(self.patches(images) + self.encoder_position_embedding))

    def decode(self, quantized: Tensor) -> Tensor:
        x = self.decoder(self.from_quantized(quantized) + self.decoder_position_embedding)
        return rearrange(self.to_pixels(x), "b (h w) (c i j) -> b c (h i) (w j)", h=self.side, i=self.patch, j=self.patch)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.to_pixels[-1].weight


def _draw(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=STD)


def _without_bias(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)
