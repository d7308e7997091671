"""What public code calls the parts of implementations/backbones/vit.py, in the naming that began with CLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from bench.format import Rule

HEAD_WIDTH = 64                 # of every published network here, whatever its width: no tensor tells it
PARTS = {"ln_1": "norm1", "ln_2": "norm2", "attn.in_proj_": "attention.qkv.", "attn.out_proj": "attention.out",
         "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"}
PART = "|".join(map(re.escape, PARTS))


def blocks(published: str, ours: str) -> Rule:
    """Of residual attention blocks `published`.0, .1, ... (ln_1, attn, ln_2, mlp) whose queries, keys and values are one
    map."""
    return rf"{re.escape(published)}\.(\d+)\.({PART})(.+)", lambda m: f"{ours}.blocks.{m[1]}.{PARTS[m[2]]}{m[3]}"


def depth(state: Mapping[str, Tensor], block: str) -> int:
    """How many of `block` there are, a pattern of a key with one number in it."""
    return len({match[1] for key in state if (match := re.fullmatch(block, key))})


def heads(width: int) -> int:
    return max(1, width // HEAD_WIDTH)
