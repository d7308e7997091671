"""Networks whose features are compared, as modules without files: bench/pretrained.py fills them.

Batch norm is folded into the convolution before it, in float64: half the memory traffic, and the same function up
to the rounding of float32 (about 1e-6 of a feature).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SPATIAL_LAYER = "Mixed_6d"      # its first branch is mixed_6/conv of TensorFlow's graph
SPATIAL_CHANNELS = 7            # 17 * 17 * 7 = 2023 numbers: about as many as pooled features


class FoldedInception(nn.Module):
    """FID's InceptionV3 of 2015-12-05: float [B, 3, 299, 299] in [-1, 1] -> (pooled, spatial, logits), float32.

    It is torch-fidelity's network (average pools that leave the padding out of the count, a max pool in the last
    block), and so pytorch-fid's. pooled [B, 2048]: TensorFlow's pool_3. spatial [B, 2023]: the first 7 channels of
    mixed_6/conv in TensorFlow's order (row, column, channel), what the ADM evaluator takes for sFID. logits
    [B, 1008]: pooled times the last layer's weight *without* its bias, as both torch-fidelity and the ADM
    evaluator have it for the Inception score.

    last: the layer it stops after, by torchvision's name; pooled is then that layer's mean over positions, and
    logits is empty, [B, 0], unless it is the whole network.
    """

    head: Tensor

    def __init__(self, network: Any, last: str = "Mixed_7c") -> None:
        """network: torch-fidelity's FeatureExtractorInceptionV3, with its weights; it is taken apart."""
        super().__init__()
        self.layers = nn.ModuleDict()
        for name, layer in network.named_children():
            self.layers[name] = _folded(layer)
            if name == last:
                break
        whole = network.fc.weight if last == "Mixed_7c" else torch.empty(0, 0)
        self.register_buffer("head", whole.detach().float())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, spatial = pixels, pixels.new_empty(len(pixels), 0)
        for name, layer in self.layers.items():
            h = layer(h)
            if name == SPATIAL_LAYER:
                spatial = h[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        pooled = h.mean((2, 3))
        return pooled, spatial, pooled @ self.head.T if self.head.numel() else pooled.new_empty(len(pooled), 0)


def _folded(layer: nn.Module) -> nn.Module:
    """Every pair `conv`, `bn` inside becomes one convolution with a bias, and nothing."""
    for part in layer.modules():
        conv, norm = getattr(part, "conv", None), getattr(part, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            part.conv, part.bn = fuse_conv_bn_eval(conv.double(), norm.double()).float(), nn.Identity()
    return layer


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv:1801.04381) as Keras builds it, to its last activation: [B, 3, H, W] in [-1, 1] -> [B, 1280].

    arrays: Keras's weights by name ("block_3_expand/kernel", "bn_Conv1/gamma", ...), kernels as HWIO. Widths are
    read from them. Layers of stride 2 pad one row below and one column right, as TensorFlow does for even sizes;
    batch norm has eps 1e-3. Pooled is the mean over positions.
    """

    STRIDE_TWO = (1, 3, 6, 13)                  # of the blocks 0..16; Conv1 too

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        """Raises KeyError for a layer that is not in `arrays`."""
        super().__init__()
        self.first = _keras_convolution(arrays, "Conv1", "bn_Conv1", stride=2)
        blocks = []
        for i in range(17):
            prefix = f"block_{i}_" if i else "expanded_conv_"
            block = nn.ModuleDict()
            if i:                               # the first block does not widen
                block["expand"] = _keras_convolution(arrays, f"{prefix}expand")
            block["depthwise"] = _keras_convolution(arrays, f"{prefix}depthwise", stride=2 if i in self.STRIDE_TWO else 1)
            block["project"] = _keras_convolution(arrays, f"{prefix}project")
            blocks.append(block)
        self.blocks: Iterable[nn.ModuleDict] = nn.ModuleList(blocks)        # type: ignore[assignment]
        self.last = _keras_convolution(arrays, "Conv_1", "Conv_1_bn")

    def forward(self, pixels: Tensor) -> Tensor:
        h = F.relu6(self.first(_padded(pixels, self.first)))
        for block in self.blocks:
            before = h
            if "expand" in block:
                h = F.relu6(block["expand"](h))
            h = F.relu6(block["depthwise"](_padded(h, block["depthwise"])))
            h = block["project"](h)
            if h.shape == before.shape:
                h = h + before
        return F.relu6(self.last(h)).mean((2, 3))


def _padded(h: Tensor, convolution: Any) -> Tensor:
    return F.pad(h, (0, 1, 0, 1)) if convolution.stride == (2, 2) else h


def _keras_convolution(arrays: Mapping[str, Tensor], name: str, norm: str | None = None, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias and the batch norm after it, as one convolution with a bias."""
    norm = norm or f"{name}_BN"
    depthwise = f"{name}/depthwise_kernel" in arrays
    kernel = arrays[f"{name}/depthwise_kernel" if depthwise else f"{name}/kernel"].double()       # HWIO, or HWC1
    kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
    gamma, beta, mean, variance = (arrays[f"{norm}/{key}"].double()
                                   for key in ("gamma", "beta", "moving_mean", "moving_variance"))
    scale = gamma / (variance + 1e-3).sqrt()
    out, width = len(kernel), kernel.shape[-1]
    convolution = nn.utils.skip_init(
        nn.Conv2d, out if depthwise else kernel.shape[1], out, width, stride=stride,
        padding=width // 2 if stride == 1 else 0, groups=out if depthwise else 1)
    convolution.weight = nn.Parameter((kernel * scale.view(-1, 1, 1, 1)).float(), requires_grad=False)
    convolution.bias = nn.Parameter((beta - mean * scale).float(), requires_grad=False)
    return convolution
