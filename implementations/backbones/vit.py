"""Transformer blocks over patches and tokens, with the norm before each part: ViT-VQGAN, BSQ-ViT, TiTok.

Sequences are [B, T, width].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Every token looks at every token. head_width: of each head, whatever the width is."""

    def __init__(self, width: int, heads: int, head_width: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=qkv_bias)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with four times the width inside."""

    def __init__(
        self, width: int, heads: int, head_width: int, *, qkv_bias: bool, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, head_width, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Blocks and a last norm. first_norm: one before the blocks too.

    head_width: width / heads where not given. Raises ValueError where heads do not divide the width then.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, head_width: int | None = None, qkv_bias: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU, first_norm: bool = True,
    ) -> None:
        super().__init__()
        if min(width, depth, heads) < 1:
            raise ValueError(f"width, depth and heads must be at least 1, got {width}, {depth} and {heads}")
        if head_width is None and width % heads:
            raise ValueError(f"heads must divide the width, got {heads} and {width}")
        self.first_norm = nn.LayerNorm(width) if first_norm else nn.Identity()
        self.blocks = nn.Sequential(*(
            Block(width, heads, head_width or width // heads, qkv_bias=qkv_bias, activation=activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.first_norm(x)))


class Patches(nn.Conv2d):
    """[B, 3, H, W] -> [B, patches, width], row by row: one linear map of each patch."""

    def __init__(self, patch: int, width: int, *, bias: bool = True) -> None:
        super().__init__(3, width, patch, patch, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(super().forward(images), "b d h w -> b (h w) d")


def patch_side(image_size: int, patch: int) -> int:
    """Patches along a side. Raises ValueError where the patch does not divide it."""
    if patch < 1 or image_size % patch:
        raise ValueError(f"dataset.image_size must be a multiple of patch = {patch}, got {image_size}")
    return image_size // patch


def sine_positions(side: int, width: int) -> Tensor:
    """[side^2, width]: sines, then cosines of the column in the first half of the width, of the row in the second.
    Raises ValueError for a width that is no multiple of 4."""
    if width % 4:
        raise ValueError(f"positions of rows and columns need a width that is a multiple of 4, got {width}")
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies                 # [side, width / 4]
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([columns, rows], 2).flatten(0, 1).float()
