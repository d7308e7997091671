"""The contract of a peer: somebody else's code that does what a quantizer of ours does, timed beside it.

One peer is one file of bench/peers. It imports the package it stands for inside its methods, so that listing peers
loads nothing.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bench.errors import BadInput

Calls = dict[str, Callable[[], "Tensor | None"]]


class Peer(ABC):
    """Forms of one package, each of which can be called as our quantizers are.

    A form is the peer's name for one of its methods ("EMA", "FSQ").
    """

    title: ClassVar[str]                        # heading of its column: "faiss"
    module: ClassVar[str | None] = None         # what has to be importable; None: nothing beyond torch
    package: ClassVar[str | None] = None        # what `pip install` calls it
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    searches: ClassVar[bool] = False            # it compares latents with the table: both have one width

    @abstractmethod
    def form(self, quantizer: str, keywords: Mapping[str, Any]) -> str | None:
        """The form that computes what this registered quantizer of ours computes; None where there is none."""

    @abstractmethod
    def build(self, form: str, latents: Tensor, table: Tensor, keywords: Mapping[str, Any]) -> Calls:
        """latents [N, D] and, for forms with a codebook, its codes [K, D] -> calls by what they do:

        `search`: codes int64 [N] of the latents against `table` where the form has one, without gradient.
        `train`: one training step of the quantizer, gradient of the latents included; returns nothing.
        `keywords` are those of our quantizer. What a form cannot do is left out.
        """

    def distances(self, form: str) -> int:
        """Tables of N x K float32 that a training step keeps at once; a case that would not fit is not begun."""
        return 0

    def require(self) -> None:
        """Raises BadInput where the package is not installed."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            raise BadInput(f"--against {self.title}: the package is not installed; pip install {self.package}")


def step(outputs: tuple[Tensor, Tensor], latents: Tensor, ones: Tensor) -> None:
    """Backward of (quantized, loss) as if the decoder's gradient were `ones`; leaves no gradient behind on the latents."""
    import torch

    quantized, loss = outputs
    torch.autograd.backward([quantized, loss], [ones.to(quantized.dtype), None])
    latents.grad = None
