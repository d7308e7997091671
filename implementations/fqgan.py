"""FQGAN (arXiv:2411.16681): LlamaGen's network, whose features branch into transformers with a codebook each."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Incompatible, Quantizer
from bench.registry import register
from implementations.backbones.conv_res import ConvDecoder, ConvEncoder, ConvResTokenizer, Group


class Block(nn.Module):
    """Attention of several heads and a perceptron of four times the width, each behind a LayerNorm, each added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)            # as torch's MultiheadAttention, which the authors use
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:                                             # [B, P, width]
        q, k, v = rearrange(self.in_proj(self.ln_1(x)), "b p (three h d) -> three b h p d", three=3, h=self.heads)
        x = x + self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h p d -> b p (h d)"))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class Branch(nn.Module):
    """Features of the trunk [B, width, h, w] -> latents of one codebook [B, outputs, h, w]. No path leads around the
    transformer, whose positions are learned: it is made for one image size."""

    def __init__(self, positions: int, width: int, latent_channels: int, outputs: int, layers: int, heads: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(positions, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = Group(width)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)
        self.to_latents = nn.Conv2d(latent_channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.ln_pre(rearrange(features, "b c h w -> b (h w) c") + self.positional_embedding)
        for block in self.transformer:
            x = block(x)
        x = rearrange(self.ln_post(x), "b (h w) c -> b c h w", h=features.shape[2])
        return self.to_latents(self.conv_out(F.silu(self.norm_out(x))))


class BranchedEncoder(nn.Module):
    """Images -> the latents of all branches, side by side."""

    def __init__(self, trunk: ConvEncoder, branches: list[Branch]) -> None:
        super().__init__()
        self.trunk, self.branches = trunk, nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        return torch.cat([branch(features) for branch in self.branches], 1)


@register("tokenizer", "fqgan")
class FQGAN(ConvResTokenizer):
    """Dual, f16: 111.3 M parameters, 256 tokens of two levels of 16,384 unit codes for 256 pixels. Triple has three
    branches and groups; f8 has multipliers (1, 2, 2, 4).

    The first branch is free; the others are taught by features of CLIP or DINOv2. Teachers and the heads that predict
    their features belong to the loss `representation`, so they are not among these parameters: the published 150.4 M hold
    a head of 39.1 M, Triple's 159.3 M two of 5.6 M and 22.1 M. The published weight of the entropy loss is 0.03.
    quantizer: quantizes each branch's share of its `input_dim` channels on its own.
    blocks: residual blocks a level of the encoder; the decoder has one more. adapter_layers, adapter_heads: of the
        branches' transformers.
    Raises Incompatible for a quantizer whose width the branches cannot share; ValueError for widths that 32 groups or
    the heads do not divide, fewer than one branch, and image sizes that cannot be halved often enough.
    """

    title = "FQGAN"
    small = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "latent_channels": 8, "adapter_layers": 1,
             "adapter_heads": 2, "quantizer": {
                 "name": "grouped", "groups": 2, "loss_reduction": "sum", "disentangle": True, "quantizer": {
                     "name": "vq", "codebook_size": 16, "codebook_dim": 4, "normalize": "both", "entropy": True}}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {
            "name": "grouped", "groups": 2, "loss_reduction": "sum", "disentangle": True, "quantizer": {
                "name": "vq", "codebook_size": 16384, "codebook_dim": 8, "normalize": "both", "entropy": True}},
        branches: int = 2,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 256,
        adapter_layers: int = 6,
        adapter_heads: int = 8,
    ) -> None:
        if branches < 1:
            raise ValueError(f"branches must be at least 1, got {branches}")
        super().__init__(image_size, quantizer, multipliers, branches * latent_channels)
        if self.quantizer.input_dim % branches:
            raise Incompatible(f"{branches} branches cannot share the quantizer's {self.quantizer.input_dim} channels")
        network = {"channels": channels, "multipliers": multipliers, "attention": (2 ** (len(multipliers) - 1),)}
        trunk = ConvEncoder(None, blocks=blocks, **network)
        if adapter_heads < 1 or trunk.width % adapter_heads:
            raise ValueError(f"adapter_heads must divide the lowest level's {trunk.width} channels, got {adapter_heads}")
        self.encoder = BranchedEncoder(trunk, [
            Branch(self.side**2, trunk.width, latent_channels, self.quantizer.input_dim // branches, adapter_layers,
                   adapter_heads) for _ in range(branches)])
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, latent_channels, 1)
        self.decoder = ConvDecoder(latent_channels, blocks=blocks + 1, **network)
