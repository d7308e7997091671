"""The contract of a sanity row: a way to code images that is no tokenizer, measured as one. No neural network in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from bench.types import TokenLayout


@dataclass(frozen=True, slots=True)
class MeasuredLayout(TokenLayout):
    """Of a code that spends another number of bits on each image: their measured mean, and no codebook."""

    bits: float | None = None

    @property
    def bits_per_image(self) -> float | None:
        return self.bits


class Baseline(ABC):
    """Reconstructs uint8 images [B, 3, H, W], at a rate that may be matched to the compared tokenizers.

    Keywords are the suite's and part of the row's identity. Those named in `matched` may be left null: then the
    harness gives them, once per rate among the tokenizers. They are `bits` (per image, the target), `patch` (pixels
    of a token's side) and `codebook_size` (K); the latter two are null where tokens are no square grid of one level.
    """

    title: ClassVar[str]                        # of the row: "JPEG"
    matched: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = False              # `fit` wants training images

    label: str                                  # after fit, "JPEG, quality 12"
    layout: TokenLayout                         # after fit; bits_per_image are those really spent
    notes: tuple[str, ...] = ()                 # after fit: sentences that a reader of the row needs
    codebook: tuple[int, int] | None = None     # after fit: (K, D), of a learned table

    @abstractmethod
    def fit(self, train: np.ndarray | None, test: np.ndarray) -> None:
        """Learn from training images, find the setting for the rate wanted on the test images; sets `layout`.

        Both uint8 [n, 3, H, W], maybe memory-mapped; `train` is None unless `learns`. Raises Incompatible, with the
        reason, where this cannot be done for these images or at this rate.
        """

    @abstractmethod
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, 3, H, W] on the CPU -> (uint8 of the same shape, codes int64 [B, N, L] where there are any)."""
