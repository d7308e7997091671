"""Learned perceptual image patch similarity, to be trained with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.interfaces import Loss
from bench.pretrained import LPIPS_SMALLEST, Frozen, lpips_network
from bench.registry import register
from bench.types import Batch, TokenizerOutput


@register("loss", "lpips")
class LPIPSLoss(Loss):
    """LPIPS v0.1 (arXiv:1801.03924) of reconstruction and image, mean over the batch; on [-1, 1], at native resolution.

    net: the trunk. VQGAN and all that follow it train with VGG-16; its linear heads in taming are those of v0.1. The
    network is frozen and stays in eval, so that its dropout is off (in several released trainers it is on).
    Raises BadInput where the trunk's weights are not on this machine, ValueError for images too small for it.
    """

    needs = ("lpips_{net}",)

    def __init__(self, *, net: Literal["vgg", "alex", "squeeze"] = "vgg") -> None:
        super().__init__()
        self.net = net
        on_meta = torch.get_default_device().type == "meta"         # where only shapes are checked
        self.network = None if on_meta else Frozen(lpips_network(net))

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        side = min(batch.images.shape[-2:])
        if side < LPIPS_SMALLEST[self.net]:
            raise ValueError(f"LPIPS with net {self.net} needs image_size {LPIPS_SMALLEST[self.net]}, got {side}")
        if self.network is None:
            return output.reconstruction.new_zeros(())
        return self.network(batch.images, output.reconstruction.float()).float().mean()
