"""Multi-scale structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bench.errors import Incompatible
from bench.per_image import PerImageMean
from bench.registry import register
from bench.similarity import Window, structural_similarity
from bench.threads import in_shares

#: exponents of the scales, from the finest (Wang et al. 2003, section 3.2)
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SIZE = 11


@register("metric", "ms_ssim")
class MSSSIM(PerImageMean):
    """MS-SSIM (Wang, Simoncelli and Bovik 2003, eq. 7) of five scales, per channel, then averaged; mean over images.

    At each scale the mean contrast-structure over all gaussian windows (11 pixels, sigma 1.5) inside the image, at
    the coarsest the mean SSIM; each, held above 0, to the power of its exponent, and all multiplied. Between scales
    the mean of 2 x 2 pixels, in which an odd last row or column is repeated. Smaller images than 161 pixels have no
    window at the fifth scale: then set `scales` to fewer (4: from 81 pixels, 3: from 41, 2: from 21, 1: from 11),
    whose exponents are those of the first ones, divided by their sum. That is no published definition.

    Equal to piqa's MS_SSIM, and for sizes that 16 divides to pytorch_msssim's and, up to its mean over channels
    before the product, torchmetrics'.
    """

    title = "MS-SSIM"
    unit = ""
    direction = "higher"
    decimals = 4
    revision = 1
    caveats = (
        "Undefined below 161 pixels with five scales; with fewer it is another quantity, to be compared with its own "
        "kind alone.",
        "Implementations differ in images of odd sizes (padding with zeros, dropping or repeating the last row), in the "
        "order of product and mean over channels, and in what a negative factor counts.",
        "Values are close to 1 and differ little: read 1 - MS-SSIM, or many digits.",
    )

    def __init__(self, *, scales: int = 5, data_range: float = 255.0) -> None:
        """Raises Incompatible for a number of scales other than 1 to 5."""
        if not 1 <= scales <= len(EXPONENTS):
            raise Incompatible(f"MS-SSIM has 1 to {len(EXPONENTS)} scales, got {scales}")
        self.exponents = [e / sum(EXPONENTS[:scales]) for e in EXPONENTS[:scales]] if scales < 5 else list(EXPONENTS)
        self.data_range = data_range
        self.window = Window.gaussian(SIZE, 1.5)

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns MS-SSIM, float64 [B]. Raises Incompatible for images too small for the coarsest scale."""
        height, width = images.shape[-2:]
        last = len(self.exponents) - 1
        if min(height, width) <= (least := (SIZE - 1) * 2**last):
            raise Incompatible(f"MS-SSIM with {last + 1} scales needs images of {least + 1} pixels, got {height}x{width}; "
                               "set scales to fewer")
        return in_shares(self._share, images, others)

    def _share(self, images: Tensor, others: Tensor) -> Tensor:
        x, y = images.flatten(0, 1), others.flatten(0, 1)
        product = torch.ones(len(x), dtype=torch.float64, device=x.device)
        for scale, exponent in enumerate(self.exponents):
            if scale > 0:
                # in ceil_mode the mean is over the pixels that there are, as if an odd last row were repeated
                x, y = (functional.avg_pool2d(planes.float(), 2, ceil_mode=True) for planes in (x, y))
            similarity, contrast = structural_similarity(x, y, self.window, data_range=self.data_range)
            product *= (similarity if scale == len(self.exponents) - 1 else contrast).clamp_min(0) ** exponent
        return product.view(images.shape[:2]).mean(1)
