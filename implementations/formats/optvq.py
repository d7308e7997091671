"""OptVQ of github.com/zbr17/OptVQ: checkpoints of its training, and its folders on the hub (keys begin with `model.`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import LOSS, NETWORK, PROJECTIONS, network


@register("format", "optvq")
class OptVQFormat(Format):
    """As many heads as a table's width goes into the projected latents. Codes are the nearest ones."""

    title = "OptVQ"
    code = "zbr17/OptVQ"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.codebook"),
              (r"quantize\.proj\.(\w+)", r"quantizer.projection.\1"))
    ignored = LOSS

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        state = _bare(state)
        codes, dim = state["quantize.embedding.weight"].shape
        return {"name": "optvq", **network(state), "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": {"name": "sinkhorn", "codebook_size": codes, "codebook_dim": dim,
                              "heads": len(state["quant_conv.weight"]) // dim, "projection": "quantize.proj.weight" in state}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().convert(_bare(state))


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("model."): tensor for key, tensor in state.items()}
