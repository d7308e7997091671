"""Squared difference of an ImageNet classifier's logits: the perceptual loss of MaskBit's VQGAN+ and of TiTok."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.interfaces import Loss
from bench.pretrained import Frozen, classifier
from bench.registry import register
from bench.types import Batch, TokenizerOutput

SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register("loss", "classifier_logits")
class ClassifierLogits(Loss):
    """Mean over batch and 1,000 logits of the squared difference, of images resized to 224 pixels (bilinear, antialiased).

    net: `resnet50` (MaskBit, arXiv:2409.16211) or `convnext_small` (TiTok, arXiv:2406.07550); `random` is a small network
        that knows nothing, for tests. Raises BadInput where the weights are not on this machine.
    """

    needs = ("{net}",)

    def __init__(self, *, net: Literal["resnet50", "convnext_small", "random"] = "resnet50") -> None:
        super().__init__()
        on_meta = torch.get_default_device().type == "meta"         # where only shapes are checked
        self.network = None if on_meta else Frozen(classifier(net))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        if self.network is None:
            return output.reconstruction.new_zeros(())
        with torch.no_grad():
            wanted = self._logits(batch.images)
        return F.mse_loss(self._logits(output.reconstruction.float()), wanted)

    def _logits(self, images: Tensor) -> Tensor:
        small = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return self.network(((small + 1) / 2 - self.mean) / self.deviation).float()
