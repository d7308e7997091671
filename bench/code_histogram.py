"""How often each code, and each tuple of codes, occurs in a split: what usage, perplexity and rate are read from."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from bench.errors import Incompatible
from bench.interfaces import Metric
from bench.types import TokenizerOutput, TokenLayout

LARGEST = 2**29                 # entries of a table of counts or tuples, int64: 4 GiB
WORD = 2**62                    # a packed tuple of codes stays below, so that it fits into int64

Correction = Literal["none", "miller-madow", "chao-shen"]


# -- of counts -------------------------------------------------------------------------------------------------------


def entropy(counts: Tensor, correction: Correction = "none", outcomes: float = math.inf) -> Tensor:
    """Entropy in nats of the distribution that the counts [K] (zeros allowed) were drawn from, a float64 scalar.

    none: of the frequencies themselves, H = -sum p log p with p = n_k / n and 0 log 0 = 0. Of few draws it is too low.
    miller-madow: H + (m - 1) / 2n, m the number of distinct codes seen (G. A. Miller, in Information Theory in
      Psychology, 1955): the first-order bias.
    chao-shen: with C = 1 - f1 / n, f1 the number of codes seen once, and q = C p, the sum of -q log q / (1 - (1 - q)^n)
      (A. Chao, T.-J. Shen, Environ. Ecol. Stat. 10, 2003, eq. 8): for many codes that were never drawn. Where every
      code was seen once, C would be 0; then f1 = n - 1, as the R package entropy has it.

    A corrected entropy is cut at log(`outcomes`), the largest that many codes can have.
    """
    n_k = counts[counts > 0].double()
    n = n_k.sum()
    p = n_k / n
    match correction:
        case "none":
            return torch.special.entr(p).sum()
        case "miller-madow":
            found = torch.special.entr(p).sum() + (len(n_k) - 1) / (2 * n)
        case "chao-shen":
            once = (n_k == 1).sum().double()
            q = p * (1 - torch.minimum(once, n - 1) / n)
            found = (torch.special.entr(q) / -torch.expm1(n * torch.log1p(-q))).sum()   # q = 1: log 0, weight 1
    return found.clamp(max=math.log(outcomes))


def expected_share(outcomes: int, draws: int, least: int = 1) -> float:
    """Share of equally likely outcomes that are hit at least `least` times by so many draws, on average."""
    if outcomes == 1 or least > 1:
        from scipy.special import bdtrc

        return float(draws >= least) if outcomes == 1 else float(bdtrc(least - 1, draws, 1 / outcomes))
    return -math.expm1(draws * math.log1p(-1 / outcomes))           # 1 - (1 - 1/K)^draws, for any K


# -- counting --------------------------------------------------------------------------------------------------------


class CodeHistogram:
    """Counts of the codes of each level, exact for any batches, order of images and number of processes.

    With a window, only the last `window` codes of each level count, in split order and raster order within an
    image: what a queue of that length holds in the end when fed the whole split (the queue of the published
    CelebA tables). Whether a code is among them follows from its image's position, so no queue is needed.
    Where a layout has several grids (scales, one behind the other in an image), they are counted apart.
    """

    def __init__(self, layout: TokenLayout, images: int, window: int | None, device: torch.device) -> None:
        """images: the number in the whole split. Raises Incompatible where there is no code to count, or too many."""
        if not layout.vocab_sizes:
            raise Incompatible("a continuous tokenizer has no codes to count")
        if window is not None and window < 1:
            raise Incompatible(f"a window of {window} codes is empty; give at least 1, or null for the split")
        sizes = [h * w for h, w in layout.grids] if len(layout.grids) > 1 else [layout.num_tokens]
        if sum(sizes) != layout.num_tokens:
            raise ValueError(f"grids {layout.grids} do not make up {layout.num_tokens} tokens")
        starts = [0, *accumulate(layout.vocab_sizes)]
        if len(sizes) * starts[-1] > LARGEST:
            raise Incompatible(f"{starts[-1]:,} codes are too many to count each of them; joint_usage and "
                               f"joint_perplexity need no table of all codes")
        self.vocab_sizes, self.tables = layout.vocab_sizes, layout.tables
        total = images * layout.num_tokens                      # codes per level in the split
        self.counted = total if window is None else min(window, total)
        self.window = window
        self._first = total - self.counted                      # position of the first code that counts
        self._token = torch.arange(layout.num_tokens, device=device)
        scale = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self._offsets = (scale[:, None] * starts[-1] + torch.tensor(starts[:-1])).to(device)            # [N, L]
        self.counts = torch.zeros(len(sizes), starts[-1], dtype=torch.int64, device=device)     # [S, sum of K]

    def add(self, codes: Tensor, indices: Tensor) -> None:
        """codes int64 [B, N, L]; indices int64 [B], positions of the images in the split. Never waits."""
        device = self.counts.device
        position = indices.to(device)[:, None] * len(self._token) + self._token             # [B, N]
        counts = (position >= self._first)[:, :, None].expand_as(codes)                     # [B, N, L]
        flat = codes.to(device) + self._offsets
        self.counts.view(-1).scatter_add_(0, flat.reshape(-1), counts.reshape(-1).to(torch.int64))

    def per_level(self, counts: Tensor) -> list[Tensor]:
        """Summed counts [S, sum of K] -> one float64 [K] per level, all scales together."""
        return self._split(counts.sum(0))

    def per_scale(self, counts: Tensor) -> list[list[Tensor]]:
        """Likewise, for each scale; [] where there is one. A scale with codes of its own is counted over these alone."""
        scales = [self._split(row) for row in counts] if len(counts) > 1 else []
        if self.tables == 1:
            return scales
        return [[level.chunk(self.tables)[i] for level in levels] for i, levels in enumerate(scales)]

    def _split(self, row: Tensor) -> list[Tensor]:
        return [level.double() for level in row.split(list(self.vocab_sizes))]


class CodeMetric(Metric):
    """A metric read off the histogram: `of_level` for each level, and the mean of them.

    A subclass sets `window` (None: the whole split).
    """

    window: int | None

    @abstractmethod
    def of_level(self, counts: Tensor, codes: float) -> Tensor:
        """counts float64 [K] of one level -> its value, a scalar. codes: what a threshold refers to."""

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises Incompatible for a continuous tokenizer, or one with too many codes for a table."""
        self.histogram = CodeHistogram(layout, images, self.window, device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        assert output.codes is not None         # begin has refused tokenizers without codes
        self.histogram.add(output.codes, indices)

    def sums(self) -> dict[str, Tensor]:
        """counts: int64 [S, sum of K]: scales in rows, levels behind one another."""
        return {"counts": self.histogram.counts}

    def levels(self, sums: Mapping[str, Tensor]) -> list[Tensor]:
        """One float64 [K] per level."""
        return self.histogram.per_level(sums["counts"])

    def over(self, levels: Sequence[Tensor], codes: float) -> float:
        return float(torch.stack([self.of_level(level, codes) for level in levels]).mean())

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        levels = self.levels(sums)
        return self.over(levels, float(levels[0].sum()))

    def ceilings(self, k: int, codes: int) -> tuple[float, float]:
        """Largest usage that so many codes can show at all, min(K, codes) / K, and on average when all are equally
        likely, 1 - (1 - 1/K)^codes."""
        return min(k, codes) / k, expected_share(k, codes)

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """codes: counted per level. fill: their share of the window. used: distinct codes. hard_ceiling, ceiling: the
        usage that so many codes can reach at most, and reach on average when all are equally likely. These are means
        over levels. level0, ...: the value of each level, where there are several. scale0, ...: of each scale alone.
        """
        levels, histogram = self.levels(sums), self.histogram
        ceilings = [self.ceilings(k, histogram.counted) for k in histogram.vocab_sizes]
        found = {
            "codes": float(histogram.counted),
            "hard_ceiling": sum(hard for hard, _ in ceilings) / len(levels),
            "ceiling": sum(average for _, average in ceilings) / len(levels),
            "used": sum(float((level > 0).sum()) for level in levels) / len(levels),
        }
        if histogram.window is not None:
            found["fill"] = histogram.counted / histogram.window
        if len(levels) > 1:
            codes = float(levels[0].sum())
            found |= {f"level{i}": self.over([level], codes) for i, level in enumerate(levels)}
        return found | self.of_scales(histogram.per_scale(sums["counts"]))

    def of_scales(self, scales: Sequence[Sequence[Tensor]]) -> dict[str, float]:
        """scale0, ...: the value of each scale that has codes in the window. A threshold refers to the largest scale."""
        if not scales:
            return {}
        codes = [float(levels[0].sum()) for levels in scales]
        return {f"scale{i}": self.over(levels, max(codes)) for i, levels in enumerate(scales) if codes[i]}


# -- tuples of codes -------------------------------------------------------------------------------------------------


class TupleMetric(Metric):
    """A metric of the tuples of codes that tokens have over all levels, exact without a table of all combinations.

    Each process keeps the packed tuples of its images in a table of the whole split, with zeros for the images of
    others, so that tables add across processes: 8 bytes a token and 62 bits of codes (50,000 images of 256 tokens:
    102 MB). Tuples are counted at the end by sorting.
    """

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Raises Incompatible for a continuous tokenizer, or where the table would not fit."""
        if not layout.vocab_sizes:
            raise Incompatible("a continuous tokenizer has no codes to count")
        self.vocab_sizes = layout.vocab_sizes
        self.combinations = math.prod(layout.vocab_sizes)
        self.words: list[list[int]] = []                        # levels that are packed into one integer
        for level, k in enumerate(layout.vocab_sizes):
            if not self.words or math.prod(self.vocab_sizes[i] for i in self.words[-1]) * k > WORD:
                self.words.append([])
            self.words[-1].append(level)
        if images * layout.num_tokens * len(self.words) > LARGEST:
            raise Incompatible(f"{images:,} images of {layout.num_tokens:,} tokens are too many for a table of their "
                               f"codes; measure fewer images (measure.images)")
        self._counted: tuple[Tensor, Tensor] | None = None      # sums, and what was counted of them
        self.table = torch.zeros(images, layout.num_tokens, len(self.words), dtype=torch.int64, device=device)

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        assert output.codes is not None         # begin has refused tokenizers without codes
        codes = output.codes.to(self.table.device)
        packed = []
        for levels in self.words:
            word = torch.zeros_like(codes[..., 0])
            for level in levels:
                word = word * self.vocab_sizes[level] + codes[..., level]
            packed.append(word)
        self.table[indices.to(self.table.device)] = torch.stack(packed, -1)

    def sums(self) -> dict[str, Tensor]:
        """tuples: int64 [images, N, words]."""
        return {"tuples": self.table}

    def tuples(self, sums: Mapping[str, Tensor]) -> Tensor:
        """How often each tuple occurs that does: int64 [distinct tuples]. Sorted once for the same sums."""
        if self._counted is None or self._counted[0] is not sums["tuples"]:
            self._counted = sums["tuples"], self._count(sums["tuples"].flatten(0, 1))
        return self._counted[1]

    @staticmethod
    def _count(words: Tensor) -> Tensor:
        ids = words[:, 0]
        for i in range(1, words.shape[1]):      # ids below the number of tokens: two of them fit into one integer
            kinds, other = words[:, i].unique(return_inverse=True)
            ids = ids.unique(return_inverse=True)[1] * len(kinds) + other
        return ids.unique(return_counts=True)[1]

    def level_counts(self, sums: Mapping[str, Tensor]) -> list[Tensor]:
        """How often each code occurs, per level: int64 [K], or of those that occur where K is too large for a table."""
        found: dict[int, Tensor] = {}
        for i, levels in enumerate(self.words):
            word = sums["tuples"][..., i].flatten()
            for level in reversed(levels):
                k = self.vocab_sizes[level]
                codes, word = word % k, word // k
                found[level] = (codes.bincount(minlength=k) if k < 2**24 else codes.unique(return_counts=True)[1])
        return [found[level] for level in range(len(self.vocab_sizes))]

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """codes: tokens. used: distinct tuples. combinations: as many could be (inf from 2^1023 on). hard_ceiling,
        ceiling: the share of them that so many tokens can show at most, and show on average when all are equally likely.
        """
        tokens = sums["tuples"].shape[0] * sums["tuples"].shape[1]
        return {
            "codes": float(tokens), "used": float(len(self.tuples(sums))),
            "combinations": float(self.combinations) if self.combinations < 2**1023 else math.inf,
            "hard_ceiling": min(self.combinations, tokens) / self.combinations,
            "ceiling": expected_share(self.combinations, tokens),
        }
