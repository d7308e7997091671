"""Structural similarity of two sets of planes, exact and fast: what SSIM and MS-SSIM are computed from.

With s = x + y and d = y - x the paper's two factors (Wang et al. 2004, eq. 6 and 9) are one minus a share each,

    luminance           1 - 2 E[d]^2 / (E[s]^2 + E[d]^2 + 2 C1)
    contrast-structure  1 - 2 V[d]   / (V[s]   + V[d]   + 2 C2)

with E and V the mean and the variance in a window. So four filters do, instead of five.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: pixels of one block on a CPU: four float32 maps of it are 6 MiB and stay in its last cache
BLOCK = 6 << 16
#: planes of a block, side by side in memory, and of larger images: multiples of the 16 float32 of a vector register
PLANES, LEAST = 48, 16
#: above this, the rounding of float32 could be worth 2e-6 of a plane's mean; see `_block`
DOUBT = 8.0


@dataclass(frozen=True, slots=True)
class Window:
    """A separable window: the weights of one side, and the sum of all of them over the square."""

    weights: tuple[float, ...]
    total: float

    @classmethod
    def gaussian(cls, size: int, sigma: float) -> Window:
        """Weights in multiples of 2^-25 that add up to exactly 1: each is a float32, and no mean is biased."""
        offset = torch.arange(size, dtype=torch.float64) - size // 2
        weights = torch.exp(-offset.square() / (2 * sigma**2))
        steps = (weights / weights.sum() * 2**25).round()
        steps[size // 2] += 2**25 - steps.sum()
        return cls(tuple((steps / 2**25).tolist()), 1.0)

    @classmethod
    def uniform(cls, size: int) -> Window:
        """Weights of 1, whose sums over whole numbers are exact in float32; the total is size^2."""
        return cls((1.0,) * size, float(size**2))


def structural_similarity(
    x: Tensor, y: Tensor, window: Window, *, data_range: float, sample_covariance: bool = False,
    clip_contrast: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean SSIM and mean contrast-structure of each plane over all windows inside it, float64 [planes] both.

    x, y: [planes, H, W] on the 0..255 scale, uint8 or float; H and W at least the window's size. data_range sets
    C1 = (0.01 data_range)^2 and C2 = (0.03 data_range)^2. sample_covariance: variances times n / (n - 1), n the
    number of weights. clip_contrast: where contrast-structure is negative it counts 0, in SSIM too.
    Within 1e-6 of float64 arithmetic, mostly within 1e-7.
    The work of one thread: for many planes call it by bench.threads.in_shares.
    """
    n = len(window.weights) ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    if sample_covariance:
        c2 *= (n - 1) / n                       # the ratio is the same as with both variances enlarged
    # window.total^2 because E and V are left multiplied by it
    bounds = (2 * c1 * window.total**2, 2 * c2 * window.total**2, clip_contrast)
    if x.device.type != "cpu":                  # float64 is cheap enough there
        similarity, contrast, _ = _mean(x, y, window, bounds, torch.float64)
        return similarity, contrast
    similarity, contrast, doubt = _mean(x, y, window, bounds, torch.float32)
    again = doubt > DOUBT
    if again.any():
        similarity[again], contrast[again], _ = _mean(x[again], y[again], window, bounds, torch.float64)
    return similarity, contrast


def _mean(x: Tensor, y: Tensor, window: Window, bounds: tuple[float, float, bool], dtype: torch.dtype) -> Tensor:
    """The means over windows of `_block`'s three, float64 [3, planes], in blocks of planes and rows."""
    count, height, width = x.shape
    reach = len(window.weights) - 1
    tall = height - reach
    if x.device.type == "cpu":
        planes = PLANES if PLANES * height * width <= BLOCK else LEAST
        rows = max(BLOCK // (planes * width) - reach, 2 * reach, 1)
    else:                                       # few large blocks: 128 MiB of maps
        planes, rows = max(1, (1 << 22) // (height * width)), tall
    sums = torch.zeros(3, count, dtype=torch.float64, device=x.device)
    room = torch.empty(4 * (min(rows, tall) + reach) * width * min(planes, count), dtype=dtype, device=x.device)
    for i in range(0, count, planes):
        # planes side by side: [H * W, planes]; a two-dimensional transpose is fast
        one, other = (images[i : i + planes].flatten(1).t().contiguous() for images in (x, y))
        for row in range(0, tall, rows):
            part = slice(row * width, (min(row + rows, tall) + reach) * width)
            sums[:, i : i + planes] += _block(one[part].unflatten(0, (-1, width)),
                                              other[part].unflatten(0, (-1, width)), window, bounds, room)
    return sums / (tall * (width - reach))


def _block(x: Tensor, y: Tensor, window: Window, bounds: tuple[float, float, bool], room: Tensor) -> Tensor:
    """Two [H, W, planes] -> sums over all windows of SSIM, contrast-structure and doubt, float64 [3, planes].

    Doubt: V = E[d^2] - E[d]^2 loses what E[d]^2 has more digits than V + 2 C2, and the same for s. In float32
    each of the two terms is off by at most about 2^-23 of itself, so a mean is by 2^-22 times the mean doubt.
    """
    c1, c2, clip = bounds
    maps = room[: 4 * x.numel()].view(4, *x.shape)
    s, d, ss, dd = maps
    ss.copy_(x)
    dd.copy_(y)
    torch.add(ss, dd, out=s)
    torch.sub(dd, ss, out=d)
    centre = s[::8].mean((0, 1)).round_()       # of each plane, about: V[s] stays, E[s]^2 has less to lose
    s.sub_(centre)
    torch.square(s, out=ss)
    torch.square(d, out=dd)
    maps = _filter(maps, window.weights)
    means, variances = maps[:2], maps[2:]
    if window.total != 1:
        variances.mul_(window.total)
    us, vs, vd = means[0], *variances
    us2, ud2 = means.square()
    vs.sub_(us2)
    vd.sub_(ud2)
    us.add_(centre.mul_(window.total)).square_().add_(ud2).add_(c1)
    luminance = torch.div(ud2, us, out=us)      # half of one minus luminance, and so with contrast
    vs.add_(vd).add_(c2)
    contrast = vd.div_(vs)
    doubt = us2.mul_(contrast).add_(ud2).div_(vs)
    if clip:
        contrast.clamp_max_(0.5)
    contrast.sub_(0.5)
    luminance.sub_(0.5)
    luminance.mul_(contrast)
    rows = torch.stack([values.sum(0) for values in (luminance, contrast, doubt)])      # [3, W, planes]
    return rows.sum(1, dtype=torch.float64) * rows.new_tensor([[4.0], [-2.0], [1.0]])


def _filter(maps: Tensor, weights: tuple[float, ...]) -> Tensor:
    """[M, H, W, planes] -> [M, H - size + 1, W - size + 1, planes], contiguous."""
    planes, size = maps.shape[-1], len(weights)
    if maps.dtype == torch.float32:
        # as a convolution of `planes` channels with themselves, which lie innermost as it likes them
        row = maps.new_tensor(weights).expand(planes, size)
        maps = functional.conv2d(maps.permute(0, 3, 1, 2), row.view(planes, 1, 1, size), groups=planes)
        maps = functional.conv2d(maps, row.view(planes, 1, size, 1), groups=planes)
        return maps.permute(0, 2, 3, 1).contiguous()
    for dim in (1, 2):
        length = maps.shape[dim] - size + 1
        out = maps.narrow(dim, 0, length) * weights[0]
        for k in range(1, size):
            out.add_(maps.narrow(dim, k, length), alpha=weights[k])
        maps = out
    return maps
