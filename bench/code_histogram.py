"""How often each code occurs in a split, or in its last W codes: what usage and perplexity are read from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.interfaces import Metric
from bench.types import TokenizerOutput, TokenLayout


class CodeHistogram:
    """Counts of the codes of each level, exact for any batches, order of images and number of processes.

    With a window, only the last `window` codes of each level count, in split order and raster order within an
    image: what a queue of that length holds in the end when fed the whole split (the queue of the published
    CelebA tables). Whether a code is among them follows from its image's position, so no queue is needed.
    """

    def __init__(self, layout: TokenLayout, images: int, window: int | None, device: torch.device) -> None:
        """images: the number in the whole split. Raises Incompatible where there is no code to count."""
        if not layout.vocab_sizes:
            raise Incompatible("a continuous tokenizer has no codes to count")
        if window is not None and window < 1:
            raise Incompatible(f"a window of {window} codes is empty; give at least 1, or null for the split")
        self.vocab_sizes = layout.vocab_sizes
        total = images * layout.num_tokens                      # codes per level in the split
        self.counted = total if window is None else min(window, total)
        self.window = window
        self._first = total - self.counted                      # position of the first code that counts
        starts = [0, *accumulate(self.vocab_sizes)]
        self._offsets = torch.tensor(starts[:-1], device=device)
        self._token = torch.arange(layout.num_tokens, device=device)
        self.counts = torch.zeros(starts[-1], dtype=torch.int64, device=device)     # one level after another

    def add(self, codes: Tensor, indices: Tensor) -> None:
        """codes int64 [B, N, L]; indices int64 [B], positions of the images in the split. Never waits."""
        device = self.counts.device
        position = indices.to(device)[:, None] * len(self._token) + self._token             # [B, N]
        counts = (position >= self._first)[:, :, None].expand_as(codes)                     # [B, N, L]
        flat = codes.to(device) + self._offsets
        self.counts.scatter_add_(0, flat.reshape(-1), counts.reshape(-1).to(torch.int64))

    def per_level(self, counts: Tensor) -> list[Tensor]:
        """Summed counts [sum of K] -> one float64 [K] per level."""
        return [level.double() for level in counts.split(list(self.vocab_sizes))]

    def details(self, counts: Tensor) -> dict[str, float]:
        """codes: counted per level. fill: their share of the window. used: distinct codes. ceiling: the usage
        that so many draws reach on average when all codes are equally likely, 1 - (1 - 1/K)^codes.

        Means over levels.
        """
        levels = self.per_level(counts)
        found = {
            "codes": float(self.counted),
            "ceiling": sum(1 - (1 - 1 / k) ** self.counted for k in self.vocab_sizes) / len(levels),
            "used": sum(float((level > 0).sum()) for level in levels) / len(levels),
        }
        return found if self.window is None else found | {"fill": self.counted / self.window}


class CodeMetric(Metric):
    """A metric read off the histogram; a subclass sets `window` (None: the whole split) and computes."""

    window: int | None

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises Incompatible for a continuous tokenizer."""
        self.histogram = CodeHistogram(layout, images, self.window, device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        assert output.codes is not None         # begin has refused tokenizers without codes
        self.histogram.add(output.codes, indices)

    def sums(self) -> dict[str, Tensor]:
        """counts: int64 [sum of K], levels behind one another."""
        return {"counts": self.histogram.counts}

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return self.histogram.details(sums["counts"])
