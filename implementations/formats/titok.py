"""TiTok of github.com/bytedance/1d-tokenizer: S-128, B-64, L-32, and the later BL, SL and LL, with codes or a posterior."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import network
from implementations.formats._transformer import blocks, depth, heads

BLOCK = r"{}\.transformer\.(\d+)\.ln_1\.weight"
UP = "pixel_decoder.up.{}.block.{}.conv1.weight"


@register("format", "titok")
class TiTokFormat(Format):
    """A decoder of 1,024 logits is the older network: its tokens and channels are mixed, and its codes are unit vectors; one
    that writes pixels is the newer: neither. Both halves may have widths of their own. Without a table the encoder writes
    a mean and a log-variance. The first stage of the older ones, whose logits nothing decodes, is no tokenizer yet.
    """

    title = "TiTok"
    code = "bytedance/1d-tokenizer"
    pixels = (0.0, 1.0)
    rename = (
        *(blocks(f"{side}.transformer", f"{side}.transformer") for side in ("encoder", "decoder")),
        (r"(encoder|decoder)\.ln_pre\.(\w+)", r"\1.transformer.first_norm.\2"),
        (r"(encoder|decoder)\.ln_post\.(\w+)", r"\1.transformer.norm.\2"),
        (r"(encoder|decoder)\.class_embedding", r"\1.class_embedding"),
        (r"(encoder|decoder)\.positional_embedding", r"\1.position_embedding"),
        (r"latent_tokens", "encoder.query_embedding"),
        (r"encoder\.latent_token_positional_embedding", "encoder.query_position_embedding"),
        (r"encoder\.patch_embed\.(\w+)", r"encoder.patches.\1"),
        (r"encoder\.conv_out\.(\w+)", r"encoder.out.\1"),
        (r"quantize\.embedding\.weight", "quantizer.codebook"),
        (r"decoder\.decoder_embed\.(\w+)", r"decoder.inputs.\1"),
        (r"decoder\.mask_token", "decoder.mask_embedding"),
        (r"decoder\.latent_token_positional_embedding", "decoder.token_position_embedding"),
        (r"decoder\.ffn\.(\d)\.(\w+)", r"decoder.ffn.\1.\2"),
        (r"decoder\.conv_out\.(\w+)", r"to_pixels.\1"),
        (r"pixel_quantize\.embedding\.weight", "proxy_embedding"),
        (r"pixel_decoder\.up\.(\d+)\.upsample_conv\.(\w+)", r"to_pixels.up.\1.resample.1.\2"),
        (r"pixel_decoder\.(.+)", r"to_pixels.\1"),
    )

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        (width, _, patch, _), wide = state["encoder.patch_embed.weight"].shape, len(state["decoder.decoder_embed.weight"])
        said = {"name": "titok", "tokens": len(state["latent_tokens"]), "patch": patch, "width": width, "heads": heads(width),
                "depth": depth(state, BLOCK.format("encoder")), "decoder_width": wide, "decoder_heads": heads(wide),
                "decoder_depth": depth(state, BLOCK.format("decoder"))}
        proxy = _proxy(state)
        if "quantize.embedding.weight" in state:
            codes, dim = state["quantize.embedding.weight"].shape
            said["quantizer"] = {"name": "vq", "codebook_size": codes, "codebook_dim": dim,
                                 "normalize": "both" if proxy else "none"}
        else:
            said["quantizer"] = {"name": "gaussian_kl", "dim": state["decoder.decoder_embed.weight"].shape[1]}
        if proxy:
            found = network(state, UP, conv_in="pixel_decoder.norm_out.weight")
            said |= {"head": "proxy", "mixed": True, "proxy_channels": found["channels"],
                     "proxy_multipliers": found["multipliers"]}
        return said

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        head = r"to_logits.\1." if _proxy(state) else "to_patches."
        return {re.sub(r"^decoder\.ffn\.(\d)\.", head, key): tensor for key, tensor in super().convert(state).items()}


def _proxy(state: Mapping[str, Tensor]) -> bool:
    return "decoder.ffn.2.weight" in state
