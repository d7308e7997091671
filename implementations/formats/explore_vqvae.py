"""The VQ-VAE of github.com/NimbleBoxAI/explore-weights: encoder, 1x1 convolution, table and decoder in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register

#: published layer -> its place in our sequences; the residual blocks follow `conv_3` and `conv_1`
ENCODER = {"conv_1": 0, "conv_2": 2, "conv_3": 4}
BLOCK = r"residual\.residual_blocks\.residual_(\d+)\._block\.conv_([12])\.weight"


@register("format", "explore_vqvae")
class ExploreVQVAE(Format):
    """Pixels are [0, 1] less 0.5."""

    title = "explore VQ-VAE"
    code = "NimbleBoxAI/explore-weights"
    pixels = (-0.5, 0.5)
    rename = (
        (r"encoder\._blocks\.(conv_\d)\.(\w+)", lambda m: f"encoder.{ENCODER[m[1]]}.{m[2]}"),
        (rf"encoder\._blocks\.{BLOCK}", lambda m: f"encoder.{5 + int(m[1])}.conv{m[2]}.weight"),
        (r"pre_vq_conv\.(\w+)", r"to_latents.\1"),
        (r"vq_vae\.codebook\.weight", "quantizer.codebook"),
        (r"decoder\._blocks\.conv_1\.(\w+)", r"decoder.0.\1"),
        (rf"decoder\._blocks\.{BLOCK}", lambda m: f"decoder.{1 + int(m[1])}.conv{m[2]}.weight"),
        (r"decoder\._blocks\.conv_t_([12])\.(\w+)", r"decoder.t\1.\2"),
    )

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["vq_vae.codebook.weight"].shape
        return {"name": "vqvae_explore", "hidden": len(state["encoder._blocks.conv_2.weight"]), "resblocks": _blocks(state),
                "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        last = 2 + _blocks(state)                   # the transposed convolutions follow the blocks, each after an activation
        places = {"decoder.t1.": f"decoder.{last}.", "decoder.t2.": f"decoder.{last + 2}."}
        return {places.get(key[:11], key[:11]) + key[11:]: tensor for key, tensor in super().convert(state).items()}


def _blocks(state: Mapping[str, Tensor]) -> int:
    return sum(bool(re.fullmatch(rf"decoder\._blocks\.{BLOCK}", key)) for key in state) // 2
