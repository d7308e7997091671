"""What public code calls the parts of implementations/backbones/conv_res.py, and what its tensors say of the network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

from torch import Tensor

from bench.format import Rule

MID = {"block_1": 0, "attn_1": 1, "block_2": 2}
#: CompVis/taming-transformers, and all that copied its modules
NETWORK: tuple[Rule, ...] = (
    (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(.+)", r"\1.\2.\3"),
    (r"(encoder|decoder)\.(down|up)\.(\d+)\.(block|attn)\.(.+)", r"\1.\2.\3.\4.\5"),
    (r"(encoder|decoder)\.(down|up)\.(\d+)\.(?:down|up)sample\.conv\.(\w+)", r"\1.\2.\3.resample.1.\4"),
    (r"(encoder|decoder)\.mid\.(block_1|attn_1|block_2)\.(.+)", lambda m: f"{m[1]}.mid.{MID[m[2]]}.{m[3]}"),
)
PROJECTIONS: tuple[Rule, ...] = (
    (r"quant_conv\.(\w+)", r"to_latents.\1"),
    (r"post_quant_conv\.(\w+)", r"from_quantized.\1"),
)
LOSS = {r"loss\..+": "the discriminator and the perceptual network of its training"}


def network(
    state: Mapping[str, Tensor], block: str = "encoder.down.{}.block.{}.conv1.weight",
    attn: str = "encoder.down.{}.attn.0.norm.weight", conv_in: str = "encoder.conv_in.weight",
) -> dict[str, Any]:
    """channels, multipliers, blocks and attention, of an encoder whose tensors are called so."""
    channels = len(state[conv_in])
    levels = list(takewhile(lambda i: block.format(i, 0) in state, count()))
    return {
        "channels": channels, "multipliers": [len(state[block.format(i, 0)]) // channels for i in levels],
        "blocks": len(list(takewhile(lambda j: block.format(0, j) in state, count()))),
        "attention": [2**i for i in levels if attn.format(i) in state],
    }


def only(said: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Of a network, what a tokenizer has keywords for."""
    return {key: said[key] for key in keys}
