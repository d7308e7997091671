"""TiTok (arXiv:2406.07550; bytedance/1d-tokenizer): an image as 32 to 128 tokens that belong to no place."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape, TokenizerOutput
from implementations.backbones.conv_res import ConvDecoder
from implementations.backbones.titok import TiTokDecoder, TiTokEncoder, draw
from implementations.backbones.vit import patch_side

PROXY_CODES, PROXY_DIM = 1024, 256              # of MaskGIT's tokenizer


@register("tokenizer", "titok")
class TiTok(Tokenizer):
    """B-64 by default. S-128: tokens 128, width 512, depth 8, heads 8. L-32: tokens 32, width 1024, depth 24, heads 16.

    head: what the decoder's map becomes.
        `pixels`: a linear map to each patch's pixels and a 3x3 convolution: single-stage training, as the later BL and SL.
        `proxy`: 1,024 logits for each patch, the codes of a MaskGIT tokenizer; their softmax mixes that tokenizer's code
        vectors, and its decoder, which is part of this model, makes pixels of them: S, B and L.
    In the published first stage of `proxy` the output's `logits` learn the codes of a frozen tokenizer (the loss
    `code_prediction`), in the second encoder and quantizer are frozen and the rest learns from pixels. Trained from
    pixels in one go it is a tokenizer as well, which has not been published.

    decoder_width, decoder_depth, decoder_heads: as in the encoder where not given. BL and SL have the decoder of L, 8192
        codes of 64 that are compared as they are, and 64 to 256 tokens.
    mixed: the released S, B and L mix tokens and channels in front of the quantizer, see TiTokEncoder; BL and SL do not.
    predicts: for the first stage of `proxy`: the output has its logits, and in training no pixels, which cost as much as the
        rest and which no loss needs; one that reads them nevertheless gets what is not a number.
    proxy_channels, proxy_multipliers: of the proxy's convolutional decoder; the patch has to be 2^(multipliers - 1).
    The network reads pixels in [0, 1], and writes them so.
    Raises ValueError for an image size that the patch does not divide, or a proxy decoder of another downsampling.
    """

    title = "TiTok"
    compiled = ("encode", "decode", "proxy_logits")
    neutral = {"decoder_width": None, "decoder_depth": None, "decoder_heads": None, "predicts": False}
    small = {"tokens": 4, "width": 8, "depth": 1, "heads": 2,
             "quantizer": {"name": "vq", "codebook_size": 16, "codebook_dim": 4, "normalize": "both"}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "vq", "codebook_size": 4096, "codebook_dim": 12, "normalize": "both"},
        tokens: int = 64,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        head: Literal["pixels", "proxy"] = "pixels",
        mixed: bool = False,
        decoder_width: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        predicts: bool = False,
        proxy_channels: int = 128,
        proxy_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
    ) -> None:
        super().__init__()
        side = patch_side(image_size, patch)
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        if predicts and head != "proxy":
            raise ValueError("predicts: true needs head: proxy, whose logits predict codes")
        if head == "proxy" and patch != 2 ** (len(proxy_multipliers) - 1):
            raise ValueError(f"patch must be 2^(len(proxy_multipliers) - 1) = {2 ** (len(proxy_multipliers) - 1)} for the "
                             f"proxy's decoder, got {patch}")
        self.patch = patch
        self.quantizer = component("quantizer", quantizer)(LatentShape(positions=tokens, dim=width))
        taken, handed = self.quantizer.input_dim, self.quantizer.output_dim
        self.encoder = TiTokEncoder(side, patch, tokens, taken, width, depth, heads, mixed=mixed)
        width, depth, heads = decoder_width or width, decoder_depth or depth, decoder_heads or heads
        self.decoder = TiTokDecoder(side, tokens, handed, width, depth, heads)
        self.head, self.predicts = head, predicts
        if head == "pixels":
            self.to_patches = nn.Conv2d(width, 3 * patch**2, 1)
            self.to_pixels = nn.Conv2d(3, 3, 3, padding=1)
        else:
            self.to_logits = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, PROXY_CODES, 1))
        for part in self.children():
            if part is not self.quantizer:
                part.apply(draw)
        if head == "proxy":
            bound = PROXY_CODES**-1
            self.proxy_embedding = nn.Parameter(torch.empty(PROXY_CODES, PROXY_DIM).uniform_(-bound, bound))
            self.to_pixels = ConvDecoder(PROXY_DIM, channels=proxy_channels, multipliers=proxy_multipliers, blocks=2, mid_blocks=2,
                                         mid_attention=False, bias=False, shortcut="output")

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder((images + 1) / 2)

    def forward(self, images: Tensor) -> TokenizerOutput:
        if not self.predicts:
            return super().forward(images)
        latents = self.encode(images)
        q = self.quantizer(latents)
        logits = self.proxy_logits(q.quantized)
        pixels = images.new_full((), torch.nan).expand_as(images) if self.training else self._mixed(logits)
        return TokenizerOutput(pixels, latents, q.quantized, q.codes, q.losses, logits=logits)

    def proxy_logits(self, quantized: Tensor) -> Tensor:
        """[B, P, output_dim] -> logits [B, 1024, h, w] of the proxy's codes."""
        return self.to_logits(self.decoder(quantized))

    def decode(self, quantized: Tensor) -> Tensor:
        if self.head == "proxy":
            return self._mixed(self.proxy_logits(quantized))
        patches = self.to_patches(self.decoder(quantized))
        pixels = rearrange(patches, "b (i j c) h w -> b c (h i) (w j)", i=self.patch, j=self.patch)
        return self.to_pixels(pixels) * 2 - 1

    def _mixed(self, logits: Tensor) -> Tensor:
        """Logits -> the proxy's code vectors in their shares -> pixels."""
        shares = logits.softmax(1)
        return self.to_pixels(torch.einsum("bkhw,kd->bdhw", shares, self.proxy_embedding.to(shares.dtype))) * 2 - 1

    @property
    def last_layer(self) -> nn.Parameter:
        return self.to_pixels.weight if self.head == "pixels" else self.to_pixels.conv_out.weight
