"""What travels between files: frozen or slotted dataclasses of tensors.

Letters used everywhere: B batch · C H W image · h w latent grid · P latent positions · N tokens per image ·
L levels (parallel codes per token) · K codes in a codebook · D latent width.
Images in a model are float in [-1, 1], [B, 3, H, W]. Latents are channel-last, [B, P, D]. Codes are int64
[B, N, L], or None for continuous tokenizers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Batch:
    """What one backward sees on one process."""

    images: Tensor                              # [B, 3, H, W] in [-1, 1]
    labels: Tensor | None = None                # [B] int64, where the data set has classes


@dataclass(frozen=True, slots=True)
class LatentShape:
    """What a tokenizer offers its quantizer."""

    positions: int                              # P
    dim: int                                    # D the tokenizer would like
    grid: tuple[int, int] | None = None         # (h, w) with h * w == P; None for 1-D latents


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of images, from what a tokenizer's constructor is given: the side of square ones, or both."""
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """What the codes of one image mean. Everything downstream reads this, never the class."""

    num_tokens: int                             # N
    vocab_sizes: tuple[int, ...]                # K per level, length L; () when continuous
    grids: tuple[tuple[int, int], ...] = ()     # one grid: 2-D; several: multi-scale; none: 1-D
    separate: bool = False                      # each grid has codes of its own: an equal part of every level's K, in order

    @property
    def bits_per_image(self) -> float | None:
        """N * sum(log2 K) over levels, where grids are separate of a grid's own K; None for continuous latents."""
        if not self.vocab_sizes:
            return None
        return self.num_tokens * sum(math.log2(k // self.tables) for k in self.vocab_sizes)

    @property
    def tables(self) -> int:
        """How many grids have codes of their own."""
        return len(self.grids) if self.separate else 1


@dataclass(frozen=True, slots=True)
class Stages:
    """What a quantizer's `lookup` is the sum of: levels of a residual, scales, groups of channels."""

    count: int
    name: str                                   # of one: "level", "scale", "group"
    refine: bool                                # each adds what those before it left over; else they stand side by side
    grids: bool = False                         # one per grid of the layout, not an equal part of the levels each


@dataclass(slots=True)
class QuantizerOutput:
    quantized: Tensor                           # [B, P, output_dim], differentiable to the encoder
    codes: Tensor | None                        # [B, N, L] int64
    losses: dict[str, Tensor] = field(default_factory=dict)     # scalars, unweighted


@dataclass(slots=True)
class TokenizerOutput:
    reconstruction: Tensor                      # [B, 3, H, W], not clamped
    latents: Tensor                             # [B, P, input_dim], before quantization
    quantized: Tensor                           # [B, P, output_dim]
    codes: Tensor | None                        # [B, N, L]
    losses: dict[str, Tensor] = field(default_factory=dict)     # quantizer's and tokenizer's own
    log_scale: Tensor | None = None             # [B, 3, H, W], where the decoder gives a distribution (logit-Laplace's ln b)
    logits: Tensor | None = None                # [B, K, h, w], where the decoder predicts another tokenizer's codes


@dataclass(slots=True)
class Update:
    """One backward pass, for one player."""

    player: str                                 # key of Objective.players
    loss: Tensor                                # scalar
    terms: dict[str, Tensor]                    # scalars to log
    output: TokenizerOutput | None = None       # for monitors; set on exactly one update of a batch
    retain_graph: bool = False                  # a later update goes through the same graph
