"""How a training picture becomes a square, as tokenizers were published. Torch-free.

Everything random is drawn from the generator that is handed in: the same generator, the same pixels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

from bench.image_files import FILTERS

TRIES = 10                                      # of torchvision's RandomResizedCrop, before it takes the centre
JITTER = 0.4                                    # OptVQ: brightness, contrast and saturation times U(1 - 0.4, 1 + 0.4)
HUE = 0.1                                       # and hue turned by U(-0.1, 0.1) of a full turn,
JITTER_SHARE, BLUR_SHARE = 0.8, 0.5             # of so many pictures; so many are blurred
BLUR = (3, 5, 7)                                # pixels that one blurred pixel sees


def to_short_side(image: Image.Image, short_side: int, resample: str) -> Image.Image:
    """The longer side in proportion, rounded down, as torchvision's Resize."""
    scale = short_side / min(image.size)
    width, height = (short_side if n == min(image.size) else int(n * scale) for n in image.size)
    return stretched(image, (width, height), resample)


def stretched(image: Image.Image, size: tuple[int, int], resample: str) -> Image.Image:
    """Resized to (width, height) by one of Pillow's filters, which average over all pixels they pass; `interpolated` is
    bilinear between the four nearest pixels alone, OpenCV's INTER_LINEAR, which aliases."""
    if image.size == size:
        return image
    if resample != "interpolated":
        return image.resize(size, FILTERS[resample])
    step = image.width / size[0], 0.0, 0.0, 0.0, image.height / size[1], 0.0
    return image.transform(size, Image.Transform.AFFINE, step, Image.Resampling.BILINEAR)


def random_square(image: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """A square of `side` pixels at a uniformly random place; torchvision's RandomCrop."""
    top, left = int(random.integers(image.height - side + 1)), int(random.integers(image.width - side + 1))
    return image.crop((left, top, left + side, top + side))


def random_box(
    image: Image.Image, area: tuple[float, float], ratio: tuple[float, float], random: np.random.Generator,
) -> tuple[int, int, int, int]:
    """left, top, right, bottom of a part of the picture, drawn as by torchvision's RandomResizedCrop: a share of the area
    uniform in `area`, width over height log-uniform in `ratio`; after ten that do not fit, the largest centred one
    whose ratio lies within."""
    for _ in range(TRIES):
        share = image.width * image.height * random.uniform(*area)
        shape = math.exp(random.uniform(*map(math.log, ratio)))
        width, height = round(math.sqrt(share * shape)), round(math.sqrt(share / shape))
        if 0 < width <= image.width and 0 < height <= image.height:
            top, left = int(random.integers(image.height - height + 1)), int(random.integers(image.width - width + 1))
            return left, top, left + width, top + height
    width, height = image.size
    if width / height < ratio[0]:
        height = round(width / ratio[0])
    elif width / height > ratio[1]:
        width = round(height * ratio[1])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return left, top, left + width, top + height


def distorted(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """OptVQ's: colours changed in random order, then Gaussian blur, each on a share of the pictures (see the constants)."""
    if random.random() < JITTER_SHARE:
        factors = random.uniform(1 - JITTER, 1 + JITTER, 3)
        turn = random.uniform(-HUE, HUE)
        for change in random.permutation(4):
            if change == 3:
                image = hue_turned(image, turn)
            else:
                enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
                image = enhancer(image).enhance(factors[change])
    if random.random() < BLUR_SHARE:
        image = blurred(image, BLUR[random.integers(len(BLUR))])
    return image


def hue_turned(image: Image.Image, turn: float) -> Image.Image:
    """Hue plus `turn` of a full turn, -1/2 to 1/2, in steps of 1/256 towards 0."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.array(int(turn * 255)).astype(np.uint8)     # uint8 wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def blurred(image: Image.Image, size: int) -> Image.Image:
    """Gaussian blur over `size` pixels (odd), with OpenCV's deviation for it, 0.3 ((size - 1) / 2 - 1) + 0.8, and its
    border: pixels mirrored at the outermost one."""
    half = size // 2
    weights = np.exp(-(np.arange(-half, half + 1) / (0.3 * (half - 1) + 0.8)) ** 2 / 2)
    pixels = np.asarray(image, np.float32)
    for axis in (0, 1):
        padded = np.pad(pixels, [(half, half) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        n = pixels.shape[axis]
        pixels = sum(w * padded.take(range(i, i + n), axis) for i, w in enumerate(weights / weights.sum()))
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
