"""What LlamaGen, and FQGAN after it, call the levels of their networks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

BLOCK, ATTN = "encoder.conv_blocks.{}.res.{}.conv1.weight", "encoder.conv_blocks.{}.attn.0.norm.weight"


def part(name: str) -> str:
    """A level's part as ours is called."""
    kind, _, rest = name.partition(".")
    if kind in ("downsample", "upsample"):
        return f"resample.1.{rest.removeprefix('conv.')}"
    return f"{'block' if kind == 'res' else kind}.{rest}"


def from_the_image(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's levels numbered from the image on."""
    deepest = max((int(key.split(".")[2]) for key in state if key.startswith("decoder.conv_blocks.")), default=0)
    turned = {}
    for key, tensor in state.items():
        if key.startswith("decoder.conv_blocks."):
            _, _, level, rest = key.split(".", 3)
            key = f"decoder.conv_blocks.{deepest - int(level)}.{rest}"
        turned[key] = tensor
    return turned
