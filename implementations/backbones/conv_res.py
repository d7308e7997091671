"""The convolutional autoencoder of VQGAN (arXiv:2012.09841) and its descendants: residual blocks with group norm.

Level i works at 1 / 2^i of the image's side with `channels * multipliers[i]` channels. Parameters have the names of
CompVis/taming-transformers, except that `mid` is a list and a change of resolution is always called `resample`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component
from bench.types import LatentShape, sides

GROUPS = 32
EPSILON = 1e-6
Norm = Callable[[int], nn.Module]               # channels -> module called with (x, condition)


class Group(nn.GroupNorm):
    """GroupNorm of 32 groups; a condition is not looked at."""

    def __init__(self, channels: int, epsilon: float = EPSILON) -> None:
        super().__init__(GROUPS, channels, epsilon)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x)


class SpatialNorm(nn.Module):
    """GroupNorm(x) * gamma(q) + beta(q) with 1x1 convolutions of the quantized map q (Eq. 4 of MoVQ, arXiv:2209.09002).

    They are applied before q is brought to the size of x: with nearest neighbours that is the same, for less work.
    """

    def __init__(self, channels: int, condition_channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(GROUPS, channels, EPSILON)
        self.conv_y = nn.Conv2d(condition_channels, channels, 1)
        self.conv_b = nn.Conv2d(condition_channels, channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        size = x.shape[-2:]
        gamma, beta = (F.interpolate(conv(condition), size=size, mode="nearest") for conv in (self.conv_y, self.conv_b))
        return self.norm_layer(x) * gamma + beta


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm(x) * gamma(s) + beta(m) with linear maps of the deviation s and the mean m of the quantized map over
    its positions (MAGVIT-v2, arXiv:2310.05737; as in SEED-Voken: s = sqrt(unbiased variance + 1e-6))."""

    def __init__(self, channels: int, condition_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(condition_channels, channels)
        self.beta = nn.Linear(condition_channels, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        values = condition.to(self.gamma.weight.dtype).flatten(2)       # [B, D, P]; not in half precision
        gamma = self.gamma((values.var(2) + EPSILON).sqrt())
        beta = self.beta(values.mean(2))
        return F.group_norm(x, GROUPS, eps=EPSILON) * gamma[..., None, None] + beta[..., None, None]


class ResBlock(nn.Module):
    """shortcut(x) + conv3x3(silu(norm(conv3x3(silu(norm(x)))))); the shortcut is a 1x1 convolution where widths differ.

    shortcut: `output` applies that convolution to the sum's other summand instead of to x, so that x itself is lost:
        the published networks of MaskGIT and MaskBit.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, bias: bool, shortcut: str) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.loses_input = shortcut == "output" and inputs != outputs
        self.nin_shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(outputs if self.loses_input else inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, condition)))
        h = self.conv2(F.silu(self.norm2(h, condition)))
        return h + self.nin_shortcut(h if self.loses_input else x)


class AttnBlock(nn.Module):
    """x + attention among all positions of norm(x), one head as wide as x."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.norm(x, condition)
        q, k, v = (rearrange(conv(h), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where there is any, then a change of resolution."""

    def __init__(self, block: list[ResBlock], attn: list[AttnBlock], resample: nn.Module) -> None:
        super().__init__()
        self.block, self.attn, self.resample = nn.ModuleList(block), nn.ModuleList(attn), resample

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, condition)
            if len(self.attn):
                x = self.attn[i](x, condition)
        return self.resample(x)


def halved(channels: int, how: str) -> nn.Module:
    """To half the side: a strided convolution after a row and a column of zeros at the right and the bottom
    (`pad_conv`; TensorFlow's SAME), one with zeros all around (`conv`), or the mean of 2 x 2 (`average`)."""
    if how == "average":
        return nn.AvgPool2d(2)
    if how == "conv":
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def doubled(channels: int, how: str) -> nn.Module:
    """To twice the side: nearest neighbours and a convolution (`nearest_conv`), or a convolution to four times the
    channels, which are laid out as 2 x 2 pixels (`depth_to_space`)."""
    if how == "nearest_conv":
        return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))
    return nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1),
                         Rearrange("b (p q c) h w -> b c (h p) (w q)", p=2, q=2))


def middle(channels: int, blocks: int, attention: bool, res: Callable[..., ResBlock], attn: Callable[..., AttnBlock]
           ) -> nn.ModuleList:
    """Residual blocks at the lowest resolution, with attention after the first where it is asked for."""
    made: list[nn.Module] = [res(channels, channels) for _ in range(blocks)]
    if attention:
        made.insert(1, attn(channels))
    return nn.ModuleList(made)


def check(channels: int, multipliers: tuple[int, ...], attention: tuple[int, ...]) -> None:
    """Raises ValueError for widths that 32 groups do not divide, or attention at a resolution that is not there."""
    widths = [channels * m for m in multipliers]
    if not widths or any(w < 1 or w % GROUPS for w in (channels, *widths)):
        raise ValueError(f"channels * multipliers must be multiples of {GROUPS}, one for each level, got {channels} * "
                         f"{tuple(multipliers)}")
    factors = [2**i for i in range(len(multipliers))]
    if missing := sorted(set(attention) - set(factors)):
        raise ValueError(f"attention is asked for at 1/{missing[0]} of the image's side, and the levels are at 1/"
                         f"{', 1/'.join(map(str, factors))}")


class ConvEncoder(nn.Module):
    """[B, 3, H, W] -> [B, outputs, H / 2^n, W / 2^n] for n + 1 multipliers.

    outputs: channels at the end, behind norm, silu and a convolution of side `out_kernel`; None leaves these three
        out and gives the features [B, channels * multipliers[-1], ...].
    blocks: residual blocks a level. attention: at which fractions 1/factor of the image's side blocks are followed by
        attention. mid_blocks, mid_attention: see `middle`. down: see `halved`. shortcut: see ResBlock.
    bias: of the first convolution and those of the residual blocks.
    attention_epsilon: of the norms before attention (1e-5 in one re-implementation).
    """

    def __init__(
        self,
        outputs: int | None,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        mid_blocks: int = 2,
        mid_attention: bool = True,
        down: Literal["pad_conv", "conv", "average"] = "pad_conv",
        bias: bool = True,
        shortcut: Literal["input", "output"] = "input",
        out_kernel: int = 3,
        attention_epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        check(channels, multipliers, attention)
        res = partial(ResBlock, norm=Group, bias=bias, shortcut=shortcut)
        attn = partial(AttnBlock, norm=partial(Group, epsilon=attention_epsilon))
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=bias)
        self.down = nn.ModuleList()
        width, last = channels, len(multipliers) - 1
        for i, multiplier in enumerate(multipliers):
            widths = [width] + [channels * multiplier] * blocks
            width = widths[-1]
            self.down.append(Level(
                [res(a, b) for a, b in pairwise(widths)],
                [attn(width) for _ in range(blocks)] if 2**i in attention else [],
                halved(width, down) if i < last else nn.Identity(),
            ))
        self.mid = middle(width, mid_blocks, mid_attention, res, attn)
        self.width = width
        self.norm_out = self.conv_out = None
        if outputs is not None:
            self.norm_out = Group(width)
            self.conv_out = nn.Conv2d(width, outputs, out_kernel, padding=out_kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for part in (*self.down, *self.mid):
            x = part(x)
        return x if self.conv_out is None else self.conv_out(F.silu(self.norm_out(x)))


class ConvDecoder(nn.Module):
    """[B, inputs, h, w] -> [B, 3, h * 2^n, w * 2^n] for n + 1 multipliers, from the last one to the first.

    norm: `group`; `spatial` makes every norm look at the quantized map (see SpatialNorm), `adaptive` adds a norm
        that does before each level (see AdaptiveGroupNorm). condition_channels: width of that map.
    up: see `doubled`. The other keywords are those of ConvEncoder; published decoders often have one block a level
    more than their encoder.
    """

    def __init__(
        self,
        inputs: int,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 3,
        attention: tuple[int, ...] = (),
        mid_blocks: int = 2,
        mid_attention: bool = True,
        up: Literal["nearest_conv", "depth_to_space"] = "nearest_conv",
        norm: Literal["group", "spatial", "adaptive"] = "group",
        condition_channels: int = 0,
        bias: bool = True,
        shortcut: Literal["input", "output"] = "input",
        attention_epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        check(channels, multipliers, attention)
        spatial = partial(SpatialNorm, condition_channels=condition_channels) if norm == "spatial" else None
        res = partial(ResBlock, norm=spatial or Group, bias=bias, shortcut=shortcut)
        attn = partial(AttnBlock, norm=spatial or partial(Group, epsilon=attention_epsilon))
        width = channels * multipliers[-1]
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.mid = middle(width, mid_blocks, mid_attention, res, attn)
        levels: list[Level] = []
        adaptive: list[nn.Module] = []
        for i, multiplier in reversed(list(enumerate(multipliers))):
            adaptive.insert(0, AdaptiveGroupNorm(width, condition_channels) if norm == "adaptive" else nn.Identity())
            widths = [width] + [channels * multiplier] * blocks
            width = widths[-1]
            levels.insert(0, Level(                                                     # up[0] writes the largest map
                [res(a, b) for a, b in pairwise(widths)],
                [attn(width) for _ in range(blocks)] if 2**i in attention else [],
                doubled(width, up) if i else nn.Identity(),
            ))
        self.up = nn.ModuleList(levels)
        self.adaptive = nn.ModuleList(adaptive) if norm == "adaptive" else None
        self.norm_out = (spatial or Group)(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x, condition)
        for i in reversed(range(len(self.up))):
            if self.adaptive is not None:
                x = self.adaptive[i](x, condition)
            x = self.up[i](x, condition)
        return self.conv_out(F.silu(self.norm_out(x, condition)))


class ConvResTokenizer(Tokenizer):
    """What tokenizers on this network share: encoder, projection, quantizer on one grid, projection, decoder.

    A constructor builds the quantizer through this one (`quantizer` as a `functools.partial`, or written as in a
    suite), then sets `encoder`, `to_latents`, `from_quantized` and `decoder`; `unit` where the network sees [0, 1].
    Raises ValueError for an image size that the network cannot halve often enough.
    """

    encoder: nn.Module
    to_latents: nn.Module
    from_quantized: nn.Module
    decoder: ConvDecoder
    unit = False

    def __init__(
        self, image_size: int | tuple[int, int], quantizer: Any, multipliers: tuple[int, ...], latent_channels: int,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        height, width = sides(image_size)
        if min(height, width) < factor or height % factor or width % factor:
            raise ValueError(f"{len(multipliers)} multipliers downsample by {factor}, so dataset.image_size must be a "
                             f"multiple of {factor}, got {image_size}")
        if latent_channels < 1:
            raise ValueError(f"latent_channels must be at least 1, got {latent_channels}")
        self.side = height // factor                # rows of the grid
        shape = LatentShape(self.side * (width // factor), latent_channels, (self.side, width // factor))
        self.quantizer: Quantizer = component("quantizer", quantizer)(shape)
        self.to_latents, self.from_quantized = nn.Identity(), nn.Identity()

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(self.to_latents(self.encoder((images + 1) / 2 if self.unit else images)), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        q = rearrange(quantized, "b (h w) d -> b d h w", h=self.side)
        reconstruction = self.decoder(self.from_quantized(q), q)
        return reconstruction * 2 - 1 if self.unit else reconstruction

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight
