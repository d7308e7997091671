"""SimVQ of github.com/youngsheen/SimVQ: Open-MAGVIT2's names, and a linear map behind the frozen table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.registry import register
from implementations.formats._conv_res import network, only
from implementations.formats.seed_voken import SeedVoken


@register("format", "simvq")
class SimVQFormat(SeedVoken):
    """Where a file holds moving averages they are taken, as in the published evaluation."""

    title = "SimVQ"
    code = "youngsheen/SimVQ"
    rename = ((r"quantize\.embedding\.weight", "quantizer.table.codebook"),
              (r"quantize\.embedding_proj\.(\w+)", r"quantizer.table.map.\1"), *SeedVoken.rename)

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        codes, dim = state["quantize.embedding.weight"].shape
        bias = "quantize.embedding_proj.bias" in state
        return {"name": "simvq", **only(network(state), "channels", "multipliers", "blocks"), "latent_channels": dim,
                "quantizer": {"name": "codebook_vq", "codebook_size": codes, "codebook_dim": dim,
                              "table": {"name": "linear", "bias": bias}}}
