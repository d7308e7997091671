"""Whether numbers differ by more than they scatter: over the runs of a table's row, over the images of a split. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

# -- over runs -------------------------------------------------------------------------------------------------------


def welch(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t-test (B. L. Welch, Biometrika 34, 1947) that two sets of runs, for example over
    seeds, have equal means; the variances may differ. None where either has fewer than two runs or a number that is
    not finite: then nothing is known of the scatter.

    t = (m1 - m2) / sqrt(a + b) with a = s1^2 / n1, b = s2^2 / n2, against Student's distribution with
    (a + b)^2 / (a^2 / (n1 - 1) + b^2 / (n2 - 1)) degrees of freedom (Satterthwaite). Where neither set scatters at
    all, p is 1 for equal and 0 for different numbers.
    """
    if min(len(one), len(other)) < 2 or not all(map(math.isfinite, (*one, *other))):
        return None
    first, second = _mean_and_error(one), _mean_and_error(other)
    difference, square = first[0] - second[0], first[1] + second[1]
    if square == 0:
        return 1.0 if difference == 0 else 0.0
    # the shares instead of the squares, so that tiny variances do not underflow
    share = first[1] / square
    freedom = 1 / (share**2 / (len(one) - 1) + (1 - share) ** 2 / (len(other) - 1))
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(difference) / math.sqrt(square)))


def _mean_and_error(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and its squared standard error."""
    if all(x == numbers[0] for x in numbers):
        return float(numbers[0]), 0.0           # exactly: a mean of equal numbers may be off by a last digit
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers)


def indistinguishable(best: Sequence[float], other: Sequence[float], alpha: float = 0.05) -> bool | None:
    """Whether the runs of `other` cannot be told from those of `best`: Welch's test does not reject equal means at
    `alpha`. None where it cannot be asked (fewer than two runs on either side).

    With two or three seeds the test is weak: "not distinguishable" then says little more than "too few runs".
    """
    p = welch(best, other)
    return None if p is None else p >= alpha


# -- over images -----------------------------------------------------------------------------------------------------

SINGLE = 64             # smallest and largest values that are resampled one by one, where there are many
GROUPS = 128            # and groups of neighbours that the values between them make


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (B. Efron, Ann. Stat. 7, 1979) of the mean of one number per image, for example
    the difference of two runs on it (then the interval is a paired one). The same for the same values, in any order.

    Up to 256 values, resamples are drawn value by value, as multinomial counts. Of more, those between the 64 smallest
    and the 64 largest form 128 groups of neighbours: how many draws fall into each group is multinomial too, and the
    sum of a group's many draws is taken as normal with the group's mean and variance, which is small. So 50,000 values
    cost no more than 256. Raises ValueError for fewer than two values or one that is not finite.
    """
    import numpy as np

    given = np.sort(np.asarray(values, dtype=np.float64))
    if given.ndim != 1 or len(given) < 2 or not np.isfinite(given).all():
        raise ValueError("a bootstrap needs at least two finite values")
    centre, many = given.mean(), len(given)
    parts = list((given - centre)[:, None])
    if many > 2 * SINGLE + GROUPS:
        inner = np.array_split(given[SINGLE:-SINGLE] - centre, GROUPS)
        parts = parts[:SINGLE] + inner + parts[-SINGLE:]
    sizes, means, spread = (np.array([f(part) for part in parts]) for f in (len, np.mean, np.var))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(many, sizes / many, size=resamples)            # [resamples, groups]
    sums = counts @ means + np.sqrt(counts @ spread) * rng.standard_normal(resamples)
    low, high = np.quantile(sums / many, [(1 - level) / 2, (1 + level) / 2])
    return float(centre + low), float(centre + high)


def win_rate(one: np.ndarray, other: np.ndarray, direction: Literal["higher", "lower", "none"]) -> float | None:
    """Share of images on which `other` is better than `one`, ties counted half; None where nothing is better."""
    if direction == "none":
        return None
    gain = other - one if direction == "higher" else one - other
    return float(((gain > 0) + 0.5 * (gain == 0)).mean())
