"""MaskGIT's tokenizer as github.com/huggingface/open-muse ported it to torch: bytedance/1d-tokenizer's first stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, network, only


@register("format", "maskgit")
class MaskGITFormat(Format):
    """Levels of both networks are numbered from the image on."""

    title = "MaskGIT VQGAN"
    code = "bytedance/1d-tokenizer"
    pixels = (0.0, 1.0)
    rename = (
        (r"decoder\.up\.(\d+)\.upsample_conv\.(\w+)", r"decoder.up.\1.resample.1.\2"),
        (r"(encoder|decoder)\.mid\.(\d+)\.(.+)", r"\1.mid.\2.\3"),
        *NETWORK, (r"quantize\.embedding\.weight", "quantizer.codebook"),
    )

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize.embedding.weight"].shape
        return {"name": "maskgit_vqgan", "pixels": "unit", "latent_channels": dim,
                **only(network(state), "channels", "multipliers", "blocks"),
                "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim}}
