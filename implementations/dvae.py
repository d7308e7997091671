"""DALL-E's discrete VAE (arXiv:2102.12092, Appendix A; networks of openai/DALL-E): downsampling by 8, one grid of codes."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape, TokenizerOutput

MARGIN = 0.1                # pixels x of [0, 1] are x' = 0.8 x + 0.1 for the network


@register("tokenizer", "dvae")
class DVAE(Tokenizer):
    """32 x 32 codes of 8192 for 256 pixels; 97,615,878 parameters: the released networks have 128 more, a
    bias of the decoder's first layer, which here is part of each code.

    Four groups of residual blocks, no norm; the last layer of the encoder, a 1x1 convolution to logits, and the first of
    the decoder, one from one-hot codes, are the quantizer's. The decoder writes the location and the logarithm of the scale
    of a Laplace distribution of the pixels' logits: the reconstruction is its median, brought back to [-1, 1], and the
    output's `log_scale` is for the loss `logit_laplace`. Weights begin as N(0, 1 / fan-in), biases as zero.

    hidden: channels of the first group; the others have 2, 4 and 8 times as many. blocks: of a group.
    Raises ValueError for an image size that is no multiple of 8 or a width that 4 does not divide.
    """

    title = "dVAE"
    small = {"blocks": 1, "quantizer": {"name": "gumbel", "codebook_size": 16, "codebook_dim": 4, "full_width": True}}

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {
            "name": "gumbel", "codebook_size": 8192, "codebook_dim": 128, "full_width": True, "hard": False,
            "temperature": 1.0, "final_temperature": 0.0625, "temperature_steps": 150_000, "kl_steps": 5000, "init": "fan_in"},
        hidden: int = 256,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        if image_size % 8:
            raise ValueError(f"dvae downsamples by 8, so dataset.image_size must be a multiple of 8, got {image_size}")
        if hidden < 4 or hidden % 4:
            raise ValueError(f"hidden must be a multiple of 4, got {hidden}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        self.side = image_size // 8
        widths = [hidden, 2 * hidden, 4 * hidden, 8 * hidden]
        self.quantizer = component("quantizer", quantizer)(
            LatentShape(positions=self.side**2, dim=widths[-1], grid=(self.side, self.side)))
        taken, handed = self.quantizer.input_dim, self.quantizer.output_dim
        gain = 1 / (len(widths) * blocks) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(3, hidden, 7, padding=3),
            *_groups([hidden, *widths], blocks, (3, 3, 3, 1), gain, lambda: nn.MaxPool2d(2)), nn.ReLU())
        self.to_latents = nn.Identity() if taken == widths[-1] else nn.Conv2d(widths[-1], taken, 1)
        self.decoder = nn.Sequential(
            *_groups([handed, *reversed(widths)], blocks, (1, 3, 3, 3), gain, lambda: nn.Upsample(scale_factor=2)),
            nn.ReLU(), nn.Conv2d(hidden, 6, 1))
        for part in (self.encoder, self.to_latents, self.decoder):
            part.apply(_draw)

    def forward(self, images: Tensor) -> TokenizerOutput:
        latents = self.encode(images)
        q = self.quantizer(latents)
        location, log_scale = self._distribution(q.quantized)
        return TokenizerOutput(_pixels(location), latents, q.quantized, q.codes, q.losses, log_scale)

    def encode(self, images: Tensor) -> Tensor:
        mapped = (1 - 2 * MARGIN) * (images + 1) / 2 + MARGIN
        return rearrange(self.to_latents(self.encoder(mapped)), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        return _pixels(self._distribution(quantized)[0])

    def _distribution(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P, output_dim] -> location and logarithm of the scale, each [B, 3, H, W], of the mapped pixels' logits."""
        location, log_scale = self.decoder(rearrange(quantized, "b (h w) d -> b d h w", h=self.side)).chunk(2, 1)
        return location, log_scale

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight


class Block(nn.Module):
    """skip(x) + gain * four convolutions of ReLU(x), the inner ones a quarter as wide."""

    def __init__(self, taken: int, width: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.skip = nn.Conv2d(taken, width, 1) if taken != width else nn.Identity()
        widths = [taken, *[width // 4] * 3, width]
        self.branch = nn.Sequential(*(layer for (a, b), kernel in zip(pairwise(widths), kernels, strict=True)
                                      for layer in (nn.ReLU(), nn.Conv2d(a, b, kernel, padding=kernel // 2))))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.gain * self.branch(x)


def _groups(widths: list[int], blocks: int, kernels: tuple[int, ...], gain: float, between: type[nn.Module]) -> list[nn.Module]:
    """A group of blocks for each width after the first, and what changes the resolution between them."""
    layers: list[nn.Module] = []
    for taken, width in pairwise(widths):
        layers += [between()] if layers else []
        layers += [Block(taken if i == 0 else width, width, kernels, gain) for i in range(blocks)]
    return layers


def _draw(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        nn.init.zeros_(layer.bias)


def _pixels(location: Tensor) -> Tensor:
    """Logits of mapped pixels -> pixels, a little beyond [-1, 1] where the map has its margins."""
    return 2 * (torch.sigmoid(location) - MARGIN) / (1 - 2 * MARGIN) - 1
