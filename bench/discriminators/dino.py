"""Heads on the features of a frozen DINO transformer (StyleGAN-T, arXiv:2301.09515), as VAR and XQ-GAN train them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from bench.interfaces import Discriminator
from bench.pretrained import Frozen, tensors
from bench.registry import register

SIDE = 224          # pixels that the transformer sees
PATCH = 16
TAPPED = (2, 5, 8, 11)      # blocks whose output gets a head, beside the embedding
TOGETHER = 8        # images whose statistics a head's norm shares
EPS = 1e-6
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register("discriminator", "dino")
class DINOFeatures(Discriminator):
    """A small head on the tokens of each of five depths of ViT-S/16; logits [B, 5 * 196]. The heads alone learn:
    7,386,245 parameters at width 384.

    In training, images of more than 224 pixels are either cropped (half of the times, all alike) or shrunk by their area;
    smaller ones are enlarged by bicubic interpolation. Convolutions along the tokens are circular and spectrally
    normalised. The released training code augments its input besides (DiffAug), which is not done here.

    trunk: `dino_vits16` loads the published weights, which needs width 384 and depth 12; `random` draws them, for tests
        and to know what the weights are worth.
    Raises ValueError for published weights of another shape, and in `forward` for a micro-batch above eight images that
    cannot be split into equal groups.
    """

    needs = ("{trunk}",)

    def __init__(
        self,
        image_size: int,
        *,
        trunk: Literal["dino_vits16", "random"] = "dino_vits16",
        width: int = 384,
        depth: int = 12,
    ) -> None:
        super().__init__()
        if trunk != "random" and (width, depth) != (384, 12):
            raise ValueError(f"the weights {trunk} are of width 384 and depth 12, got width {width} and depth {depth}")
        network = Trunk(width, depth)
        if trunk != "random" and torch.get_default_device().type != "meta":
            network.load_state_dict(_published(trunk))
        self.trunk = Frozen(network)
        self.heads = nn.ModuleList(_head(width) for _ in range(1 + sum(i < depth for i in TAPPED)))
        shift = [(0.5 - m) / d for m, d in zip(MEAN, DEVIATION, strict=True)]
        self.register_buffer("shift", torch.tensor(shift)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.5 / d for d in DEVIATION])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(self._seen(images.float()))
        return torch.cat([head(tokens).flatten(1) for head, tokens in zip(self.heads, features, strict=True)], 1)

    def _seen(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 3, 224, 224] with ImageNet's mean and deviation."""
        x = images * self.scale + self.shift
        h, w = x.shape[-2:]
        if min(h, w) > SIDE:
            if self.training:
                chance, down, right = torch.rand(3, device="cpu").tolist()
                if chance < 0.5:
                    top, left = int(down * (h - SIDE + 1)), int(right * (w - SIDE + 1))
                    return x[..., top : top + SIDE, left : left + SIDE]
            return F.interpolate(x, size=(SIDE, SIDE), mode="area")
        return F.interpolate(x, size=(SIDE, SIDE), mode="bicubic")


def _published(name: str) -> dict[str, Tensor]:
    """The file's tensors without the last norm, which is not reached, and with the keys' biases at zero: they cancel in
    the softmax, and the released discriminator drops them."""
    state = {key: value.float() for key, value in tensors(name).items() if not key.startswith("norm.")}
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            third = len(value) // 3
            value[third : 2 * third] = 0
    return state


class Trunk(nn.Module):
    """ViT with a class token (arXiv:2010.11929) up to the last tapped block; names are those of the published file."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIDE // PATCH) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, 224, 224] -> for each depth, tokens plus the class token, float32 [B, width, 196]."""
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.float()], 1) + self.pos_embed
        found = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPPED:
                found.append(x)
        return [(tokens[:, 1:].float() + tokens[:, :1].float()).transpose(1, 2) for tokens in found]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # written out: fused attention cannot be differentiated twice, which a gradient penalty needs
        mixed = (q * (d // self.heads) ** -0.5 @ k.mT).softmax(-1) @ v
        x = x + self.attn["proj"](mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)), approximate="tanh"))


def _head(width: int) -> nn.Module:
    return nn.Sequential(_layer(width, 1), Residual(_layer(width, 9)), spectral_norm(nn.Conv1d(width, 1, 1)))


def _layer(width: int, size: int) -> nn.Module:
    convolution = nn.Conv1d(width, width, size, padding=size // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), GroupedBatchNorm(width), nn.LeakyReLU(0.2))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) + x) / math.sqrt(2)


class GroupedBatchNorm(nn.Module):
    """Mean and deviation per channel over tokens and at most eight images, in training and afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        groups = -(-len(x) // TOGETHER)
        if len(x) % groups:
            raise ValueError(f"dino normalises {TOGETHER} images together: {len(x)} images of one micro-batch and process "
                             f"cannot be split into {groups} equal groups; change batch_size or accumulation")
        g = x.float().view(groups, -1, *x.shape[1:])                                    # [G, b, width, tokens]
        mean = g.mean((1, 3), keepdim=True)
        g = (g - mean) / (g.var((1, 3), unbiased=False, keepdim=True) + EPS).sqrt()
        return (g * self.weight[:, None] + self.bias[:, None]).view_as(x)
