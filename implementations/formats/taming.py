"""VQGAN of github.com/CompVis/taming-transformers (VQModel; not its Gumbel and EMA variants)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import LOSS, NETWORK, PROJECTIONS, network


@register("format", "taming")
class Taming(Format):
    """The decoder has one block a level more than the encoder, as everywhere in that code."""

    title = "VQGAN (taming)"
    code = "CompVis/taming-transformers"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.codebook"))
    ignored = LOSS

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize.embedding.weight"].shape
        return {"name": "vqgan", **network(state), "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim}}
