"""DALL-E's dVAE of github.com/openai/DALL-E: an encoder's file and a decoder's, each a whole pickled module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.format import Format
from bench.registry import register

GROUPS = 4
BLOCK = r"(encoder|decoder)\.blocks\.group_(\d)\.block_(\d+)\."
WEIGHTS = {"w": "weight", "b": "bias"}


@register("format", "dalle_dvae")
class DALLEFormat(Format):
    """The modules' tensors are read, their code is not; plain state dicts of both do as well. The decoder's first layer, a
    1x1 convolution of one-hot codes with a bias, is the table of codes."""

    title = "DALL-E dVAE"
    code = "openai/DALL-E"
    pixels = (0.0, 1.0)
    files = {"*encoder.*": "encoder.", "*decoder.*": "decoder."}
    rename = (
        (r"encoder\.blocks\.input\.([wb])", lambda m: f"encoder.0.{WEIGHTS[m[1]]}"),
        (BLOCK + r"id_path\.([wb])", lambda m: f"{m[1]}.<{m[2]}.{m[3]}>.skip.{WEIGHTS[m[4]]}"),
        (BLOCK + r"res_path\.conv_([1-4])\.([wb])",
         lambda m: f"{m[1]}.<{m[2]}.{m[3]}>.branch.{2 * int(m[4]) - 1}.{WEIGHTS[m[5]]}"),
        (r"encoder\.blocks\.output\.conv\.([wb])", lambda m: f"quantizer.to_logits.{WEIGHTS[m[1]]}"),
        (r"decoder\.blocks\.input\.([wb])", r"<codes>.\1"),
        (r"decoder\.blocks\.output\.conv\.([wb])", lambda m: f"decoder.<last>.{WEIGHTS[m[1]]}"),
    )

    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        dim, codes = state["decoder.blocks.input.w"].shape[:2]
        return {"name": "dvae", "hidden": len(state["encoder.blocks.input.w"]), "blocks": _blocks(state),
                "quantizer": {"name": "gumbel", "codebook_size": codes, "codebook_dim": dim, "full_width": True,
                              "hard": False}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        blocks = _blocks(state)
        first = {"encoder": 1, "decoder": 0}            # of the blocks in our sequences; after a group the resolution changes

        def place(match: re.Match[str]) -> str:
            group, block = int(match[2]) - 1, int(match[3]) - 1
            return f"{match[1]}.{first[match[1]] + group * (blocks + 1) + block}"

        ours = {re.sub(r"^(encoder|decoder)\.<(\d)\.(\d+)>", place, key): tensor for key, tensor in super().convert(state).items()}
        ours["quantizer.codebook"] = ours.pop("<codes>.w")[:, :, 0, 0].T + ours.pop("<codes>.b")
        last = GROUPS * (blocks + 1)                    # after the groups, the three changes between them and a ReLU
        return {key.replace("<last>", str(last)): tensor for key, tensor in ours.items()}


def _blocks(state: Mapping[str, Tensor]) -> int:
    return sum(bool(re.fullmatch(r"encoder\.blocks\.group_1\.block_\d+\.res_path\.conv_1\.w", key)) for key in state)
