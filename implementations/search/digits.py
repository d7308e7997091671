"""Many small digits of a position to few codes and back: the implicit codebooks of FSQ, LFQ and BSQ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LARGEST_VOCABULARY = 2**18      # what monitors can count; above, a position has several codes


def fewest_levels(radices: Sequence[int], largest: int = LARGEST_VOCABULARY) -> tuple[tuple[int, ...], ...]:
    """Cut digits, in their order, into as few levels as keep each vocabulary within `largest`: (8, 8, 8, 5, 5, 5) is
    one level of 64,000 codes."""
    levels: list[list[int]] = [[]]
    for radix in radices:
        if levels[-1] and math.prod(levels[-1]) * radix > largest:
            levels.append([])
        levels[-1].append(radix)
    return tuple(map(tuple, levels))


def even_levels(bits: int, levels: int) -> tuple[tuple[int, ...], ...]:
    """`bits` binary digits in so many levels, the first ones a bit longer where it does not divide: 5 in 2 is 3, 2."""
    return tuple((2,) * (bits // levels + (i < bits % levels)) for i in range(levels))


class Digits(nn.Module):
    """Mixed-radix numbers, one per level; digit d of a level counts the product of the radices before it (of those
    after it with `last_first`: the first digit is then the most significant one).

    levels: radices of the digits of each level. `sizes` are the vocabularies, their products.
    """

    def __init__(self, levels: Sequence[Sequence[int]], *, last_first: bool = False) -> None:
        super().__init__()
        self.sizes = tuple(math.prod(level) for level in levels)
        places, level_of = [], []
        for i, level in enumerate(levels):
            count = range(len(level))
            places += [math.prod(level[j + 1:] if last_first else level[:j]) for j in count]
            level_of += [i for _ in count]
        table = torch.zeros(len(places), len(levels))
        for digit, (place, level) in enumerate(zip(places, level_of, strict=True)):
            table[digit, level] = place
        self.register_buffer("table", table, persistent=False)                          # [d, L]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("radices", torch.tensor([r for level in levels for r in level]), persistent=False)
        self.register_buffer("level_of", torch.tensor(level_of), persistent=False)

    def pack(self, digits: Tensor) -> Tensor:
        """digits [..., d], whole numbers in fp32 (differences of digits and a constant too) -> codes int64 [..., L].

        A product in fp32 is exact here: no partial sum reaches 2^24.
        """
        return (digits @ self.table).long()

    def unpack(self, codes: Tensor) -> Tensor:
        """codes [..., L] -> digits int64 [..., d]."""
        return codes[..., self.level_of] // self.places % self.radices


def levels_of_bits(bits: int, levels: int | None) -> tuple[tuple[int, ...], ...]:
    """The radices (all 2) of each level when `levels` codes share so many bits; as few as vocabularies allow where it
    is None. Raises ValueError for fewer than one bit, and for levels that are too few or too many."""
    most = LARGEST_VOCABULARY.bit_length() - 1
    if bits < 1:
        raise ValueError(f"bits must be at least 1, got {bits}")
    levels = -(-bits // most) if levels is None else levels
    if not 1 <= levels <= bits or -(-bits // levels) > most:
        raise ValueError(f"levels must share {bits} bits in parts of 1 to {most}, got {levels}")
    return even_levels(bits, levels)
