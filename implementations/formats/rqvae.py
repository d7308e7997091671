"""RQ-VAE of github.com/kakaobrain/rq-vae-transformer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, PROJECTIONS, network

TABLE = "quantizer.codebooks.{}.weight"         # its last row pads sequences
TOTALS = {"mean_counts": "cluster_size_ema", "mean_sums": "embed_ema"}


@register("format", "rqvae")
class RQVAEFormat(Format):
    """A table that all levels share is in the file once a level. What our updates and restarts count besides begins anew."""

    title = "RQ-VAE"
    code = "kakaobrain/rq-vae-transformer"
    pixels = (-1.0, 1.0)
    rename = (*NETWORK, *PROJECTIONS, (r"quantizer\.codebooks\.(\d+)\.(\w+)", r"\1.\2"))
    ignored = {r"loss\..+|discriminator\..+|perceptual_loss\..+": "networks of its training"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        rows, dim = state[TABLE.format(0)].shape
        return {"name": "rqvae", **network(state), "latent_channels": len(state["encoder.conv_out.weight"]),
                "quantizer": {"name": "residual", "levels": _levels(state), "shared": _shared(state), "quantizer": {
                    "name": "codebook_vq", "codebook_size": rows - 1, "codebook_dim": dim, "update": "ema",
                    "restart": "random_restart"}}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = super().convert(state)
        for i in range(1 if _shared(state) else _levels(state)):
            codebook = found[f"{i}.weight"][:-1]
            part = f"quantizer.parts.{i}"
            found |= {f"{part}.table.codebook": codebook, f"{part}.update.updates": torch.zeros((), dtype=torch.int64),
                      f"{part}.restart.use": torch.zeros(len(codebook))}
            found |= {f"{part}.update.{own}": found[f"{i}.{published}"] for own, published in TOTALS.items()}
        return {key: tensor for key, tensor in found.items() if not key[0].isdigit()}


def _levels(state: Mapping[str, Tensor]) -> int:
    return len(list(takewhile(lambda i: TABLE.format(i) in state, count())))


def _shared(state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(state[TABLE.format(i)], state[TABLE.format(0)]) for i in range(1, _levels(state)))
