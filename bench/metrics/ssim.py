"""Structural similarity."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.errors import Incompatible
from bench.per_image import PerImageMean
from bench.registry import register
from bench.similarity import Window, structural_similarity
from bench.threads import in_shares

#: luma of YIQ (and of BT.601 in full range)
LUMA = (0.299, 0.587, 0.114)


@register("metric", "ssim")
class SSIM(PerImageMean):
    """Mean SSIM (Wang et al. 2004, eq. 13) over all windows inside the image; per channel, then averaged.

    window: "gaussian" of standard deviation `sigma`, or "uniform" (then without `sigma`); `size` pixels wide.
    sample_covariance: variances times n / (n - 1) with n = size^2. data_range: L in the paper's constants
    (0.01 L)^2 and (0.03 L)^2; images are on the 0..255 scale, so 255 is right. channel: "rgb", or "luma", which
    is that of YIQ in 0..255, rounded to whole numbers. clip_contrast: contrast-structure below 0 counts 0.

    The defaults are the paper's, and scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False), piqa's SSIM and pytorch_msssim's ssim; with window="uniform", size=7,
    sample_covariance=True it is scikit-image's default; with channel="luma", clip_contrast=True pyiqa's "ssim".
    torchmetrics' is none of them: it pads images by reflection and averages over windows that reach outside.
    """

    title = "SSIM"
    unit = ""
    direction = "higher"
    decimals = 4
    revision = 1
    neutral = {"channel": "rgb", "clip_contrast": False}
    caveats = (
        "Values of different windows, data ranges, colours or rounding are not comparable, and papers seldom say which "
        "they used: one checkpoint reads 0.03 to 0.15 apart.",
        "LlamaGen and FQGAN pass a data range of 2.0 for images in [0, 1]: the constants are four times too large and "
        "SSIM is too high.",
        "OptVQ (pyiqa) measures luma alone, which hides errors of colour.",
        "torchmetrics pads by reflection and counts windows that reach outside the image: no setting here equals it.",
        "Smooth reconstructions score well: SSIM and PSNR prefer blur to a plausible texture in the wrong place.",
    )

    def __init__(
        self, *, window: Literal["gaussian", "uniform"] = "gaussian", size: int = 11, sigma: float = 1.5,
        sample_covariance: bool = False, data_range: float = 255.0, channel: Literal["rgb", "luma"] = "rgb",
        clip_contrast: bool = False,
    ) -> None:
        """Raises Incompatible for a window of even or no size."""
        if size < 1 or size % 2 == 0:
            raise Incompatible(f"SSIM's window is centred on a pixel: size must be odd, got {size}")
        if sigma <= 0:
            raise Incompatible(f"SSIM's gaussian window needs sigma above 0, got {sigma}")
        if sample_covariance and size == 1:
            raise Incompatible("SSIM's sample covariance needs more than one pixel: size is 1")
        self.size = size
        self.channel = channel
        self.window = Window.gaussian(size, sigma) if window == "gaussian" else Window.uniform(size)
        self.keywords = {"data_range": data_range, "sample_covariance": sample_covariance,
                         "clip_contrast": clip_contrast}

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns SSIM, float64 [B]. Raises Incompatible for images smaller than the window."""
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise Incompatible(f"SSIM's window of {self.size} does not fit into images of {height}x{width}")
        return in_shares(self._share, images, others)

    def _share(self, images: Tensor, others: Tensor) -> Tensor:
        if self.channel == "luma":
            images, others = _luma(images), _luma(others)
        similarity, _ = structural_similarity(images.flatten(0, 1), others.flatten(0, 1), self.window, **self.keywords)
        return similarity.view(images.shape[:2]).mean(1)


def _luma(images: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..255 -> [B, 1, H, W], whole numbers in float32.

    One pixel in a thousand lies half-way between two, and then the arithmetic decides: in float32 and [0, 1], as pyiqa.
    """
    red, green, blue = (images.float() / 255).unbind(1)
    luma = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return luma.mul_(255).round_().unsqueeze(1)
