"""VQGAN-LC of github.com/zh460045050/VQGAN-LC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.errors import BadInput
from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, PROJECTIONS, network

UNIT_WIDTH = 768                    # codes as wide as the table's features: latents become unit vectors


@register("format", "vqgan_lc")
class VQGANLCFormat(Format):
    """The table of features is in the file, behind a linear projector or, without one, as it is. That it was frozen is
    not: in the record it counts as learned."""

    title = "VQGAN-LC"
    code = "zh460045050/VQGAN-LC"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"tok_embeddings\.weight", "quantizer.table.codebook"),
              (r"codebook_projection\.(weight|bias)", r"quantizer.table.map.\1"))
    ignored = {r"discriminator\..+|perceptual_loss\..+": "networks of its training",
               r"cluster_size|embed_avg": "moving averages of its training"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        dim, (codes, width) = len(state["quant_conv.weight"]), state["tok_embeddings.weight"].shape
        if dim == UNIT_WIDTH:
            raise BadInput(f"latents {dim} wide are normalized by the published code, which this tokenizer does not do")
        table = {"name": "projected", "width": width} if "codebook_projection.weight" in state else "free"
        return {"name": "vqgan_lc", **network(state), "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": {"name": "codebook_vq", "codebook_size": codes, "codebook_dim": dim, "table": table}}
