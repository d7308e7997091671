"""FQGAN Dual and Triple of github.com/showlab/FQGAN."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, network, only
from implementations.formats._llamagen import ATTN, BLOCK, from_the_image, part

BRANCHES = {2: ("vis", "sem"), 3: ("vis", "sem_mid", "sem_high")}       # as the decoder gets them, side by side
HEADS = {"visual_head": "vis", "semantic_head": "sem", "semantic_head_mid": "sem_mid", "semantic_head_high": "sem_high"}
BLOCKS = {"attn.in_proj_weight": "in_proj.weight", "attn.in_proj_bias": "in_proj.bias", "attn.out_proj": "out_proj",
          "mlp.c_fc": "c_fc", "mlp.c_proj": "c_proj"}
NAMES = "|".join(sorted(set(HEADS.values()), key=len, reverse=True))


@register("format", "fqgan")
class FQGANFormat(Format):
    """A branch is an adapter, a norm, two convolutions and a table; the visual branch is the first one, as in the code
    that the decoder reads."""

    title = "FQGAN"
    code = "showlab/FQGAN"
    pixels = (-1.0, 1.0)
    inside = ("ema", "model", "state_dict")
    rename = (
        (r"encoder\.conv_blocks\.(\d+)\.(.+)", lambda m: f"encoder.trunk.down.{m[1]}.{part(m[2])}"),
        (r"decoder\.conv_blocks\.(\d+)\.(.+)", lambda m: f"decoder.up.{m[1]}.{part(m[2])}"),
        (r"encoder\.(mid|conv_in)\.(.+)", r"encoder.trunk.\1.\2"),
        (r"decoder\.mid\.(\d)\.(.+)", r"decoder.mid.\1.\2"),
        (r"encoder\.(\w+_head\w*)\.0\.transformer\.(\d+)\.(.+)",
         lambda m: f"<{HEADS[m[1]]}>.transformer.{m[2]}.{_block(m[3])}"),
        (r"encoder\.(\w+_head\w*)\.0\.(.+)", lambda m: f"<{HEADS[m[1]]}>.{m[2]}"),
        (rf"encoder\.(norm_out|conv_out)_({NAMES})\.(\w+)", r"<\2>.\1.\3"),
        (rf"quant_conv_({NAMES})\.(\w+)", r"<\1>.to_latents.\2"),
        (rf"quantize_({NAMES})\.embedding\.weight", r"<\1>.codebook"),
        (r"post_quant_conv\.(\w+)", r"from_quantized.\1"),
        *NETWORK,
    )
    ignored = {
        r"quantize_\w+\.codebook_used": "the last codes of its training, from which usage was told",
        r"(feat_pred_head|mid_sem_feat_pred|high_sem_feat_pred)\..+": "predicts the teacher's features in training",
    }

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize_vis.embedding.weight"].shape
        branches = sum(bool(re.fullmatch(r"quantize_\w+\.embedding\.weight", key)) for key in state)
        layers = sum(bool(re.fullmatch(r"encoder\.visual_head\.0\.transformer\.\d+\.ln_1\.weight", key)) for key in state)
        return {
            "name": "fqgan", "branches": branches, **only(network(state, BLOCK, ATTN), "channels", "multipliers", "blocks"),
            "latent_channels": len(state["encoder.conv_out_vis.weight"]), "adapter_layers": layers,
            "quantizer": {"name": "grouped", "groups": branches, "loss_reduction": "sum", "disentangle": True, "quantizer": {
                "name": "vq", "codebook_size": codes, "codebook_dim": dim, "normalize": "both", "entropy": True}}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours: dict[str, Tensor] = {}
        found = super().convert(from_the_image(state))
        order = BRANCHES[3 if any("<sem_mid>" in key for key in found) else 2]
        for key, tensor in found.items():
            if match := re.fullmatch(r"<(\w+)>\.(.+)", key):
                i, rest = order.index(match[1]), match[2]
                key = f"quantizer.parts.{i}.codebook" if rest == "codebook" else f"encoder.branches.{i}.{rest}"
            ours[key] = tensor
        return ours


def _block(name: str) -> str:
    for published, own in BLOCKS.items():
        if name.startswith(published):
            return own + name.removeprefix(published)
    return name
