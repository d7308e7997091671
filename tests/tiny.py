"""Small builds for tests: components with their required keywords filled in, tiny specs, suite files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.build import build_state
from bench.data import CachedBatches, Order
from bench.places import Places
from bench.registry import REQUIRED, Part, signature
from bench.spec import ComponentSpec, LoopSettings, OptimizerSpec, TrainSpec, bind
from bench.train import TrainState

torch.set_num_threads(1)
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
#: what fills a required keyword that wants a component of a kind
SIMPLEST = {"quantizer": {"name": "vq", "codebook_size": 16, "codebook_dim": 4},
            "discriminator": {"name": "patch", "width": 4, "layers": 2}}
#: keywords that make a component small, where it has them
SMALL = {"hidden": 8, "width": 8, "codebook_size": 16, "codebook_dim": 4}
MONITORS = ("codebook_usage", "codebook_gradients", "codebook_norms", "quantization_error")


def fail(path: tuple, value: Any, sentence: str) -> Exception:
    return AssertionError(f"{'.'.join(map(str, path))} = {value!r}: {sentence}")


def small(kind: str, name: str, **keywords: Any) -> ComponentSpec:
    """Any registered component, small: with the keywords that it names in its class attribute `small`, those of SMALL,
    and components for keywords that must be given."""
    said = signature(kind, name)
    given: dict[str, Any] = {"name": name} | said.attributes.get("small", {})
    for key, keyword in said.keywords.items():
        if key in given:
            continue
        if key in SMALL:
            given[key] = SMALL[key]
        elif keyword.default is REQUIRED:
            wants = keyword.annotation
            assert isinstance(wants, type) and issubclass(wants, Part), f"say in tiny.py how to fill {key}"
            given[key] = SIMPLEST[wants.kind]
    return bind(kind, given | keywords, (kind,), fail)


def train_spec(quantizer: dict[str, Any] | None = None, **changes: Any) -> TrainSpec:
    """A VQ-VAE of width 8 on 16-pixel images."""
    tokenizer = {"name": "vqvae", "hidden": 8, "quantizer": quantizer or SIMPLEST["quantizer"]}
    given: dict[str, Any] = {
        "dataset": bind("dataset", {"name": "photos", "image_size": 16}, ("dataset",), fail), "data": "toy",
        "model": bind("tokenizer", tokenizer, ("tokenizer",), fail),
        "objective": bind("objective", "reconstruction", ("objective",), fail),
        "optimizers": {"tokenizer": OptimizerSpec(lr=1e-3)}, "steps": 12, "batch_size": 8, "seed": 3,
    }
    return TrainSpec(**given | changes)


def images(count: int = 40, size: int = 16, seed: int = 0) -> np.ndarray:
    """uint8 [n, 3, size, size] with coarse structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, size // 4, size // 4)).repeat(4, 2).repeat(4, 3)
    return (coarse + rng.integers(-20, 21, coarse.shape)).clip(0, 255).astype(np.uint8)


def batches(spec: TrainSpec, pixels: np.ndarray | None = None) -> CachedBatches:
    pixels = images() if pixels is None else pixels
    order = Order(len(pixels), seed=spec.seed, batch_size=spec.batch_size, accumulation=spec.accumulation,
                  flip=spec.flip)
    return CachedBatches(pixels, None, order, CPU, channels_last=True, on_device=False)


def new_state(spec: TrainSpec, monitors: tuple[str, ...] = MONITORS, **loop: Any) -> TrainState:
    bound = tuple(bind("monitor", name, ("monitors",), fail) for name in monitors)
    return build_state(spec, LoopSettings(**loop), bound, CPU)


def places(folder: Path) -> Places:
    return Places(results=folder / "results", reports=folder / "reports", runs=folder / "runs",
                  cache=folder / "cache")


def same(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two trees of tensors and plain data differ; [] where they are bit-equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        equal = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(bits), b.view(bits))
        return [] if equal else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for k in a for d in same(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} items"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in same(x, y, f"{path}.{i}")]
    return [] if type(a) is type(b) and a == b else [f"{path}: {a!r} and {b!r}"]
