"""MoVQGAN of github.com/ai-forever/MoVQGAN: one code a position, the decoder's norms look at the quantized map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import LOSS, NETWORK, PROJECTIONS, network


@register("format", "movq")
class MoVQFormat(Format):
    """Without the 3x3 convolution before the norms (`add_conv`), as all published checkpoints."""

    title = "MoVQGAN"
    code = "ai-forever/MoVQGAN"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.codebook"))
    ignored = {**LOSS, r"ema_\w+\..+": "moving averages, which the published loader leaves out"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize.embedding.weight"].shape
        return {"name": "movq", **network(state), "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim}}
