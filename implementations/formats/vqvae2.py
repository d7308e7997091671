"""VQ-VAE-2 of github.com/rosinality/vq-vae-2-pytorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.format import Format
from bench.registry import register

NETS = {"enc_b": "fine_encoder", "enc_t": "coarse_encoder", "dec_t": "condition", "dec": "decoder"}
LAYERS = {"quantize_conv_t": "to_coarse", "quantize_conv_b": "to_fine", "upsample_t": "upsample"}
GRIDS = {"t": 0, "b": 1}                        # its top is our coarse grid, which comes first
TOTALS = {"embed": "codebook", "cluster_size": "mean_counts", "embed_avg": "mean_sums"}
PREFIX = r"(?:module\.)?"                       # of runs with several processes


@register("format", "vqvae2")
class VQVAE2Format(Format):
    """Codes are columns in the file. What our update counts besides begins anew."""

    title = "VQ-VAE-2"
    code = "rosinality/vq-vae-2-pytorch"
    pixels = (-1.0, 1.0)
    inside = ("model", "state_dict")
    rename = (
        (PREFIX + rf"({'|'.join(NETS)})\.blocks\.(\d+)\.conv\.([13])\.(\w+)",
         lambda m: f"{NETS[m[1]]}.{m[2]}.conv{(int(m[3]) + 1) // 2}.{m[4]}"),
        (PREFIX + rf"({'|'.join(NETS)})\.blocks\.(\d+)\.(\w+)", lambda m: f"{NETS[m[1]]}.{m[2]}.{m[3]}"),
        (PREFIX + rf"({'|'.join(LAYERS)})\.(\w+)", lambda m: f"{LAYERS[m[1]]}.{m[2]}"),
        (PREFIX + rf"quantize_([tb])\.({'|'.join(TOTALS)})", lambda m: f"quantizer.parts.{GRIDS[m[1]]}.{TOTALS[m[2]]}"),
    )

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        state = {re.sub(r"^module\.", "", key): tensor for key, tensor in state.items()}
        dim, codes = state["quantize_t.embed"].shape
        inner = [len(tensor) for key, tensor in state.items() if re.fullmatch(r"enc_b\.blocks\.\d+\.conv\.1\.weight", key)]
        return {"name": "vqvae2", "hidden": len(state["enc_b.blocks.2.weight"]), "resblocks": len(inner),
                "residual_hidden": (inner or [1])[0],
                "quantizer": {"name": "ema_vq", "codebook_size": codes, "codebook_dim": dim, "zero_count": "laplace",
                              "init": "normal"}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().convert(state)
        for i in GRIDS.values():
            part = f"quantizer.parts.{i}"
            ours |= {f"{part}.{name}": ours[f"{part}.{name}"].T for name in ("codebook", "mean_sums")}
            ours[f"{part}.updates"] = torch.zeros((), dtype=torch.int64)
        return ours
