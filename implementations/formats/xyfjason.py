"""VQModel of github.com/xyfJASON/visual-tokenizer-pytorch, on SimpleCNN or on VQGAN's network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.format import Format
from bench.registry import register

#: layers of its sequences, and what they are called here
PLACES = {"block.0": "norm1", "block.2": "conv1", "block.3": "norm2", "block.6": "conv2", "shortcut": "nin_shortcut",
          "proj": "proj_out", "out_block.0": "norm_out", "out_block.2": "conv_out", "conv_out.0": "norm_out",
          "conv_out.2": "conv_out", "ema_sumn": "mean_counts", "ema_sumz": "mean_sums"}
BEFORE_BLOCKS = 5               # layers of SimpleCNN's encoder


@register("format", "xyfjason")
class XyfJASON(Format):
    """A table is VQ, with running sums EMA, with a map SimVQ; without one, codes are the signs of the latents (LFQ).

    What leaves no trace in the file has to be said: tokenizer.quantizer.normalize=codes for unit codes, or a whole
    tokenizer.quantizer for FSQ (its levels) and IBQ."""

    title = "visual-tokenizer-pytorch"
    code = "xyfJASON/visual-tokenizer-pytorch"
    pixels = (-1.0, 1.0)
    inside = ("model",)
    rename = (
        (r"(encoder|decoder)\.(\d+)\.blocks\.([13])\.weight", lambda m: f"{m[1]}.{m[2]}.conv{1 + int(m[3]) // 2}.weight"),
        (r"(encoder|decoder)\.(\d+)\.(weight|bias)", r"\1.\2.\3"),
        (r"encoder\.conv_in\.(\w+)", r"encoder.conv_in.\1"),
        (r"decoder\.in_block\.(\w+)", r"decoder.conv_in.\1"),
        (r"(encoder|decoder)\.((?:out_block|conv_out)\.[02])\.(\w+)", lambda m: f"{m[1]}.{PLACES[m[2]]}.{m[3]}"),
        (r"(encoder|decoder)\.bottleneck_block\.([012])\.(.+)\.(\w+)",
         lambda m: f"{m[1]}.mid.{m[2]}.{PLACES.get(m[3], m[3])}.{m[4]}"),
        (r"(encoder|decoder)\.(down|up)\.(\d+)\.\d+\.conv\.(\w+)", r"\1.\2.\3.resample.1.\4"),
        (r"(encoder|decoder)\.(down|up)\.(\d+)\.(\d+)\.(block\.\d|shortcut)\.(\w+)",
         lambda m: f"{m[1]}.{m[2]}.{m[3]}.block.{m[4]}.{PLACES[m[5]]}.{m[6]}"),
        (r"(encoder|decoder)\.(down|up)\.(\d+)\.(\d+)\.(norm|q|k|v|proj)\.(\w+)",
         lambda m: f"{m[1]}.{m[2]}.{m[3]}.attn.{m[4]}.{PLACES.get(m[5], m[5])}.{m[6]}"),
        (r"enc2code\.(\w+)", r"to_latents.\1"),
        (r"code2dec\.(\w+)", r"from_quantized.\1"),
        (r"quantizer\.codebook\.weight", "quantizer.codebook"),
        (r"quantizer\.(ema_sum[nz])", lambda m: f"quantizer.{PLACES[m[1]]}"),
        (r"quantizer\.codebook_proj\.(\w+)", r"quantizer.table.map.\1"),
    )

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        latent_channels = state["enc2code.weight"].shape[1]
        quantizer: dict[str, Any] = {"name": "lfq", "bits": len(state["enc2code.weight"])}
        if "quantizer.codebook.weight" in state:
            codes, dim = state["quantizer.codebook.weight"].shape
            quantizer = {"name": "vq", "codebook_size": codes, "codebook_dim": dim}
            if "quantizer.ema_sumn" in state:
                quantizer["name"] = "ema_vq"
            if "quantizer.codebook_proj.weight" in state:
                quantizer |= {"name": "codebook_vq", "table": "linear"}
        if "encoder.downblocks.0.weight" in state:
            return {"name": "vqvae", "hidden": latent_channels, "quantizer": quantizer,
                    "resblocks": _count(state, r"encoder\.resblocks\.\d+\.blocks\.1\.weight")}
        channels, levels = len(state["encoder.conv_in.weight"]), _deepest(state) + 1
        return {"name": "vqgan", "channels": channels, "latent_channels": latent_channels, "attention": [2 ** (levels - 1)],
                "multipliers": [len(state[f"encoder.down_blocks.{i}.0.block.2.weight"]) // channels for i in range(levels)],
                "blocks": _count(state, r"encoder\.down_blocks\.0\.\d+\.block\.2\.weight"), "attention_epsilon": 1e-5,
                "quantizer": quantizer}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        blocks, deepest = _count(state, r"decoder\.resblocks\.\d+\.blocks\.1\.weight"), _deepest(state)
        ours = super().convert({_numbered(key, blocks, deepest): tensor for key, tensor in state.items()})
        if "quantizer.table.map.weight" in ours:
            ours["quantizer.table.codebook"] = ours.pop("quantizer.codebook")
        if "quantizer.mean_counts" in ours:
            ours["quantizer.updates"] = torch.zeros((), dtype=torch.int64)
        return ours


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, key)) for key in state)


def _deepest(state: Mapping[str, Tensor]) -> int:
    return max((int(key.split(".")[2]) for key in state if key.startswith("encoder.down_blocks.")), default=0)


def _numbered(key: str, blocks: int, deepest: int) -> str:
    """Its key with our places: SimpleCNN as one sequence, VQGAN's levels from the image on. Only the deepest level has
    attention, after each block."""
    if match := re.fullmatch(r"(encoder|decoder)\.(downblocks|resblocks|upblocks)\.(\d+)\.(.+)", key):
        side, part, place, rest = match.groups()
        before = {"encoder.resblocks": BEFORE_BLOCKS, "decoder.upblocks": blocks}.get(f"{side}.{part}", 0)
        return f"{side}.{before + int(place)}.{rest}"
    if match := re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(\d+)\.(.+)", key):
        side, way, level, place, rest = match.groups()
        own = int(level) if way == "down" else deepest - int(level)
        return f"{side}.{way}.{own}.{int(place) // 2 if own == deepest else place}.{rest}"
    return key
