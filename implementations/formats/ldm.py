"""First stages of github.com/CompVis/latent-diffusion: AutoencoderKL and VQModelInterface; Stable Diffusion's among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import LOSS, NETWORK, PROJECTIONS, network

PREFIX = "first_stage_model."                   # where the file holds a diffusion model, too


@register("format", "ldm")
class LDMFormat(Format):
    """With a table it is a VQ model, without one its latents are Gaussian."""

    title = "LDM"
    code = "CompVis/latent-diffusion"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.codebook"))
    ignored = {**LOSS, r"model_ema\..+": "moving averages, which the published configurations do not use",
               r"(model|cond_stage_model)\..+": "the diffusion model",
               r"betas|alphas_cumprod.*|.*alphas_cumprod|posterior_.+|logvar|scale_factor": "the diffusion's schedule"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        state = _bare(state)
        said = network(state) | {"mid_attention": "encoder.mid.attn_1.norm.weight" in state}
        latent_channels = state["decoder.conv_in.weight"].shape[1]
        if "quantize.embedding.weight" in state:
            codes, dim = state["quantize.embedding.weight"].shape
            quantizer = {"name": "vq", "codebook_size": codes, "codebook_dim": dim}
        else:
            quantizer = {"name": "gaussian_kl", "dim": state["post_quant_conv.weight"].shape[1]}
        return {"name": "ldm", **said, "latent_channels": latent_channels, "quantizer": quantizer}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().convert(_bare(state))
        if "encoder.mid.1.norm.weight" in ours:
            return ours
        return {re.sub(r"(encoder|decoder)\.mid\.2\.", r"\1.mid.1.", key): tensor for key, tensor in ours.items()}


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
