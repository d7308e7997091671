"""Metrics of codes against queues, counters, scipy and simulation, for any batches and number of processes."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.code_histogram import LARGEST, entropy, expected_share
from bench.errors import Incompatible
from bench.metrics.joint_perplexity import JointPerplexity
from bench.metrics.joint_usage import JointUsage
from bench.metrics.perplexity import Perplexity
from bench.metrics.rate import Rate
from bench.metrics.usage import Usage
from bench.registry import resolve, signature
from bench.spec import ComponentSpec, bind
from bench.types import TokenizerOutput, TokenLayout

CPU = torch.device("cpu")
NAMES = ("usage", "perplexity", "joint_usage", "joint_perplexity", "rate")


def output(codes: np.ndarray) -> TokenizerOutput:
    nothing = torch.empty(0)
    return TokenizerOutput(nothing, nothing, nothing, torch.from_numpy(np.asarray(codes, np.int64)))


def run(make: Any, layout: TokenLayout, codes: np.ndarray, *, processes: int = 1, cuts: Sequence[int] = (),
        size: tuple[int, int] = (4, 6), order: np.random.Generator | None = None) -> tuple[float, dict[str, float]]:
    """Value and details of codes [n, N, L], cut into batches that processes see in any order."""
    parts = [make() for _ in range(processes)]
    for part in parts:
        part.begin(layout, len(codes), CPU)
    batches = [range(a, b) for a, b in pairwise(sorted({0, len(codes), *(c for c in cuts if c < len(codes))}))]
    for i in range(len(batches)) if order is None else order.permutation(len(batches)):
        indices = torch.tensor(list(batches[i]))
        images = torch.zeros(len(indices), 3, *size, dtype=torch.uint8)
        assert parts[i % processes].update(images, output(codes[indices.numpy()]), indices) is None
    sums = {key: torch.stack([part.sums()[key] for part in parts]).sum(0) for key in parts[0].sums()}
    assert all(value.dtype in (torch.int64, torch.float64) for value in sums.values())
    return parts[0].compute(sums), parts[0].details(sums)


def skewed(rng: np.random.Generator, shape: tuple[int, ...], k: int) -> np.ndarray:
    """Codes of which some are much more frequent than others."""
    return np.minimum((k * rng.random(shape) ** 3).astype(np.int64), k - 1)


# -- usage and perplexity: levels, scales, ceilings, dialects --------------------------------------------------------


def test_levels_and_scales_are_in_the_details() -> None:
    rng = np.random.default_rng(0)
    layout = TokenLayout(14, (11, 5), ((1, 1), (2, 2), (3, 3)))
    codes = np.stack([skewed(rng, (9, 14), k) for k in (11, 5)], -1)
    found, details = run(Usage, layout, codes, processes=3, cuts=(2, 5), order=rng)
    parts = {"scale0": codes[:, :1], "scale1": codes[:, 1:5], "scale2": codes[:, 5:]}

    def usage(part: np.ndarray, level: int) -> float:
        return len(np.unique(part[..., level])) / (11, 5)[level]

    assert found == pytest.approx((usage(codes, 0) + usage(codes, 1)) / 2)
    assert [details["level0"], details["level1"]] == pytest.approx([usage(codes, 0), usage(codes, 1)])
    for name, part in parts.items():
        assert details[name] == pytest.approx((usage(part, 0) + usage(part, 1)) / 2)
        reachable = [min(k, part[..., 0].size) / k for k in (11, 5)]
        assert details[f"{name}_ceiling"] == pytest.approx(np.mean(reachable))

    found, details = run(Perplexity, layout, codes)
    nats = [scipy.stats.entropy(np.unique(codes[..., level], return_counts=True)[1]) for level in (0, 1)]
    assert found == pytest.approx(np.mean(np.exp(nats)))
    assert [details["level0"], details["level1"]] == pytest.approx(np.exp(nats))
    fine = [scipy.stats.entropy(np.unique(codes[:, 5:, level], return_counts=True)[1]) for level in (0, 1)]
    assert details["scale2"] == pytest.approx(np.mean(np.exp(fine)))


def test_one_level_and_one_scale_need_no_details_of_their_own() -> None:
    _, details = run(Usage, TokenLayout(4, (8,), ((2, 2),)), np.zeros((3, 4, 1)))
    assert set(details) == {"codes", "used", "ceiling", "hard_ceiling"}


def test_a_scale_outside_the_window_has_no_value() -> None:
    layout = TokenLayout(5, (8,), ((1, 1), (2, 2)))
    _, details = run(lambda: Usage(window=4), layout, np.arange(10).reshape(2, 5, 1) % 8)
    assert "scale0" not in details and details["scale1"] == 0.5


@pytest.mark.parametrize(("k", "window"), [(64, 20), (64, 100), (16, 1000)])
def test_ceilings_are_the_most_and_the_average_of_uniform_codes(k: int, window: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, k, (400, window))
    drawn = np.array([len(np.unique(row)) / k for row in codes])
    _, details = run(lambda: Usage(window=window), TokenLayout(window, (k,)), codes[:1, :, None])
    assert details["hard_ceiling"] == min(k, window) / k and drawn.max() <= details["hard_ceiling"]
    assert abs(drawn.mean() - details["ceiling"]) < 4 * drawn.std() / math.sqrt(len(drawn)) + 1e-12


def test_the_window_of_65536_has_the_published_ceilings() -> None:
    for k, share in ((16_384, 0.982), (32_768, 0.865), (65_536, 0.632), (100_000, 0.481), (262_144, 0.221)):
        assert expected_share(k, 65_536) == pytest.approx(share, abs=6e-4)
    assert expected_share(2**60, 1000) == pytest.approx(1000 / 2**60)       # 1 - 1/K is 1 in floating point


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 9), st.integers(1, 60), st.integers(0, 2**16))
def test_a_zero_filled_window_is_a_queue_that_began_with_zeros(images: int, tokens: int, k: int, window: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, k, (images, tokens, 1))
    queue = deque([0] * window, maxlen=window)
    queue.extend(codes.ravel().tolist())
    found, details = run(lambda: Usage(window=window, zero_filled=True), TokenLayout(tokens, (k,)), codes, processes=2,
                         cuts=(1, 3))
    assert found == pytest.approx(len(set(queue)) / k)
    assert found <= details["hard_ceiling"] + 1e-12 and details["fill"] == min(1, images * tokens / window)


def test_a_zero_filled_window_expects_code_0() -> None:
    rng = np.random.default_rng(1)
    drawn = [len({0, *rng.integers(0, 20, 15)}) / 20 for _ in range(4000)]
    _, details = run(lambda: Usage(window=50, zero_filled=True), TokenLayout(15, (20,)), np.zeros((1, 15, 1)))
    assert np.mean(drawn) == pytest.approx(details["ceiling"], abs=0.01) and details["hard_ceiling"] == 16 / 20


@pytest.mark.parametrize("share", [0.08, 0.5, 1.0, 3.0])
def test_at_least_counts_codes_as_var_does(share: float) -> None:
    """models/quant.py of FoundationVision/VAR: hits of a scale >= tokens of the last feature map / K x 0.08."""
    rng = np.random.default_rng(0)
    k, sides = 40, (1, 2, 5)
    layout = TokenLayout(30, (k,), tuple((s, s) for s in sides))
    codes = skewed(rng, (70, 30, 1), k)
    found, details = run(lambda: Usage(at_least=share), layout, codes, processes=2, cuts=(20,))
    margin = 70 * 25 / k * share
    for i, part in enumerate(np.split(codes[..., 0], np.cumsum([s * s for s in sides])[:-1], axis=1)):
        assert details[f"scale{i}"] == pytest.approx(np.mean(np.bincount(part.ravel(), minlength=k) >= margin))
    hits = np.bincount(codes.ravel(), minlength=k)
    assert found == pytest.approx(np.mean(hits >= codes.size / k * share))
    assert found < run(Usage, layout, codes)[0] or share < 0.1
    drawn = [np.mean(np.bincount(rng.integers(0, k, codes.size), minlength=k) >= codes.size / k * share) for _ in range(200)]
    assert details["ceiling"] == pytest.approx(np.mean(drawn), abs=0.03)
    assert max(drawn) <= details["hard_ceiling"]


def test_what_makes_no_sense_is_refused() -> None:
    for keywords, match in (({"at_least": -1.0}, "0 or more"), ({"zero_filled": True}, "only a window"),
                            ({"zero_filled": True, "window": 9, "at_least": 0.1}, "one of them")):
        with pytest.raises(Incompatible, match=match):
            Usage(**keywords)
    for name in NAMES:
        with pytest.raises(Incompatible, match="no codes"):
            resolve("metric", name)().begin(TokenLayout(4, ()), 1, CPU)


def test_a_vocabulary_too_large_for_a_table_has_joint_values() -> None:
    layout = TokenLayout(3, (2**36,))
    for metric in (Usage(), Perplexity(), Rate(coding="entropy")):
        with pytest.raises(Incompatible, match="68,719,476,736 codes are too many.*joint_usage"):
            metric.begin(layout, 2, CPU)
    codes = np.array([[2**36 - 1, 5, 5], [5, 0, 2**35]])[..., None]
    found, details = run(JointUsage, layout, codes)
    assert (found, details["used"]) == (4 / 2**36, 4)
    assert run(JointPerplexity, layout, codes)[0] == pytest.approx(np.exp(scipy.stats.entropy([3, 1, 1, 1])))
    assert run(Rate, layout, codes)[0] == 3 * 36
    with pytest.raises(Incompatible, match="too many for a table"):
        JointUsage().begin(TokenLayout(1024, (8,)), LARGEST // 1024 + 1, CPU)


# -- entropy of few draws --------------------------------------------------------------------------------------------


def miller_madow(counts: Sequence[int]) -> float:
    n, seen = sum(counts), [c for c in counts if c]
    return -sum(c / n * math.log(c / n) for c in seen) + (len(seen) - 1) / (2 * n)


def chao_shen(counts: Sequence[int]) -> float:
    """Horvitz-Thompson sum with Good's coverage, term by term."""
    n, once = sum(counts), sum(c == 1 for c in counts)
    coverage = 1 - (once if once < n else n - 1) / n
    total = 0.0
    for c in counts:
        if c:
            q = coverage * c / n
            total += -q * math.log(q) / (1 - (1 - q) ** n)
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(sum))
def test_corrected_entropies_equal_their_formulas(counts: list[int]) -> None:
    given_counts = torch.tensor(counts)
    assert float(entropy(given_counts)) == pytest.approx(scipy.stats.entropy(counts), abs=1e-12)
    assert float(entropy(given_counts, "miller-madow")) == pytest.approx(miller_madow(counts), abs=1e-9)
    assert float(entropy(given_counts, "chao-shen")) == pytest.approx(chao_shen(counts), abs=1e-9)
    for correction in ("miller-madow", "chao-shen"):
        k = len(counts)
        assert float(entropy(given_counts, correction, k)) <= math.log(k) + 1e-12


def test_corrections_shrink_the_bias() -> None:
    """Of codes drawn from known distributions; means over 200 repetitions, whose errors are below 0.01."""
    rng = np.random.default_rng(0)
    k = 400
    for share, draws in ((np.full(k, 1 / k), 800), (np.full(k, 1 / k), 300), (1 / np.arange(1, k + 1), 800)):
        share = share / share.sum()
        true = scipy.stats.entropy(share)
        counts = [torch.from_numpy(c) for c in rng.multinomial(draws, share, 200)]
        bias = {c: np.mean([float(entropy(n, c)) for n in counts]) - true for c in ("none", "miller-madow", "chao-shen")}
        assert bias["none"] < -0.1
        assert abs(bias["miller-madow"]) < 0.6 * abs(bias["none"])
        assert abs(bias["chao-shen"]) < 0.4 * abs(bias["none"])


def test_perplexity_is_corrected_per_level() -> None:
    codes = skewed(np.random.default_rng(0), (6, 7, 2), 30)
    layout = TokenLayout(7, (30, 30))
    counts = [np.bincount(codes[..., level].ravel(), minlength=30).tolist() for level in (0, 1)]
    for correction, formula in (("miller-madow", miller_madow), ("chao-shen", chao_shen)):
        wanted = [min(30, math.exp(formula(c))) for c in counts]
        found, details = run(lambda c=correction: Perplexity(correction=c), layout, codes, processes=2, cuts=(2,))
        assert found == pytest.approx(np.mean(wanted), rel=1e-9)
        assert details["level1"] == pytest.approx(wanted[1], rel=1e-9)


# -- tuples ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_tuples_equal_a_counter(data: st.DataObject) -> None:
    """For any levels, also those that do not fit into one integer, batches and processes."""
    images, tokens = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    sizes = st.sampled_from([1, 2, 3, 5, 1000, 2**16, 2**31, 2**40, 2**62])
    vocab = tuple(data.draw(st.lists(sizes, min_size=1, max_size=6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    pool = np.stack([rng.integers(0, k, 7) for k in vocab], -1)          # few values each, so that tuples recur
    codes = pool[rng.integers(0, 4, (images, tokens, len(vocab))), np.arange(len(vocab))]
    counter = Counter(map(tuple, codes.reshape(-1, len(vocab)).tolist()))
    cuts = data.draw(st.sets(st.integers(1, max(1, images - 1)), max_size=3))
    how = {"processes": data.draw(st.integers(1, 3)), "cuts": cuts, "order": rng}
    layout, product = TokenLayout(tokens, vocab), math.prod(vocab)

    found, details = run(JointUsage, layout, codes, **how)
    assert found == pytest.approx(len(counter) / product) and details["used"] == len(counter)
    assert details["codes"] == images * tokens and details["combinations"] == float(product)
    assert found <= details["hard_ceiling"] * (1 + 1e-12)
    reachable, _ = run(lambda: JointUsage(of="reachable"), layout, codes, **how)
    assert reachable == pytest.approx(len(counter) / min(product, images * tokens))

    joint = scipy.stats.entropy(list(counter.values()))
    found, details = run(JointPerplexity, layout, codes, **how)
    assert found == pytest.approx(math.exp(joint), rel=1e-9)
    if len(vocab) > 1:
        levels = [scipy.stats.entropy(np.unique(codes[..., i], return_counts=True)[1]) for i in range(len(vocab))]
        assert details["shared_bits"] == pytest.approx((sum(levels) - joint) / math.log(2), abs=1e-9)
        assert details["level0"] == pytest.approx(math.exp(levels[0]), rel=1e-9)


def test_more_combinations_than_a_float_can_hold_are_counted_all_the_same() -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (5, 4, 110))
    found, details = run(JointPerplexity, TokenLayout(4, (1024,) * 110), codes)
    assert found == pytest.approx(20) and details["used"] == 20
    assert details["combinations"] == math.inf and details["ceiling"] == details["hard_ceiling"] == 0


def test_joint_values_of_a_single_level_are_the_plain_ones() -> None:
    codes = skewed(np.random.default_rng(0), (8, 9, 1), 50)
    layout = TokenLayout(9, (50,))
    for joint, plain in ((JointUsage, Usage), (JointPerplexity, Perplexity)):
        assert run(joint, layout, codes)[0] == pytest.approx(run(plain, layout, codes)[0], rel=1e-12)
    for correction in ("miller-madow", "chao-shen"):
        joint_value = run(lambda c=correction: JointPerplexity(correction=c), layout, codes)[0]
        assert joint_value == pytest.approx(run(lambda c=correction: Perplexity(correction=c), layout, codes)[0])


def test_levels_that_repeat_each_other_share_all_their_bits() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 16, (200, 20, 1))
    _, twice = run(JointPerplexity, TokenLayout(20, (16, 16)), np.concatenate([one, 15 - one], -1))
    _, apart = run(JointPerplexity, TokenLayout(20, (16, 16)), np.concatenate([one, rng.integers(0, 16, one.shape)], -1))
    assert twice["shared_bits"] == pytest.approx(4, abs=0.01) and apart["shared_bits"] < 0.1


# -- rate ------------------------------------------------------------------------------------------------------------


def test_a_fixed_rate_is_what_the_layout_says() -> None:
    layout = TokenLayout(7, (30, 8))
    codes = np.zeros((5, 7, 2))
    assert run(Rate, layout, codes)[0] == layout.bits_per_image
    per_pixel = run(lambda: Rate(per="pixel"), layout, codes, size=(4, 6), processes=2, cuts=(1,))[0]
    assert per_pixel == pytest.approx(layout.bits_per_image / 24, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 2**16))
def test_an_entropy_coded_rate_is_scipys_entropy_times_tokens(images: int, tokens: int, vocab: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([skewed(rng, (images, tokens), k) for k in vocab], -1)
    layout = TokenLayout(tokens, tuple(vocab))
    found, details = run(lambda: Rate(coding="entropy"), layout, codes, processes=2, cuts=(1, 4), order=rng)
    levels = [tokens * scipy.stats.entropy(np.bincount(codes[..., i].ravel()), base=2) for i in range(len(vocab))]
    assert found == pytest.approx(sum(levels), abs=1e-9) and found <= details["fixed"] + 1e-9
    assert details["fixed"] == pytest.approx(layout.bits_per_image)
    if len(vocab) > 1:
        assert details["level1"] == pytest.approx(levels[1], abs=1e-9)
    pixels, _ = run(lambda: Rate(coding="entropy", per="pixel"), layout, codes, size=(3, 5))
    assert pixels == pytest.approx(sum(levels) / 15, abs=1e-9)


def test_an_adaptive_rate_is_that_of_a_coder_that_learns_as_it_goes() -> None:
    k, codes = 12, skewed(np.random.default_rng(0), (6, 9, 1), 12)
    seen, bits = np.zeros(k), 0.0
    for code in codes.ravel():
        bits -= math.log2((seen[code] + 0.5) / (seen.sum() + k / 2))
        seen[code] += 1
    found, _ = run(lambda: Rate(coding="adaptive"), TokenLayout(9, (k,)), codes, processes=2, cuts=(3,))
    assert found == pytest.approx(bits / 6, rel=1e-12)
    assert found > run(lambda: Rate(coding="entropy"), TokenLayout(9, (k,)), codes)[0], "learning costs bits"


def test_scales_with_tables_of_their_own_cost_less() -> None:
    codes = np.concatenate([np.full((5, 1, 1), 3), skewed(np.random.default_rng(0), (5, 4, 1), 9)], 1)
    layout = TokenLayout(5, (9,), ((1, 1), (2, 2)))
    found, details = run(lambda: Rate(coding="entropy"), layout, codes)
    assert details["scale0"] == 0
    assert details["scale1"] == pytest.approx(4 * scipy.stats.entropy(np.bincount(codes[:, 1:].ravel()), base=2))
    assert details["scale0"] + details["scale1"] < found


# -- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["usage", "perplexity"])
def test_new_keywords_leave_stored_identities_alone(name: str) -> None:
    def fail(path: tuple[str, ...], value: Any, sentence: str) -> Exception:
        return AssertionError(f"{path} {value} {sentence}")

    spec = bind("metric", {"name": name, "window": None}, (), fail)
    before = ComponentSpec(kind="metric", name=name, revision=1, kwargs={"window": None})
    assert spec.content() == before.content() and set(spec.kwargs) > {"window"}


@pytest.mark.parametrize("name", NAMES)
def test_each_has_caveats_that_explain_can_print(name: str) -> None:
    caveats = signature("metric", name).attributes["caveats"]
    assert caveats and all(isinstance(c, str) and c.endswith(".") for c in caveats)


def test_counting_never_waits_for_the_device() -> None:
    """On the meta device nothing can be read back: updates that did would fail."""
    meta = torch.device("meta")
    codes: Tensor = torch.zeros(2, 4, 2, dtype=torch.int64, device=meta)
    images = torch.zeros(2, 3, 4, 4, device=meta)
    nothing = torch.empty(0)
    for metric in (Usage(window=5), Perplexity(), Rate(coding="entropy")):
        metric.begin(TokenLayout(4, (8, 8), ((2, 2),)), 2, meta)
        metric.update(images, TokenizerOutput(nothing, nothing, nothing, codes), torch.arange(2, device=meta))
