"""The cases of `bench profile quantizers`, under pytest-benchmark: `pytest tests/benchmarks/test_profile_cases.py`.

Quantizers and plain formulas at one size are one group; codes are checked against the float64 search after the timing.
BENCH_PROFILE_SIZES, comma-separated N×D×K, takes other sizes. Rounds of a case follow each other here: where machines
are busy, trust the command, in which cases take turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from bench.errors import BadInput, Incompatible
from bench.profile import Case, Sample, Subject, peer_cases, peers_of, quantizer_cases, threads_of
from bench.registry import available
from bench.timings import Size

CPU = torch.device("cpu")
SIZES = [Size.parse(text) for text in os.environ.get("BENCH_PROFILE_SIZES", "4096x64x512,4096x8x4096").split(",")]
WHAT = ("search", "train")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with threads_of(2):
        yield


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size.n}x{size.d}x{size.k}")
def sample(request: pytest.FixtureRequest) -> Sample:
    return Sample.draw(request.param, CPU, torch.float32)


def run(benchmark, case: Case, size: Size) -> None:
    benchmark.group = f"{case.fields['what']}, {size}"
    benchmark(case)
    if case.check is not None:
        check = case.check(case.result)
        assert check.checked and not check.wrong


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("name", available("quantizer"))
def test_quantizer(benchmark, name: str, what: str, sample: Sample) -> None:
    try:
        case, = quantizer_cases(Subject(name), sample, (what,), CPU)
    except (Incompatible, BadInput, ValueError, NotImplementedError) as error:
        pytest.skip(str(error))
    run(benchmark, case, sample.size)


@pytest.mark.parametrize("what", WHAT)
def test_plain_formula(benchmark, what: str, sample: Sample) -> None:
    peer = peers_of(["naive"])["naive"]
    form = peer.form("vq", {})
    for case in peer_cases("naive", peer, form, {}, sample, sample.size.d, (what,), CPU):
        run(benchmark, case, sample.size)
