"""CVQ-VAE of github.com/lyndonzheng/CVQ-VAE, on three-channel images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register

LAYER = r"_residual_stack\._layers\.(\d+)\._block\.([13])"


@register("format", "cvq_vae")
class CVQVAEFormat(Format):
    """Codes are compared by their angle, as the published commands say; for l2, which leaves no trace in the file:
    tokenizer.quantizer.distance=l2."""

    title = "CVQ-VAE"
    code = "lyndonzheng/CVQ-VAE"
    pixels = (-1.0, 1.0)
    rename = (
        (r"_encoder\._conv_([123])\.(\w+)", lambda m: f"encoder.{2 * int(m[1]) - 2}.{m[2]}"),
        (rf"_encoder\.{LAYER}\.(\w+)", lambda m: f"encoder.{5 + int(m[1])}.conv{1 + int(m[2]) // 2}.{m[3]}"),
        (r"_pre_vq_conv\.(\w+)", r"to_latents.\1"),
        (r"_vq_vae\.embedding\.weight", "quantizer.table.codebook"),
        (r"_decoder\._conv_1\.(\w+)", r"decoder.0.\1"),
        (rf"_decoder\.{LAYER}\.(\w+)", lambda m: f"decoder.{1 + int(m[1])}.conv{1 + int(m[2]) // 2}.{m[3]}"),
        (r"_decoder\._conv_trans_([12])\.(\w+)", r"decoder.t\1.\2"),
    )
    ignored = {r"_vq_vae\.embed_prob": "how often codes were chosen in its training"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["_vq_vae.embedding.weight"].shape
        inner, hidden = state["_encoder._residual_stack._layers.0._block.1.weight"].shape[:2]
        return {"name": "vqvae_sonnet", "hidden": hidden, "residual_hidden": inner, "resblocks": _blocks(state),
                "rectified_skip": True, "quantizer": {"name": "codebook_vq", "codebook_size": codes, "codebook_dim": dim,
                                                      "distance": {"name": "cosine", "handed": "raw"}}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        last = 2 + _blocks(state)                   # the transposed convolutions follow the blocks, each after an activation
        places = {"decoder.t1.": f"decoder.{last}.", "decoder.t2.": f"decoder.{last + 2}."}
        return {places.get(key[:11], key[:11]) + key[11:]: tensor for key, tensor in super().convert(state).items()}


def _blocks(state: Mapping[str, Tensor]) -> int:
    return sum(bool(re.fullmatch(rf"_decoder\.{LAYER}\.weight", key)) for key in state) // 2
