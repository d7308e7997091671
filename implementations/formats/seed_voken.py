"""Open-MAGVIT2 and IBQ of github.com/TencentARC/SEED-Voken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import LOSS, NETWORK, PROJECTIONS, network, only

AVERAGE = "model_ema."


@register("format", "seed_voken")
class SeedVoken(Format):
    """With a table it is IBQ, else Open-MAGVIT2. Where a file holds moving averages they are taken, as in the published
    evaluation; they are named without the dots."""

    title = "Open-MAGVIT2 / IBQ"
    code = "TencentARC/SEED-Voken"
    pixels = (-1.0, 1.0)
    rename = (
        (r"(encoder|decoder)\.mid_block\.(\d+)\.(.+)", r"\1.mid.\2.\3"),
        (r"encoder\.down\.(\d+)\.downsample\.(weight|bias)", r"encoder.down.\1.resample.\2"),
        (r"decoder\.up\.(\d+)\.upsample\.conv1\.(\w+)", r"decoder.up.\1.resample.0.\2"),
        (r"decoder\.adaptive\.(\d+)\.(gamma|beta)\.(\w+)", r"decoder.adaptive.\1.\2.\3"),
        *NETWORK, *PROJECTIONS, (r"quantize\.embedding\.weight", "quantizer.codebook"),
    )
    ignored = {**LOSS, r"model_ema\..+": "moving averages, which have taken the place of the weights"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        said, width = network(state), len(state["encoder.conv_out.weight"])
        if "quantize.embedding.weight" in state:
            codes, dim = state["quantize.embedding.weight"].shape
            return {"name": "ibq", **said, "latent_channels": width,
                    "quantizer": {"name": "ibq", "codebook_size": codes, "codebook_dim": dim}}
        return {"name": "open_magvit2", **only(said, "channels", "multipliers", "blocks"), "latent_channels": width,
                "quantizer": {"name": "lfq", "bits": width}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().convert({key: state.get(AVERAGE + key.replace(".", ""), tensor) for key, tensor in state.items()})
