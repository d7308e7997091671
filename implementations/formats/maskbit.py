"""MaskBit's tokenizers and VQGAN+ of github.com/markweberdev/maskbit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register
from implementations.formats._conv_res import NETWORK, network, only

STAGE = r"(encoder|decoder)\.(down|up)\.(\d+)\."


@register("format", "maskbit")
class MaskBitFormat(Format):
    """With a table it is VQGAN+ (its codes are compared as they are), else codes are bits. The decoder counts levels from
    the deepest one, in its older form from the image, as ours."""

    title = "MaskBit"
    code = "markweberdev/maskbit"
    pixels = (0.0, 1.0)
    rename = (
        (STAGE + r"res_blocks\.(\d+)\.(.+)", r"\1.\2.\3.block.\4.\5"),
        (STAGE + r"(?:down|upsample)_conv\.(\w+)", r"\1.\2.\3.resample.1.\4"),
        (r"(encoder|decoder)\.mid\.res_blocks\.(\d+)\.(.+)", r"\1.mid.\2.\3"),
        *NETWORK, (r"quantize\.embedding\.weight", "quantizer.codebook"),
    )
    ignored = {r"quantize\.(bits_to_indices|codebook)": "constants of the code's bits"}

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        said = only(network(state, "encoder.down.{}.res_blocks.{}.conv1.weight"), "channels", "multipliers", "blocks")
        width = len(state["encoder.conv_out.weight"])
        quantizer: dict[str, Any] = {"name": "lfq", "bits": width}
        if "quantize.embedding.weight" in state:
            quantizer = {"name": "vq", "codebook_size": len(state["quantize.embedding.weight"]), "codebook_dim": width}
        return {"name": "maskbit", "pixels": "unit", **said, "latent_channels": width, "quantizer": quantizer}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().convert(state)
        if "decoder.up.0.resample.1.weight" not in ours:                # the level of the image has nothing to enlarge
            return ours
        last = max(int(key.split(".")[2]) for key in ours if key.startswith("decoder.up."))
        return {re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", key): tensor
                for key, tensor in ours.items()}
