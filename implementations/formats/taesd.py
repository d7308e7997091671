"""TAESD, TAESDXL, TAESD3, TAEF1 and TAEF2 of github.com/madebyollin/taesd: an encoder's file and a decoder's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register


@register("format", "taesd")
class TAESDFormat(Format):
    """The layers' names are ours."""

    title = "TAESD"
    code = "madebyollin/taesd"
    pixels = (0.0, 1.0)
    files = {"*encoder.*": "encoder.", "*decoder.*": "decoder."}
    rename = ((r"((?:en|de)coder\..+)", r"\1"),)

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        latent_dim, width = state["encoder.14.weight"].shape[:2]
        return {"name": "taesd", "latent_dim": latent_dim, "width": width,
                "latent_pool": "encoder.11.pool.0.weight" in state}
