"""OptVQ's network for 32-pixel images (arXiv:2412.15195, released CIFAR-10 and MNIST configurations)."""

from __future__ import annotations

from functools import partial

from einops import rearrange
from torch import Tensor, nn

from bench.interfaces import Quantizer, Tokenizer
from bench.registry import register
from bench.types import LatentShape


@register("tokenizer", "optvq_cnn")
class OptVQCNN(Tokenizer):
    """A few plain convolutions, downsampling by 4; 8 channels reach the quantizer at the published width 16.

    width: channels of the outer layers; the inner ones have twice as many, the latents half as many.
    Raises ValueError for an image size that is no multiple of 4 or an odd width.
    """

    title = "OptVQ, small CNN"

    def __init__(self, image_size: int, *, quantizer: partial[Quantizer], width: int = 16) -> None:
        super().__init__()
        if image_size % 4:
            raise ValueError(f"optvq_cnn downsamples by 4, so dataset.image_size must be a multiple of 4, got {image_size}")
        if width < 2 or width % 2:
            raise ValueError(f"width must be even and at least 2, got {width}")
        self.side = image_size // 4
        self.quantizer = quantizer(LatentShape(positions=self.side**2, dim=width // 2, grid=(self.side, self.side)))
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(width, width, 2, 2), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(width, width, 2, 2), nn.Conv2d(width, 2 * width, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
        )
        self.to_latents = nn.Conv2d(2 * width, self.quantizer.input_dim, 1)
        self.from_quantized = nn.Conv2d(self.quantizer.output_dim, 2 * width, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 2, 2), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 2, 2), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(width, 3, 3, 1, 1),
        )

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(self.to_latents(self.encoder(images)), "b d h w -> b (h w) d")

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(self.from_quantized(rearrange(quantized, "b (h w) d -> b d h w", h=self.side)))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight
