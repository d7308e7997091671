"""TiTok's halves (arXiv:2406.07550): an image as a row of latent tokens, and back from mask tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from implementations.backbones.vit import Attention, Patches, Transformer


class TiTokEncoder(nn.Module):
    """[B, 3, H, W] -> [B, tokens, out]: learned queries look at the patches together with themselves.

    mixed: as the released S-128, B-64 and L-32: the last tokens, [tokens, width] in memory, are read as
        [width, tokens], so that a latent is made of pieces of several tokens.
    """

    def __init__(
        self, side: int, patch: int, tokens: int, out: int, width: int, depth: int, heads: int, *, mixed: bool
    ) -> None:
        super().__init__()
        self.patches = Patches(patch, width)
        self.mixed, scale = mixed, width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.position_embedding = nn.Parameter(scale * torch.randn(1 + side**2, width))
        self.query_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.query_position_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.transformer = Transformer(width, depth, heads)
        self.out = nn.Linear(width, out)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        seen = _with_class(self.class_embedding, patches) + self.position_embedding
        queries = (self.query_embedding + self.query_position_embedding).expand(len(images), -1, -1)
        x = self.transformer(torch.cat([seen, queries.to(seen.dtype)], 1))[:, seen.shape[1]:]
        if self.mixed:
            x = x.reshape(len(x), x.shape[2], x.shape[1]).mT
        return self.out(x)


class TiTokDecoder(nn.Module):
    """[B, tokens, inputs] -> [B, width, side, side]: one mask token for each patch looks at the latent tokens."""

    def __init__(self, side: int, tokens: int, inputs: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.side, scale = side, width**-0.5
        self.inputs = nn.Linear(inputs, width)
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.mask_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.position_embedding = nn.Parameter(scale * torch.randn(1 + side**2, width))
        self.token_position_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.transformer = Transformer(width, depth, heads)

    def forward(self, quantized: Tensor) -> Tensor:
        tokens = self.inputs(quantized) + self.token_position_embedding
        masks = self.mask_embedding.to(tokens.dtype).expand(len(tokens), self.side**2, -1)
        masks = _with_class(self.class_embedding, masks) + self.position_embedding
        x = self.transformer(torch.cat([masks, tokens], 1))[:, 1 : 1 + self.side**2]
        return rearrange(x, "b (h w) d -> b d h w", h=self.side)


def _with_class(token: Tensor, sequence: Tensor) -> Tensor:
    return torch.cat([token.to(sequence.dtype).expand(len(sequence), -1, -1), sequence], 1)


def draw(layer: nn.Module) -> None:
    """First weights as released, for `apply`: N(0, 0.02^2), biases zero; queries, keys and values Glorot's uniform."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, Attention):
        nn.init.xavier_uniform_(layer.qkv.weight)
