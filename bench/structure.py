"""What a tokenizer costs without running it: parameters by part, MACs of one image, and which tokenizers cost the same.

All of it is read off the operations of one encode and one decode on the meta device, where nothing is computed: it depends
on no machine, no weights and no seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.interfaces import Tokenizer
from bench.load import described
from bench.spec import ComponentSpec


@dataclass(frozen=True, slots=True)
class Structure:
    """Of a tokenizer for images of one size."""

    digest: str                                 # 12 hex over all operations and shapes: equal ones cost the same
    layout: dict[str, Any]                      # as records keep it
    parameters: dict[str, int]                  # total, codebook, learned; encoder, decoder, quantizer
    macs: dict[str, int]                        # encode, decode: of one image


def structure(model: ComponentSpec, image_size: int) -> Structure:
    """Raises Incompatible or ValueError for a tokenizer that cannot be for this image size.

    macs: multiply-adds of convolutions and matrix products; encode includes the search (of positions times codes times
    width for a nearest code, however it is done), decode the look-up, attention both its products. parameters: those that
    encode and decode read outside the quantizer, where some are read by both; the quantizer's with codes that are not
    learned. What training alone needs is in the total only.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        tokenizer: Tokenizer = model.partial()(image_size)
        tokenizer.eval()
        layout, parameters = described(tokenizer, image_size)
        image = torch.empty(1, 3, image_size, image_size)
        with torch.no_grad():
            out = tokenizer(image)
        with _watched() as read:
            tokenizer.tokenize(image)
        with _watched() as written:
            tokenizer.decode(out.quantized) if out.codes is None else tokenizer.detokenize(out.codes)
    own = {id(p) for p in tokenizer.quantizer.parameters()}
    counts = {part: sum(p.numel() for p in tokenizer.parameters() if id(p) in seen.read - own)
              for part, seen in (("encoder", read), ("decoder", written))}
    counts["quantizer"] = sum(p.numel() for p in tokenizer.quantizer.parameters()) + tokenizer.quantizer.fixed_codes()
    lines = [*read.lines, "decode", *written.lines, json.dumps(layout, sort_keys=True)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return Structure(digest, layout, parameters | counts, {"encode": read.macs(), "decode": written.macs()})


class _Seen(TorchDispatchMode):
    """Every operation with its shapes, and every tensor that one has read."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter, self.lines, self.read = counter, [], set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.read.update(map(id, given))
        shapes = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in (*given, *tree_leaves(out)) if isinstance(t, Tensor)]
        self.lines.append(f"{func} {' '.join(shapes)}")
        return out

    def macs(self) -> int:
        return self.counter.get_total_flops() // 2


@contextmanager
def _watched() -> Iterator[_Seen]:
    """Attention as its two products, which is how it is counted on every device."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, _Seen(counter) as seen:
        yield seen


def structures(models: list[tuple[ComponentSpec, int]], tell: Callable[[int, int], None] = lambda done, total: None) -> list[Structure | str]:
    """Of each, or in a sentence why it cannot be."""
    found: list[Structure | str] = []
    for i, (model, image_size) in enumerate(models, 1):
        try:
            found.append(structure(model, image_size))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            found.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
        tell(i, len(models))
    return found
