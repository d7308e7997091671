"""Features that distances between sets of images are computed from: each batch goes once through a network.

Metrics of one pass get the same prepared tensor; the first that asks has the network run, the others get its answer.
So rFID, sFID, KID, precision, recall and the Inception score cost one pass through Inception.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import weights
from bench.places import Places
from bench.pretrained import inception, trunk

T = TypeVar("T")

INCEPTION_SIZE = 299
REMEMBERED = 16         # batches of features; a few hundred kB each
#: images at once through a network: 90 MB for Inception's largest layer on a CPU, where larger blocks are slower
BLOCK, BLOCK_GPU = 32, 128


class Features(NamedTuple):
    """What Inception says of a batch, float32."""

    pooled: Tensor                              # [B, 2048], pool_3: FID, KID, precision and recall
    spatial: Tensor                             # [B, 2023], the first 7 channels of mixed_6/conv: sFID
    logits: Tensor                              # [B, 1008], without bias: Inception score


class InceptionFeatures:
    """Pictures, uint8 or float [B, 3, H, W] in 0..255, to the features of FID's network.

    resize: to 299 pixels "tensorflow", as TensorFlow 1 does inside its graph (bilinear, corners at the corner:
    torch-fidelity, the ADM evaluator); or "torch", bilinear with pixel centres, without antialias (pytorch-fid, and
    so OptVQ and SEED-Voken). Neither is antialiased. They give different features: different metrics.
    """

    def __init__(self, *, resize: Literal["tensorflow", "torch"] = "tensorflow",
                 device: torch.device | None = None, places: Places | None = None) -> None:
        """places: where the weights are. Raises BadInput where they are not on this machine."""
        self.resize, self.places = resize, places
        self.network = inception(places).to(device or torch.device("cpu"))

    @functools.cached_property
    def identity(self) -> str:
        """Which weights, and how images are resized: what decides the features of an image."""
        return f"inception {weights.identity('inception', self.places or Places.find())}, resize {self.resize}"

    def __call__(self, pictures: Tensor) -> Features:
        return once(pictures, self.network, self.resize, self._compute)

    def _compute(self, pictures: Tensor) -> Features:
        blocks = in_blocks(pictures, lambda block: self.network(self._pixels(block)))
        return Features(*(torch.cat(part) for part in zip(*blocks, strict=True)))

    def _pixels(self, pictures: Tensor) -> Tensor:
        """[b, 3, 299, 299] in [-1, 1]: as torch-fidelity, (x - 128) / 128; as pytorch-fid, 2 (x / 255) - 1."""
        if self.resize == "tensorflow":
            return tensorflow_resize(pictures.float(), INCEPTION_SIZE).sub_(128).div_(128)
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        return F.interpolate(pictures.float() / 255, size=size, mode="bilinear", align_corners=False).mul_(2).sub_(1)


#: of a trunk: the side of its input, and numbers per image
SIDES = {"inception_mixed_7a": 299, "inception_mixed_6e": 299, "mobilenet_v2_035": 224, "squeezenet": 224}
WIDTHS = {"inception_mixed_7a": 1280, "inception_mixed_6e": 768, "mobilenet_v2_035": 1280, "squeezenet": 512}


class TrunkFeatures:
    """Pictures, uint8 or float [B, 3, H, W] in 0..255, to features [B, D] of a network that is not FID's.

    Resized by antialiased bicubic interpolation (PIL's, without its rounding), to the side the network was made for.
    """

    def __init__(self, name: str, *, device: torch.device | None = None, places: Places | None = None) -> None:
        """name: a key of SIDES. Raises BadInput where its weights are not on this machine."""
        self.name, self.places = name, places
        self.network = trunk(name, places).to(device or torch.device("cpu"))

    @functools.cached_property
    def identity(self) -> str:
        return f"{self.name} {weights.identity(f'frechet_{self.name}', self.places or Places.find())}"

    def __call__(self, pictures: Tensor) -> Tensor:
        return once(pictures, self.network, self.name, self._compute)

    def _compute(self, pictures: Tensor) -> Tensor:
        return torch.cat(in_blocks(pictures, lambda block: self.network(self._pixels(block))))

    def _pixels(self, pictures: Tensor) -> Tensor:
        pixels, side = pictures.float(), SIDES[self.name]
        if pixels.shape[-2:] != (side, side):
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp_(0, 255)
        if self.name != "squeezenet":
            return pixels / 127.5 - 1
        mean, deviation = (torch.tensor(values, device=pixels.device).view(3, 1, 1)
                           for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (pixels / 255 - mean) / deviation


# -- once per batch --------------------------------------------------------------------------------------------------

_recent: list[tuple[weakref.ref[Tensor], int | None, nn.Module, str, object]] = []


def once(pictures: Tensor, network: nn.Module, how: str, compute: Callable[[Tensor], T]) -> T:
    """compute(pictures), or what it gave for this very tensor, network and `how` before.

    Held by weak reference, so that no batch outlives its pass. Nobody writes into prepared pictures; a normal tensor
    that was written to is noticed, one made in inference mode is not.
    """
    version = None if pictures.is_inference() else pictures._version
    for known, its_version, by, way, found in _recent:
        if known() is pictures and its_version == version and by is network and way == how:
            return found                                                    # type: ignore[return-value]
    found = compute(pictures)
    kept = [entry for entry in _recent if entry[0]() is not None]
    _recent[:] = [*kept[-REMEMBERED + 1 :], (weakref.ref(pictures), version, network, how, found)]
    return found


def in_blocks(pictures: Tensor, compute: Callable[[Tensor], T]) -> list[T]:
    """compute on blocks that fit a cache or a GPU, without gradient and in full float32."""
    size = BLOCK if pictures.device.type == "cpu" else BLOCK_GPU
    with torch.inference_mode(), _full_precision():
        return [compute(block) for block in pictures.split(size)]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Neither TF32 nor bfloat16 inside products: a distance must not depend on the machine that computes it."""
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    try:
        torch.set_float32_matmul_precision("highest")
        with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic,
                         allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


# -- TensorFlow's resize ---------------------------------------------------------------------------------------------


def tensorflow_resize(pictures: Tensor, size: int) -> Tensor:
    """float32 [B, C, H, W] -> [B, C, size, size], bilinear as in TensorFlow 1 without aligned corners.

    Output i reads input i * H / size: no half-pixel offset, and no antialias when it shrinks. As it is linear in each
    direction, it is a product with a matrix of two numbers a row on either side, here 3 to 10 times faster than by
    gathering four neighbours, and equal to 1e-6 of the range.
    """
    height, width = pictures.shape[-2:]
    if (height, width) == (size, size):
        return pictures.clone()
    rows, columns = (_matrix(side, size, pictures.device) for side in (height, width))
    return rows @ (pictures @ columns.T)


@functools.cache
def _matrix(side: int, size: int, device: torch.device) -> Tensor:
    """[size, side]: row i holds the weights of the neighbours of i * side / size."""
    # in float32, as TensorFlow computes it: in float64 a neighbour may differ
    place = torch.arange(size, dtype=torch.float32) * torch.tensor(side / size, dtype=torch.float32)
    low = place.long()
    high, share = (low + 1).clamp_max(side - 1), place - low
    matrix = torch.zeros(size, side)
    row = torch.arange(size)
    matrix.index_put_((row, low), 1 - share, accumulate=True)
    matrix.index_put_((row, high), share, accumulate=True)
    return matrix.to(device)
