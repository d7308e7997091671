"""The multi-scale tokenizer of github.com/FoundationVision/VAR."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, PROJECTIONS, network, only


@register("format", "var")
class VARFormat(Format):
    """Scales are in no tensor: 1, 2, 3, 4, 5, 6, 8, 10, 13, 16 as for 256 pixels, unless keywords say others. Its attention
    has one convolution for queries, keys and values."""

    title = "VAR"
    code = "FoundationVision/VAR"
    pixels = (-1.0, 1.0)
    inside = ("vae_local", "state_dict", "model")
    rename = (*NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.inner.codebook"),
              (r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.(\w+)", r"quantizer.phi.\1.\2"),
              (r"quantize\.quant_resi\.qresi\.(\w+)", r"quantizer.phi.0.\1"))
    ignored = {r"quantize\.ema_vocab_hit_SV": "how often codes were chosen in its training"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize.embedding.weight"].shape
        convolutions = sum(bool(re.fullmatch(r"quantize\.quant_resi\..*weight", key)) for key in state)
        separate = "quantize.quant_resi.0.weight" in state
        phi = "separate" if separate else "shared" if convolutions == 1 else "partial" if convolutions else "none"
        return {
            "name": "var", **only(network(state), "channels", "multipliers", "blocks"),
            "latent_channels": len(state["encoder.conv_out.weight"]),
            "quantizer": {"name": "multi_scale", "scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "phi": phi,
                          "phi_count": max(1, convolutions),
                          "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim}}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        split: dict[str, Tensor] = {}
        for key, tensor in super().convert(state).items():
            if ".qkv." in key:
                split |= {key.replace(".qkv.", f".{one}."): t for one, t in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                split[key] = tensor
        return split
