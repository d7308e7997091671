"""Structural similarity."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.per_image import PerImageMean
from bench.registry import register


@register("metric", "ssim")
class SSIM(PerImageMean):
    """Mean SSIM (Wang et al. 2004, eq. 13): per channel over all windows inside the image, then averaged.

    window: "gaussian" of standard deviation `sigma`, or "uniform" (then without `sigma`); `size` pixels wide.
    sample_covariance: variances times n / (n - 1) with n = size^2. data_range: 255 for 8-bit images. With the
    defaults it equals scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=0, data_range=255); with window="uniform", size=7,
    sample_covariance=True scikit-image's default. Constants K1 = 0.01 and K2 = 0.03 as in the paper.
    """

    title = "SSIM"
    unit = ""
    direction = "higher"
    decimals = 4
    revision = 1

    def __init__(
        self, *, window: Literal["gaussian", "uniform"] = "gaussian", size: int = 11, sigma: float = 1.5,
        sample_covariance: bool = False, data_range: float = 255.0,
    ) -> None:
        """Raises Incompatible for a window of even or no size."""
        if size < 1 or size % 2 == 0:
            raise Incompatible(f"SSIM's window is centred on a pixel: size must be odd, got {size}")
        if sigma <= 0:
            raise Incompatible(f"SSIM's gaussian window needs sigma above 0, got {sigma}")
        self.size = size
        self.c1, self.c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        self.correction = size**2 / (size**2 - 1) if sample_covariance else 1.0
        offset = torch.arange(size, dtype=torch.float64) - size // 2
        weights = torch.ones_like(offset)
        if window == "gaussian":
            weights = torch.exp(-offset.square() / (2 * sigma**2))
        self.weights = weights / weights.sum()

    def per_image(self, images: Tensor, others: Tensor) -> Tensor:
        """Two uint8 [B, C, H, W] -> float64 [B]."""
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise Incompatible(f"SSIM's window of {self.size} does not fit into images of {height}x{width}")
        x, y = images.flatten(0, 1), others.flatten(0, 1)                           # [planes, H, W]
        # three buffers of 4 maps in float64: 2 MiB each on a CPU, so that they stay in the cache
        block = max(1, (1 << 18 if x.device.type == "cpu" else 1 << 24) // (4 * height * width))
        means = [self._planes(x[i : i + block], y[i : i + block]) for i in range(0, len(x), block)]
        return torch.cat(means).view(images.shape[:2]).mean(1)

    def _planes(self, x: Tensor, y: Tensor) -> Tensor:
        """Two uint8 [planes, H, W] -> mean SSIM of each plane, float64.

        With s = x + y and d = y - x, four filters do instead of five: 4 ux uy = us^2 - ud^2,
        2 (ux^2 + uy^2) = us^2 + ud^2, and so with the variances; each factor below is twice the paper's.
        float64, because in float32 E[s^2] - E[s]^2 costs up to 1e-4 of SSIM in flat regions.
        """
        maps = torch.empty(4, *x.shape, dtype=torch.float64, device=x.device)
        s, d, ss, dd = maps
        ss.copy_(x)
        dd.copy_(y)
        torch.add(ss, dd, out=s)
        torch.sub(dd, ss, out=d)
        torch.mul(s, s, out=ss)
        torch.mul(d, d, out=dd)
        us, ud, vs, vd = self._filter(maps.flatten(0, 1)).unflatten(0, (4, len(x)))
        us.square_()
        ud.square_()
        vs.sub_(us).mul_(self.correction)
        vd.sub_(ud).mul_(self.correction)
        # cancellation is over: the ratio is safe in float32, at half the traffic
        us, ud, vs, vd = us.float(), ud.float(), vs.float(), vd.float()
        similarity = (us - ud).add_(2 * self.c1).mul_((vs - vd).add_(2 * self.c2))
        similarity.div_(us.add_(ud).add_(2 * self.c1)).div_(vs.add_(vd).add_(2 * self.c2))
        return similarity.flatten(1).sum(1, dtype=torch.float64) / similarity[0].numel()

    def _filter(self, maps: Tensor) -> Tensor:
        """float64 [M, H, W] -> [M, H - size + 1, W - size + 1], as products with band matrices."""
        count, height, width = maps.shape
        reach = self.size - 1
        tall, wide = height - reach, width - reach
        rows = maps.new_empty(count, height, wide)
        for start, stop in _tiles(wide):
            band = _band(self.weights, stop - start, maps.device)
            columns = maps.view(-1, width)[:, start : stop + reach]
            torch.mm(columns, band, out=rows.view(-1, wide)[:, start:stop])
        out = maps.new_empty(count, tall, wide)
        for start, stop in _tiles(tall):
            band = _band(self.weights, stop - start, maps.device).t().expand(count, -1, -1)
            torch.bmm(band, rows[:, start : stop + reach], out=out[:, start:stop])
        return out


def _tiles(length: int) -> list[tuple[int, int]]:
    """One tile up to 64 outputs, else tiles of 32: a wide band matrix is mostly zeros."""
    size = length if length <= 64 else 32
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _band(weights: Tensor, outputs: int, device: torch.device) -> Tensor:
    """[outputs + size - 1, outputs], column j holding the window from row j on: x @ it is x filtered."""
    return _band_of(tuple(weights.tolist()), outputs, device)


@functools.cache
def _band_of(weights: tuple[float, ...], outputs: int, device: torch.device) -> Tensor:
    band = torch.zeros(outputs + len(weights) - 1, outputs, dtype=torch.float64)
    for j in range(outputs):
        band[j : j + len(weights), j] = torch.tensor(weights, dtype=torch.float64)
    return band.to(device)
