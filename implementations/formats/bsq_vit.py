"""BSQ-ViT of github.com/zhaoyue-zephyrus/bsq-vit, and its transformer around a table of unit vectors."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._transformer import blocks, depth, heads

BLOCK = r"(?:module\.)*encoder\.transformer\.resblocks\.(\d+)\.ln_1\.weight"
PREFIX = "module."


@register("format", "bsq_vit")
class BSQViTFormat(Format):
    """Where the file has moving averages of the weights, these are taken, as in that code. Keys may begin with the `module.`
    of wrappers. Patches are read by a linear map of their 3 x p x p pixels, here a convolution. More than 18 bits are
    several codes here, of which there it makes one number in floating point that is not exact.
    """

    title = "BSQ-ViT"
    code = "zhaoyue-zephyrus/bsq-vit"
    pixels = (-1.0, 1.0)
    inside = ("ema_state_dict", "state_dict", "model")
    rename = (
        *(blocks(f"{side}.transformer.resblocks", side) for side in ("encoder", "decoder")),
        (r"(encoder|decoder)\.ln_pre\.(\w+)", r"\1.first_norm.\2"),
        (r"(encoder|decoder)\.ln_post\.(\w+)", r"\1.norm.\2"),
        (r"(encoder|decoder)\.positional_embedding", r"\1_position_embedding"),
        (r"encoder\.conv1\.weight", "patches.weight"),
        (r"quant_embed\.(\w+)", r"to_latents.\1"),
        (r"post_quant_embed\.(\w+)", r"from_quantized.\1"),
        (r"quantize\.embedding\.weight", "quantizer.codebook"),
        (r"decoder\.ffn\.0\.(\w+)", r"to_pixels.0.\1"),
        (r"decoder\.conv_out\.(\w+)", r"to_pixels.2.\1"),
    )
    ignored = {r"quantize\.(group_)?basis": "constants of the code's bits"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        state = _bare(state)
        width = len(state["encoder.conv1.weight"])
        quantizer: dict[str, Any] = {"name": "bsq", "bits": len(state["quant_embed.weight"])}
        if "quantize.embedding.weight" in state:
            codes, dim = state["quantize.embedding.weight"].shape
            quantizer = {"name": "vq", "codebook_size": codes, "codebook_dim": dim, "normalize": "both"}
        return {"name": "bsq_vit", "patch": _patch(state), "width": width, "depth": depth(state, BLOCK), "heads": heads(width),
                "pixel_width": len(state["decoder.ffn.0.weight"]), "quantizer": quantizer}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().convert(_bare(state))
        patch = _patch(_bare(state))
        return ours | {"patches.weight": ours["patches.weight"].unflatten(1, (3, patch, patch))}


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    while state and all(key.startswith(PREFIX) for key in state):
        state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    return dict(state)


def _patch(state: Mapping[str, Tensor]) -> int:
    return isqrt(state["encoder.conv1.weight"].shape[1] // 3)
