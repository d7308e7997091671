"""How much of each codebook is alive: share of codes seen, and perplexity, over the last codes and per step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.distributed import gather
from bench.interfaces import Monitor, Tokenizer
from bench.registry import register
from bench.types import TokenizerOutput


def level_name(name: str, level: int, levels: int) -> str:
    """`usage` for one codebook, `usage/level0` where there are several."""
    return name if levels == 1 else f"{name}/level{level}"


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of a histogram [K], a scalar on its device: how many codes are in effect used."""
    share = counts / counts.sum().clamp_min(1)
    return torch.special.entr(share).sum().exp()


@register("monitor", "codebook_usage")
class CodebookUsage(Monitor):
    """Over the last `window` codes, as the published CelebA table: a ring and its running histogram, never recounted.

    usage: share of K seen in the window; used_codes: their number; perplexity: exp of the histogram's entropy;
    window_fill: share of the window that holds codes yet; ceiling: the usage that uniform codes would reach on
    average, 1 - (1 - 1/K)^W with W the codes in the window; batch_perplexity: of the last step's codes alone.
    """

    def __init__(self, *, window: int = 65_536) -> None:
        self.window = window

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.sizes = tokenizer.layout.vocab_sizes
        self.ring = torch.tensor(self.sizes, device=device)[:, None].repeat(1, self.window)     # K: still empty
        self.counts = [torch.zeros(k + 1, dtype=torch.int64, device=device) for k in self.sizes]
        for counts in self.counts:
            counts[-1] = self.window
        self.batch = [torch.zeros(k, dtype=torch.int64, device=device) for k in self.sizes]
        self.uncounted: list[Tensor] = []               # codes [n, L] of the current step that are not yet in `batch`
        self.signs = torch.ones(2 * self.window, dtype=torch.int64, device=device)
        self.signs[: self.window] = -1                  # around the middle: as many that leave as that come
        self.seen = 0                                                                   # Python ints: no transfer
        self.batch_step = -1

    def observe(self, output: TokenizerOutput, step: int) -> None:
        if output.codes is None:
            return
        codes = gather(output.codes.flatten(0, 1))                                      # [n, L], of all processes
        if step != self.batch_step:
            for batch in self.batch:
                batch.zero_()
            self.uncounted = []
            self.batch_step = step
        self.uncounted.append(codes)
        last = codes[-self.window :].T
        while last.shape[1]:                            # twice where the ring ends amid the codes
            first = self.seen % self.window
            part, last = last[:, : self.window - first], last[:, self.window - first :]
            n = part.shape[1]
            slots = self.ring[:, first : first + n]
            signs = self.signs[self.window - n : self.window + n]
            for counts, old, new in zip(self.counts, slots, part, strict=True):
                counts.scatter_add_(0, torch.cat([old, new]), signs)    # unlike bincount, no synchronisation
            slots.copy_(part)
            self.seen += n

    def _count_batch(self) -> None:
        """Of the last step's codes; only where somebody asks."""
        for codes in self.uncounted:
            for batch, level in zip(self.batch, codes.T, strict=True):
                batch.scatter_add_(0, level, batch.new_ones(1).expand(len(level)))
        self.uncounted = []

    def scalars(self) -> dict[str, Tensor]:
        self._count_batch()
        row: dict[str, Tensor] = {}
        filled = min(self.seen, self.window)
        for level, k in enumerate(self.sizes):
            used = self.counts[level][:-1]
            values = {
                "usage": (used > 0).float().mean(),
                "used_codes": (used > 0).sum(),
                "perplexity": perplexity(used),
                "batch_perplexity": perplexity(self.batch[level]),
                "ceiling": used.new_tensor(1 - (1 - 1 / k) ** filled, dtype=torch.float64),
                "window_fill": used.new_tensor(filled / self.window, dtype=torch.float64),
            }
            row |= {level_name(name, level, len(self.sizes)): value for name, value in values.items()}
        return row

    def arrays(self) -> dict[str, Tensor]:
        return {level_name("counts", i, len(self.sizes)): counts[:-1] for i, counts in enumerate(self.counts)}

    def state_dict(self) -> dict[str, Tensor]:
        self._count_batch()
        state = {"ring": self.ring, "seen": torch.tensor(self.seen), "batch_step": torch.tensor(self.batch_step)}
        state |= {f"counts{i}": c for i, c in enumerate(self.counts)}
        return state | {f"batch{i}": c for i, c in enumerate(self.batch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.ring.copy_(state["ring"])
        self.seen, self.batch_step = int(state["seen"]), int(state["batch_step"])
        for i in range(len(self.sizes)):
            self.counts[i].copy_(state[f"counts{i}"])
            self.batch[i].copy_(state[f"batch{i}"])
