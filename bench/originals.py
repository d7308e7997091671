"""What metrics compute from the originals of a split alone, kept by content: the second tokenizer does not pay again."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import distributed
from bench.distributed import from_main
from bench.files import write_atomic
from bench.interfaces import Metric

log = logging.getLogger(__name__)

BLOCK = 256             # images hashed at a time


class Originals:
    """A split, uint8 [n, 3, H, W], and the folder in which sums over it are kept (None: they are not)."""

    def __init__(self, images: np.ndarray | Tensor, cache: Path | None) -> None:
        self.images, self.cache = images, cache
        self._keys: dict[str, str] = {}         # of metrics whose sums are still to be kept
        self._held: dict[str, dict[str, Tensor]] = {}

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of all pixels and their shape."""
        whole = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for start in range(0, len(self.images), BLOCK):
            block = self.images[start : start + BLOCK]
            whole.update(np.ascontiguousarray(block.cpu().numpy() if isinstance(block, Tensor) else block))
        return whole.hexdigest()

    def take(self, metrics: Mapping[str, Metric], ways: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        """Hand each metric the sums over the originals that are kept. The main process reads and holds them."""
        if self.cache is None:
            return
        for name, metric in metrics.items():
            if (reference := metric.reference()) is not None:
                key, known = from_main(functools.partial(self._look, name, metric, reference, ways[name]))
                if known:
                    held = self._held.pop(name, None)       # on the main process
                    metric.take_originals(None if held is None else {k: v.to(device) for k, v in held.items()})
                else:
                    self._keys[name] = key

    def _look(self, name: str, metric: Metric, reference: str, way: Mapping[str, Any]) -> tuple[str, bool]:
        kind = type(metric)
        whose = [f"{kind.__module__}.{kind.__qualname__}", getattr(kind, "revision", 1), sorted(metric.originals)]
        text = json.dumps([self.digest, whose, reference, dict(way)], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        if (sums := self._read(key)) is not None:
            self._held[name] = sums
        return key, sums is not None

    def keep(self, metrics: Mapping[str, Metric], ways: Mapping[str, Mapping[str, Any]],
             sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep what was computed for the first time. A cache that cannot be written is none."""
        if self.cache is None or not distributed.is_main():
            return
        for name, key in self._keys.items():
            if name not in metrics:
                continue
            buffer = io.BytesIO()
            torch.save({k: sums[name][k].cpu() for k in metrics[name].originals}, buffer)
            try:
                self._file(key).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._file(key), buffer.getvalue())
            except OSError as error:
                log.debug("sums over the originals are not kept: %s", error)

    def _file(self, key: str) -> Path:
        assert self.cache is not None
        return self.cache / "originals" / f"{key}.pt"

    def _read(self, key: str) -> dict[str, Tensor] | None:
        path = self._file(key)
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:              # cut short, or not ours: it is computed again
            log.warning("%s cannot be read (%s); what it holds is computed again", path, error)
            return None
