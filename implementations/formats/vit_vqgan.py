"""ViT-VQGAN of github.com/thuanz123/enhancing-transformers (ViTVQ; not its Gumbel and residual variants)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from bench.errors import BadInput
from bench.format import Format
from bench.registry import register
from implementations.backbones.vit import sine_positions
from implementations.formats._conv_res import LOSS
from implementations.formats._transformer import HEAD_WIDTH, depth

LAYERS = {"0.norm": "norm1", "0.fn.to_qkv": "attention.qkv", "0.fn.to_out": "attention.out", "1.norm": "norm2",
          "1.fn.net.0": "mlp.0", "1.fn.net.2": "mlp.2"}
BLOCK = r"{}\.transformer\.layers\.(\d+)\.0\.norm\.weight"
POSITIONS = {"encoder": "encoder.en_pos_embedding", "decoder": "decoder.de_pos_embedding"}


@register("format", "vit_vqgan")
class ViTVQGANFormat(Format):
    """Positions are sines in the file too: compared with ours, and an error where they are others."""

    title = "ViT-VQGAN"
    code = "thuanz123/enhancing-transformers"
    pixels = (0.0, 1.0)
    rename = (
        (r"(encoder|decoder)\.transformer\.layers\.(\d+)\.(\d\.(?:norm|fn\.to_qkv|fn\.to_out|fn\.net\.\d))\.(\w+)",
         lambda m: f"{m[1]}.blocks.{m[2]}.{LAYERS[m[3]]}.{m[4]}"),
        (r"(encoder|decoder)\.transformer\.norm\.(\w+)", r"\1.norm.\2"),
        (r"encoder\.to_patch_embedding\.0\.(\w+)", r"patches.\1"),
        (r"decoder\.to_pixel\.1\.(\w+)", r"to_pixels.\1"),
        (r"pre_quant\.(\w+)", r"to_latents.\1"),
        (r"post_quant\.(\w+)", r"from_quantized.\1"),
        (r"quantizer\.embedding\.weight", "quantizer.codebook"),
    )
    ignored = LOSS | {r"(en|de)coder\.(en|de)_pos_embedding": "sines, which are computed"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        width, _, patch, _ = state["encoder.to_patch_embedding.0.weight"].shape
        codes, dim = state["quantizer.embedding.weight"].shape
        return {"name": "vit_vqgan", "patch": patch, "width": width, "depth": depth(state, BLOCK.format("encoder")),
                "heads": _heads(state, "encoder"), "decoder_width": len(state["post_quant.weight"]),
                "decoder_depth": depth(state, BLOCK.format("decoder")), "decoder_heads": _heads(state, "decoder"),
                "quantizer": {"name": "vq", "codebook_size": codes, "codebook_dim": dim, "normalize": "both"}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for key in POSITIONS.values():
            _, positions, width = state[key].shape
            if not torch.allclose(state[key][0].float(), sine_positions(isqrt(positions), width), rtol=0, atol=1e-3):
                raise BadInput(f"{key} holds other numbers than the sines of {isqrt(positions)} rows and columns, which ours are")
        return super().convert(state)


def _heads(state: Mapping[str, Tensor], side: str) -> int:
    return len(state[f"{side}.transformer.layers.0.0.fn.to_qkv.weight"]) // (3 * HEAD_WIDTH)
