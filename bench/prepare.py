"""What a protocol does to originals and reconstructions before any metric sees them: range, rounding, resizing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Prepared:
    """One batch of originals and reconstructions, prepared once for all metrics that want it the same way."""

    def __init__(self, originals: Tensor, reconstruction: Tensor) -> None:
        """originals: uint8 [B, C, H, W]; reconstruction: any float [B, C, H, W] in [-1, 1], not clamped."""
        self.originals = originals
        self.reconstruction = reconstruction
        self._ready: dict[tuple[tuple[str, Any], ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, how: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(originals, reconstructions) in 0..255: uint8, or float32 where the protocol does not round.

        The same tensors for the same `how`: features of a network can be kept by tensor.
        """
        key = tuple(sorted(how.items()))
        if key not in self._ready:
            self._ready[key] = self._prepare(how)
        return self._ready[key]

    def _prepare(self, how: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        originals, reconstruction = self.originals, self.reconstruction
        if (size := how.get("resize")) is not None and originals.shape[-2:] != (size, size):
            keywords = {"size": (size, size), "mode": how["filter"], "antialias": how["antialias"], "align_corners": False}
            reconstruction = functional.interpolate(reconstruction.float(), **keywords)
            unrounded = functional.interpolate(to_model(originals), **keywords)
            originals = unrounded.add_(1.0).mul_(127.5) if how["originals"] == "resized" else to_range(unrounded, how["round"])
            return originals, to_range(reconstruction, how["round"])
        if how["round"] == "truncate":
            originals = to_range(to_model(originals), "truncate")
        return originals, to_range(reconstruction, how["round"])


def to_model(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], rounded once."""
    return images.double().div_(127.5).sub_(1.0).float()


def to_range(images: Tensor, rounding: str) -> Tensor:
    """[-1, 1], clamped -> 0..255: "8bit" and "truncate" uint8, "none" float32."""
    match rounding:
        case "8bit":
            return to_8bit(images)
        case "truncate":
            # in this order, in float32: (x + 1) / 2 * 255 cast to uint8 takes 1 from 95 of the 256 values, and so it does
            # in the published code
            return images.float().clamp(-1, 1).add_(1.0).div_(2.0).mul_(255.0).to(torch.uint8)
        case "none":
            return images.float().clamp(-1, 1).mul_(127.5).add_(127.5)
    raise ValueError(f"no such rounding: {rounding!r}")


def to_8bit(images: Tensor) -> Tensor:
    """[-1, 1], clamped, to the nearest of 0..255 as uint8, halves up, as torchvision's save_image does."""
    return images.float().clamp(-1, 1).mul_(127.5).add_(128.0).to(torch.uint8)
