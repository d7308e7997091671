"""ViT-VQGAN (arXiv:2110.04627; networks of thuanz123/enhancing-transformers, the paper's have not been released)."""

from __future__ import annotations

from functools import partial

from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape
from implementations.backbones.vit import Patches, Transformer, patch_side, sine_positions

HEAD_WIDTH = 64


@register("tokenizer", "vit_vqgan")
class ViTVQGAN(Tokenizer):
    """32 x 32 unit codes of 32 numbers for 256 pixels; patches in, patches out, transformers on both sides.

    Base (the defaults) has 170,664,483 parameters; small, 50,908,195, has width 512, depth 8 and heads 8; large,
    613,487,907, has the encoder of small and decoder_width 1280, decoder_depth 32, decoder_heads 16. Heads have 64 channels each, whatever the width; the blocks'
    activation is tanh; positions are fixed sines. The network works on pixels in [0, 1]. Weights begin as
    Glorot's uniform.

    decoder_width, decoder_depth, decoder_heads: as in the encoder where not given.
    Raises ValueError for an image size that the patch does not divide, or a width that is no multiple of 4.
    """

    title = "ViT-VQGAN"
    small = {"width": 8, "depth": 1, "heads": 1,
             "quantizer": {"name": "vq", "codebook_size": 16, "codebook_dim": 4, "normalize": "both"}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "vq", "codebook_size": 8192, "codebook_dim": 32, "normalize": "both",
                                         "init": "normal"},
        patch: int = 8,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_width: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.side = patch_side(image_size, patch)
        wide = decoder_width or width
        self.quantizer = component("quantizer", quantizer)(
            LatentShape(positions=self.side**2, dim=width, grid=(self.side, self.side)))
        form = {"head_width": HEAD_WIDTH, "qkv_bias": False, "activation": nn.Tanh, "first_norm": False}
        self.register_buffer("encoder_positions", sine_positions(self.side, width), persistent=False)
        self.register_buffer("decoder_positions", sine_positions(self.side, wide), persistent=False)
        self.patches = Patches(patch, width)
        self.encoder = Transformer(width, depth, heads, **form)
        self.to_latents = nn.Linear(width, self.quantizer.input_dim)
        self.from_quantized = nn.Linear(self.quantizer.output_dim, wide)
        self.decoder = Transformer(wide, decoder_depth or depth, decoder_heads or heads, **form)
        self.to_pixels = nn.ConvTranspose2d(wide, 3, patch, patch)
        for part in (self.patches, self.encoder, self.decoder, self.to_pixels):
            part.apply(_draw)

    def encode(self, images: Tensor) -> Tensor:
        return self.to_latents(self.encoder(self.patches((images + 1) / 2) + self.encoder_positions))

    def decode(self, quantized: Tensor) -> Tensor:
        x = self.decoder(self.from_quantized(quantized) + self.decoder_positions)
        return self.to_pixels(rearrange(x, "b (h w) d -> b d h w", h=self.side)) * 2 - 1

    @property
    def last_layer(self) -> nn.Parameter:
        return self.to_pixels.weight


def _draw(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight.data.flatten(1))
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
