"""The search on each of its roads: the same codes, whatever the blocks, the threads and the compiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implementations.search import kernel
from implementations.search import nearest as nearest_module
from implementations.search.kernel import library
from implementations.search.lookup import straight_through_lookup
from implementations.search.nearest import largest_product, nearest_codes
from implementations.search.statistics import add_rows


@pytest.fixture(params=["compiled", "plain"])
def road(request, monkeypatch) -> str:
    monkeypatch.setenv("BENCH_KERNELS", "1" if request.param == "compiled" else "0")
    if request.param == "compiled" and kernel.library() is None:
        pytest.skip("there is no C compiler")
    return request.param


@pytest.mark.parametrize("limit", [2**22, 256])
@pytest.mark.parametrize("n, d, k", [(100, 3, 7), (5, 8, 300), (1000, 16, 2000), (1, 1, 1), (0, 4, 5), (257, 100, 65)])
def test_every_road_is_exact_with_ties_to_the_lowest(road, n: int, d: int, k: int, limit: int, monkeypatch) -> None:
    monkeypatch.setattr(nearest_module, "TABLE_BYTES", limit)
    monkeypatch.setattr(nearest_module, "PACKED_BYTES", limit)
    generator = torch.Generator().manual_seed(n + d)
    z, e = (torch.randint(-3, 4, (rows, d), generator=generator).float() for rows in (n, k))
    products = (z.double() @ e.double().T).numpy()
    np.testing.assert_array_equal(largest_product(z, e).numpy(), products.argmax(1))
    np.testing.assert_array_equal(nearest_codes(z, e).numpy(), (products - 0.5 * (e**2).sum(1).numpy()).argmax(1))


def test_nan_is_nearest_to_nothing(road) -> None:
    z, e = torch.randn(40, 3), torch.randn(20, 3)
    z[1], e[3] = torch.nan, torch.inf
    codes = nearest_codes(z, e)
    assert codes[1] == 0 and not (codes == 3).any()


def test_compiled_codes_depend_on_their_row_alone(monkeypatch) -> None:
    monkeypatch.setenv("BENCH_KERNELS", "1")
    if kernel.library() is None:
        pytest.skip("there is no C compiler")
    z = torch.randn(101, 5)
    e = torch.randn(300, 5).repeat(2, 1) + 1e-7                 # rounding decides, and pairs are equal
    codes = nearest_codes(z, e)
    assert (codes < 300).all()
    assert torch.equal(torch.cat([nearest_codes(row[None], e) for row in z]), codes)


def test_without_a_compiler_there_is_no_kernel_and_no_error(monkeypatch) -> None:
    monkeypatch.setattr(kernel, "COMPILERS", ("no-such-compiler",))
    assert kernel._library.__wrapped__() is None


# -- what follows a search -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def several_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 70), k=st.integers(1, 9), d=st.integers(1, 40), threads=st.sampled_from((1, 2)), seed=st.integers(0, 99))
def test_rows_are_added_by_their_codes(n: int, k: int, d: int, threads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, codes = torch.randn(n, d, generator=generator), torch.randint(k, (n,), generator=generator)
    sums = torch.randn(k, d, generator=generator)
    expected = sums.double().index_add(0, codes, rows.double())
    with several_threads(threads), patch("implementations.search.statistics.LEAST_NUMBERS", 0):
        add_rows(sums, codes, rows)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(1, 9), d=st.integers(1, 40), threads=st.sampled_from((1, 2)), seed=st.integers(0, 99))
def test_a_lookup_gives_the_codes_and_their_mean_square(compiled: bool, n: int, k: int, d: int, threads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, table = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    codes = torch.randint(k, (n,), generator=generator)
    with (several_threads(threads), patch("implementations.search.lookup.LEAST_NUMBERS", 0),
          patch.dict(os.environ, {} if compiled else {"BENCH_KERNELS": "0"})):
        q, commitment, codebook = straight_through_lookup(z, table, codes)
    assert torch.equal(q, table[codes])
    expected = (z.double() - table.double()[codes]).square().mean()
    torch.testing.assert_close(torch.stack([commitment, codebook]).double(), expected.expand(2), rtol=1e-6, atol=1e-9)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    rows, codes = torch.randn(5000, 64), torch.randint(7, (5000,))
    found = []
    for threads in (1, 2):
        with several_threads(threads):
            found.append(torch.zeros(7, 64))
            add_rows(found[-1], codes, rows)
    assert torch.equal(*found) or library() is None
