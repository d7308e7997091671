"""VQ-VAE-2 (arXiv:1906.00446): a coarse grid of codes, and a fine one that is conditioned on it."""

from __future__ import annotations

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import component, register
from bench.types import LatentShape, QuantizerOutput, TokenizerOutput, TokenLayout
from implementations.backbones.sonnet import sonnet_decoder, sonnet_encoder
from implementations.search.combine import total_losses, with_codes


@register("tokenizer", "vqvae2")
class VQVAE2(Tokenizer):
    """32 x 32 and 64 x 64 codes for 256 pixels; 1,388,867 parameters without the codebooks (rosinality/vq-vae-2-pytorch).

    The fine latents are computed from features of the image and what a decoder makes of the coarse codes; the image from
    both grids of codes. The gradient passes the coarse codes straight through on that way too. Tokens: the coarse grid's,
    then the fine grid's. The default quantizer is that of Sonnet, the authors' code; rosinality's has zero_count laplace
    and init normal. The paper has residual_hidden 64, the released port 32.

    quantizer: any quantizer with codes; each grid has one of its own.
    Raises ValueError for an image size that is no multiple of 8 or a width that is odd, Incompatible for a continuous
    quantizer.
    """

    title = "VQ-VAE-2"
    small = {"residual_hidden": 8, "quantizer": {"name": "ema_vq", "codebook_size": 16, "codebook_dim": 4}}
    quantizer: TwoGrids

    def __init__(
        self,
        image_size: int,
        *,
        quantizer: partial[Quantizer] = {"name": "ema_vq", "codebook_size": 512, "codebook_dim": 64,
                                         "zero_count": "zero_debiased", "init": "variance"},
        hidden: int = 128,
        residual_hidden: int = 32,
        resblocks: int = 2,
    ) -> None:
        super().__init__()
        if image_size % 8:
            raise ValueError(f"vqvae2 downsamples by 4 and by 8, so dataset.image_size must be a multiple of 8, got {image_size}")
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden must be even and at least 2, got {hidden}")
        self.sides = image_size // 8, image_size // 4
        self.quantizer = TwoGrids(component("quantizer", quantizer), self.sides, hidden // 2)
        taken, handed = self.quantizer.input_dim, self.quantizer.output_dim
        blocks = (hidden, residual_hidden, resblocks)
        self.fine_encoder = sonnet_encoder(3, *blocks, halvings=2)
        self.coarse_encoder = sonnet_encoder(hidden, *blocks, halvings=1)
        self.to_coarse = nn.Conv2d(hidden, taken, 1)
        self.condition = sonnet_decoder(handed, handed, *blocks, doublings=1)
        self.to_fine = nn.Conv2d(handed + hidden, taken, 1)
        self.upsample = nn.ConvTranspose2d(handed, handed, 4, 2, 1)
        self.decoder = sonnet_decoder(2 * handed, 3, *blocks, doublings=2)

    def forward(self, images: Tensor) -> TokenizerOutput:
        latents, out = self._encode(images)
        return TokenizerOutput(self.decode(out.quantized), latents, out.quantized, out.codes, out.losses)

    def encode(self, images: Tensor) -> Tensor:
        """In training the coarse quantizer counts these images too: training calls the model itself."""
        return self._encode(images, fine=False)[0]

    def _encode(self, images: Tensor, fine: bool = True) -> tuple[Tensor, QuantizerOutput | None]:
        """Latents of both grids, and what they are quantized to."""
        features = self.fine_encoder(images)
        coarse_latents = _rows(self.to_coarse(self.coarse_encoder(features)))
        coarse = self.quantizer.parts[0](coarse_latents)
        conditions = self.condition(_map(coarse.quantized, self.sides[0]))
        fine_latents = _rows(self.to_fine(torch.cat([conditions, features], 1)))
        latents = torch.cat([coarse_latents, fine_latents], 1)
        return latents, self.quantizer.together(coarse, self.quantizer.parts[1](fine_latents)) if fine else None

    def decode(self, quantized: Tensor) -> Tensor:
        coarse, fine = quantized.split([side**2 for side in self.sides], 1)
        coarse = self.upsample(_map(coarse, self.sides[0]))
        return self.decoder(torch.cat([coarse, _map(fine, self.sides[1])], 1))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight


class TwoGrids(Quantizer):
    """A quantizer for the coarse grid and one for the fine grid; losses are summed.

    Codes [B, coarse + fine, L]: those of the fine grid are behind those of the coarse one, at K + k.
    """

    def __init__(self, quantizer: partial[Quantizer], sides: tuple[int, int], dim: int) -> None:
        super().__init__()
        shapes = (LatentShape(positions=side**2, dim=dim, grid=(side, side)) for side in sides)
        self.parts = nn.ModuleList(with_codes(quantizer(shape), "vqvae2") for shape in shapes)
        first, second = (part.layout for part in self.parts)
        self.input_dim, self.output_dim = self.parts[0].input_dim, self.parts[0].output_dim
        self.loss_weights = dict(self.parts[0].loss_weights)
        self.positions = [side**2 for side in sides]
        self.tokens = [first.num_tokens, second.num_tokens]
        self.register_buffer("sizes", torch.tensor(first.vocab_sizes), persistent=False)        # K of each level
        self.layout = TokenLayout(sum(self.tokens), tuple(2 * k for k in first.vocab_sizes),
                                  tuple((side, side) for side in sides), separate=True)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        coarse, fine = latents.split(self.positions, 1)
        return self.together(self.parts[0](coarse), self.parts[1](fine))

    def together(self, coarse: QuantizerOutput, fine: QuantizerOutput) -> QuantizerOutput:
        return QuantizerOutput(
            torch.cat([coarse.quantized, fine.quantized], 1), torch.cat([coarse.codes, fine.codes + self.sizes], 1),
            total_losses([coarse.losses, fine.losses], 2, "sum"))

    def lookup(self, codes: Tensor) -> Tensor:
        coarse, fine = codes.split(self.tokens, 1)
        return torch.cat([self.parts[0].lookup(coarse), self.parts[1].lookup(fine - self.sizes)], 1)

    def codebooks(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(books) for books in zip(*(part.codebooks() for part in self.parts), strict=True))

    def fixed_codes(self) -> int:
        return sum(part.fixed_codes() for part in self.parts)

    def before_step(self, step: int) -> None:
        for part in self.parts:
            part.before_step(step)

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)


def _rows(grid: Tensor) -> Tensor:
    return rearrange(grid, "b d h w -> b (h w) d")


def _map(rows: Tensor, side: int) -> Tensor:
    return rearrange(rows, "b (h w) d -> b d h w", h=side)
