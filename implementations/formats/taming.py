"""VQGAN of github.com/CompVis/taming-transformers: VQModel, GumbelVQ and EMAVQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import LOSS, NETWORK, PROJECTIONS, network

AVERAGES = {"cluster_size": "mean_counts", "embed_avg": "mean_sums"}


@register("format", "taming")
class Taming(Format):
    """The decoder has one block a level more than the encoder, as everywhere in that code.

    Gumbel: the published model samples codes also when it is evaluated; ours takes the likeliest.
    EMA: how many updates there were is not in the file, and not needed."""

    title = "VQGAN (taming)"
    code = "CompVis/taming-transformers"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight|quantize\.embed\.weight", "quantizer.codebook"),
              (r"quantize\.proj\.(\w+)", r"quantizer.to_logits.\1"),
              (r"quantize\.embedding\.(cluster_size|embed_avg)", lambda m: f"quantizer.{AVERAGES[m[1]]}"))
    ignored = {**LOSS, r"loss_fn\..+": "the same in khanhvu207/vqgan, which has the same network"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        gumbel, ema = "quantize.proj.weight" in state, "quantize.embedding.cluster_size" in state
        codes, dim = state["quantize.embed.weight" if gumbel else "quantize.embedding.weight"].shape
        quantizer: dict[str, Any] = {"name": "gumbel" if gumbel else "ema_vq" if ema else "vq", "codebook_size": codes,
                                     "codebook_dim": dim}
        if ema:
            quantizer["zero_count"] = "laplace"
        return {"name": "vqgan", **network(state), "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": quantizer}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().convert(state)
        if "quantizer.mean_counts" in ours:
            ours["quantizer.updates"] = torch.zeros((), dtype=torch.int64)
        return ours
