"""The VQ-VAE of github.com/hoanhle/vqvae, on Sonnet's network, with moving averages or a learned table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.format import Format
from bench.registry import register

BLOCK = r"encoder\.residual_stack\.layers\.\d+\.1\.weight"
MANY = 10_000                   # updates after which averages that began at zero need no correction


@register("format", "hoanhle")
class HoanHLE(Format):
    """Codes are columns in the file. Whether the table follows moving averages is told by whether these have moved. How
    often they did is not kept: the corrected averages are taken for those of many updates.
    """

    title = "hoanhle VQ-VAE"
    code = "hoanhle/vqvae"
    pixels = (-0.5, 0.5)
    inside = ("model_state_dict", "state_dict")
    rename = (
        (r"encoder\.conv\.down(\d+)\.(\w+)", lambda m: f"encoder.{2 * int(m[1])}.{m[2]}"),
        (r"encoder\.conv\.final_conv\.(\w+)", r"encoder.<conv>.\1"),
        (r"(encoder|decoder)\.residual_stack\.layers\.(\d+)\.([13])\.(\w+)",
         lambda m: f"{m[1]}.<block{m[2]}>.conv{(int(m[3]) + 1) // 2}.{m[4]}"),
        (r"pre_vq_conv\.(\w+)", r"to_latents.\1"),
        (r"vq\.e_i_ts", "quantizer.codebook"),
        (r"decoder\.conv\.(\w+)", r"decoder.0.\1"),
        (r"decoder\.upconv\.up(\d+)\.(\w+)", r"decoder.<up\1>.\2"),
        (r"(vq\.[Nm]_i_ts\.average)", r"\1"),
    )
    ignored = {
        r"vq\.(embed_prob|first_update_done)": "the state of its restarts of codes",
        r"vq\.[Nm]_i_ts\.hidden": "the averages before they are corrected",
    }

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        dim, codes = state["vq.e_i_ts"].shape
        inner = [len(tensor) for key, tensor in state.items() if re.fullmatch(BLOCK, key)]
        quantizer = {"name": "vq", "init": "variance"}
        if _averaged(state):
            quantizer = {"name": "ema_vq", "zero_count": "zero_debiased", "init": "variance"}
        return {"name": "vqvae_sonnet", "hidden": len(state["encoder.conv.final_conv.weight"]), "resblocks": len(inner),
                "residual_hidden": (inner or [1])[0], "halvings": _halvings(state), "pixel_range": 0.5,
                "quantizer": quantizer | {"codebook_size": codes, "codebook_dim": dim}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        halvings = _halvings(state)
        first = {"encoder": 2 * halvings + 1, "decoder": 1}             # of the residual blocks in our sequences
        after = 2 + sum(bool(re.fullmatch(BLOCK, key)) for key in state)

        def place(match: re.Match[str]) -> str:
            kind, number = match[2], int(match[3] or 0)
            return f"{match[1]}.{({'conv': 2 * halvings, 'up': after + 2 * number}.get(kind, first[match[1]] + number))}"

        ours = {re.sub(r"^(encoder|decoder)\.<([a-z]+)(\d*)>", place, key): tensor
                for key, tensor in super().convert(state).items()}
        ours["quantizer.codebook"] = ours["quantizer.codebook"].T
        counts, sums = (ours.pop(f"vq.{name}_i_ts.average") for name in "Nm")
        if _averaged(state):
            ours |= {"quantizer.mean_counts": counts, "quantizer.mean_sums": sums.T, "quantizer.updates": torch.tensor(MANY)}
        return ours


def _halvings(state: Mapping[str, Tensor]) -> int:
    return sum(bool(re.fullmatch(r"encoder\.conv\.down\d+\.weight", key)) for key in state)


def _averaged(state: Mapping[str, Tensor]) -> bool:
    return bool(state["vq.N_i_ts.average"].count_nonzero())
