"""FVQ: a small transformer looks at the whole table and computes every code from it (arXiv:2509.10140)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Incompatible
from bench.registry import register
from implementations.codebook.parts import Table
from implementations.search.initial import initial_codebook


class _Block(nn.Module):
    """Self-attention and a two-layer perceptron, each behind a norm without weights, each added."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"),
                                 nn.Linear(expansion * width, width))

    def forward(self, x: Tensor) -> Tensor:                                     # [T, width]
        q, k, v = rearrange(self.qkv(_norm(x)), "t (three h d) -> three h t d", three=3, h=self.heads)
        x = x + self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "h t d -> t (h d)"))
        return x + self.mlp(_norm(x))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


@register("table", "bridge")
class Bridge(Table):
    """VQBridge, in the form that its authors released: learned rows U(+-1/K) are laid out as a sqrt(K) x sqrt(K) picture
    of D channels, cut into patches, sent through `depth` transformer blocks and laid out again. A chosen code moves the
    codes at its place in every patch. Attention tells patches apart by their content alone: there are no positions.

    patch: side of a patch; 4 for K = 16,384 and 8 for K = 262,144 in the paper. width, heads, depth: of the transformer.
    The last layer is zero at first and no path leads around it: all codes coincide at the origin in the first step.
    Raises Incompatible where K is no square of a multiple of `patch`.
    """

    def __init__(self, codebook_size: int, dim: int, *, patch: int = 4, width: int = 256, heads: int = 4,
                 depth: int = 2) -> None:
        super().__init__()
        side = math.isqrt(codebook_size)
        if side * side != codebook_size or side % patch:
            raise Incompatible(f"a bridge with patches of {patch} x {patch} codes needs a codebook_size that is the "
                               f"square of a multiple of {patch}, got {codebook_size}")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads = {heads}, got {width}")
        self.cut = {"h": side // patch, "p": patch, "q": patch}
        self.codebook = nn.Parameter(initial_codebook(codebook_size, dim, "uniform"))
        self.compress = nn.Linear(dim * patch * patch, width)
        self.blocks = nn.ModuleList(_Block(width, heads, 2) for _ in range(depth))
        self.recover = nn.Linear(width, dim * patch * patch)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.recover.weight)

    def forward(self) -> Tensor:
        x = self.compress(rearrange(self.codebook, "(h p w q) d -> (h w) (d p q)", **self.cut))     # [patches, width]
        for block in self.blocks:
            x = block(x)
        return rearrange(self.recover(_norm(x)), "(h w) (p q d) -> (h p w q) d", **self.cut)
