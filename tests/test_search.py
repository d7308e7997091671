"""The search on each of its roads: the same codes, whatever the blocks, the threads and the compiler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from implementations.search import kernel
from implementations.search import nearest as nearest_module
from implementations.search.nearest import largest_product, nearest_codes


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
