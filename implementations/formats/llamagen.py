"""VQ-16 and VQ-8 of github.com/FoundationVision/LlamaGen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, PROJECTIONS, network, only
from implementations.formats._llamagen import ATTN, BLOCK, from_the_image, part


@register("format", "llamagen")
class LlamaGenFormat(Format):
    """Its decoder counts levels from the deepest one; ours from the image."""

    title = "LlamaGen"
    code = "FoundationVision/LlamaGen"
    pixels = (-1.0, 1.0)
    inside = ("ema", "model", "state_dict")         # as its evaluation takes them
    rename = (
        (r"encoder\.conv_blocks\.(\d+)\.(.+)", lambda m: f"encoder.down.{m[1]}.{part(m[2])}"),
        (r"decoder\.conv_blocks\.(\d+)\.(.+)", lambda m: f"decoder.up.{m[1]}.{part(m[2])}"),
        (r"(encoder|decoder)\.mid\.(\d)\.(.+)", r"\1.mid.\2.\3"),
        *NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.codebook"),
    )
    ignored = {r"quantize\.codebook_used": "the last codes of its training, from which usage was told"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize.embedding.weight"].shape
        return {"name": "llamagen", **only(network(state, BLOCK, ATTN), "channels", "multipliers", "blocks"),
                "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim, "normalize": "both"}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().convert(from_the_image(state))
