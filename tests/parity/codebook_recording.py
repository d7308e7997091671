"""What the generators of codebook goldens share: loading a file of a checkout, seeded inputs, one backward, saving.

A golden file holds arrays named `case/field`. Latents and quantized vectors are [B, P, D]. `toward` is the random
direction whose inner product with the quantized vectors, plus the weighted losses, was differentiated.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
B, SIDE, D, K = 2, 4, 8, 16


class Absent(types.ModuleType):
    """Stands for a package that the file imports but that what we run of it does not need."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


def load(file: Path, *absent: str) -> types.ModuleType:
    """A Python file as a module of its own."""
    for name in absent:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), Absent(".".join(parts[:end])))
    spec = importlib.util.spec_from_file_location(f"published_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def checkout() -> Path:
    """The folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER_OF_THE_CHECKOUT")
    torch.set_num_threads(1)
    return Path(sys.argv[1])


def maps(seed: int, *, batch: int = B, side: int = SIDE, dim: int = D, scale: float = 0.5) -> Tensor:
    """Latents [B, D, h, w]."""
    return torch.randn(batch, dim, side, side, generator=torch.Generator().manual_seed(seed)) * scale


def table(seed: int, *, size: int = K, dim: int = D, scale: float = 0.5) -> Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed)) * scale


def rows(image: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, P, D]."""
    return image.detach().flatten(2).transpose(1, 2)


def backward(quantized: Tensor, loss: Tensor | float, latents: Tensor, learned: Tensor | None,
             seed: int = 99) -> dict[str, Tensor]:
    """Gradients of <toward, quantized> + loss; quantized and latents are maps [B, D, h, w]."""
    toward = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(seed))
    wanted = [latents] if learned is None else [latents, learned]
    found = torch.autograd.grad((quantized * toward).sum() + loss, wanted)
    fields = {"toward": rows(toward), "quantized": rows(quantized), "latents": rows(latents),
              "latents_grad": rows(found[0])}
    if learned is not None:
        fields |= {"table": learned, "table_grad": found[1]}
    return fields


def save(name: str, cases: dict[str, dict[str, Tensor | float]]) -> None:
    """Float arrays as float32, codes as int16."""
    arrays = {}
    for case, fields in cases.items():
        for field, value in fields.items():
            value = torch.as_tensor(value).detach()
            arrays[f"{case}/{field}"] = value.numpy().astype(np.float32 if value.is_floating_point() else np.int16)
    file = FOLDER / f"{name}.npz"
    np.savez_compressed(file, **arrays)
    size = file.stat().st_size
    print(f"{file.name}: {len(arrays)} arrays, {size} bytes")
    if size > 40_000:
        sys.exit(f"{file.name} is above 40 kB")
