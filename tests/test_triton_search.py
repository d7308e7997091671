"""The search in Triton, run by Triton's interpreter on the CPU and compiled, not run, for GPUs; and torch's on CUDA.

The interpreter is chosen when Triton is imported: the checks below run in one process of their own, and each is a test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from implementations.search import nearest as nearest_module

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [(100, 3, 7), (65, 8, 300), (64, 16, 64), (130, 17, 129), (33, 64, 200), (70, 100, 65), (5, 3, 1), (1, 1, 2), (0, 4, 5)]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def whole_numbers(n: int, d: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and codes with exact scores and many ties."""
    generator = torch.Generator().manual_seed(n + d)
    z, e = (torch.randint(-3, 4, (rows, d), generator=generator).float() for rows in (n, k))
    e[k // 2:k // 2 * 2] = e[:k // 2].clone()
    return z, e


def first_best(z: torch.Tensor, e: torch.Tensor, share: float) -> torch.Tensor:
    z, e = z.double(), e.double()
    return torch.from_numpy((z @ e.T + share * e.square().sum(1)).numpy().argmax(1))


def check_exact_with_ties_to_the_lowest() -> None:
    from implementations.search.triton_nearest import search

    for shape in SHAPES:
        z, e = whole_numbers(*shape)
        for share in (-0.5, 0.0):
            codes = search(z, e, share)
            assert codes.dtype == torch.int64
            assert torch.equal(codes, first_best(z, e, share)), (shape, share)


def check_best_to_within_rounding() -> None:
    from implementations.search.triton_nearest import search

    for n, d, k in ((70, 8, 130), (70, 100, 130)):
        z, e = torch.randn(n, d), torch.randn(k, d)
        scores = z.double() @ e.double().T - 0.5 * e.double().square().sum(1)
        behind = scores.amax(1) - scores.gather(1, search(z, e, -0.5)[:, None])[:, 0]
        assert behind.max() < 1e-5 * scores.abs().max()


def check_latents_of_any_kind_and_strides() -> None:
    from implementations.search.triton_nearest import search

    z, e = whole_numbers(70, 40, 90)
    expected = first_best(z, e, -0.5)
    assert torch.equal(search(z.T.contiguous().T, e, -0.5), expected)
    assert torch.equal(search(torch.cat([z, z], 1)[:, :40], e, -0.5), expected)
    assert torch.equal(search(z.bfloat16(), e, -0.5), expected)


def check_nan_is_nearest_to_nothing() -> None:
    from implementations.search.triton_nearest import search

    for bad in (torch.nan, torch.inf, -torch.inf, 1e30):
        z, e = torch.randn(80, 40), torch.randn(130, 40)
        z[1, 2], z[2], e[3, 1], e[100] = torch.nan, torch.nan, bad, bad
        for share in (-0.5, 0.0):
            codes = search(z, e, share)
            sound = torch.cat([e[:3], e[4:100], e[101:]])
            kept = torch.tensor([i for i in range(130) if i not in (3, 100)])
            assert codes[1] == codes[2] == 0
            assert torch.equal(codes[3:], kept[search(z, sound, share)][3:])
        assert not search(z, torch.full_like(e, bad), -0.5).any()
        z[5, 0] = torch.inf
        assert 0 <= search(z, e, -0.5)[5] < 130


def check_counts_and_sums() -> None:
    from implementations.search.triton_nearest import search

    for n, d, k in SHAPES:
        z, e = whole_numbers(n, d, k)
        counts, sums = torch.full((k,), 2.0), torch.ones(k, d)
        codes = search(z, e, -0.5, counts, sums)
        assert torch.equal(codes, first_best(z, e, -0.5))
        assert torch.equal(counts, 2 + codes.bincount(minlength=k).float())
        assert torch.equal(sums, torch.ones(k, d).index_add_(0, codes, z))
        whole = torch.zeros(k, dtype=torch.int64)
        search(z, e, -0.5, whole)
        assert torch.equal(whole, codes.bincount(minlength=k))


def check_tables_of_another_form_are_refused() -> None:
    from implementations.search.triton_nearest import search

    z, e = torch.randn(4, 3), torch.randn(5, 3)
    for named, arguments in (("e", (z, e.T.contiguous().T, 0.0)), ("e", (z, e.double(), 0.0)), ("e", (z, e[:, :2], 0.0)),
                             ("counts", (z, e, 0.0, torch.zeros(4))), ("sums", (z, e, 0.0, None, torch.zeros(5, 2)))):
        try:
            search(*arguments)
        except ValueError as error:
            assert str(error).startswith(f"{named} must be "), error
        else:
            raise AssertionError(f"{named} was taken")


def check_it_is_what_cuda_tensors_take() -> None:
    from implementations.search.triton_nearest import search

    assert nearest_module._fused(torch.device("cpu")) is search


CHECKS = [name for name in dir() if name.startswith("check_")]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """What went wrong in each check, '' where nothing did."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "BENCH_KERNELS": "1"}
    done = subprocess.run([sys.executable, __file__], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_under_the_interpreter(check: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[check], interpreted[check]


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from implementations.search import triton_nearest as ours

def build(kernel, types, constants, target):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    options = {"num_warps": ours.WARPS}
    return triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", target, 32), options=options)

said = []
for target, d, statistics in ((80, 100, True), (90, 8, False)):
    tiles = {"D": d, "CODES": ours.CODES, "DEPTH": ours.tile_depth(d)}
    lengths = {"e": "*fp32", "offset": "*fp32", "share": "fp32", "K": "i32"}
    build(ours._weigh, lengths, tiles, target)
    types = {"z": "*fp32", "e": "*fp32", "offset": "*fp32", "codes": "*i64", "N": "i32", "K": "i32", "row_stride": "i32"}
    tables = ("counts", "sums")
    types |= dict.fromkeys(tables, "*fp32") if statistics else {}
    none = {} if statistics else dict.fromkeys(tables)
    made = build(ours._search, types, tiles | none | {"ROWS": ours.ROWS, "column_stride": 1}, target)
    said.append([made.metadata.shared, made.asm["ptx"].count("fma.rn.f32"), made.asm["ptx"].count("mma.")])
print(json.dumps(said))
"""


@needs_triton
def test_compiles_for_gpus_to_fp32_arithmetic_alone(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = tmp_path / "build.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for shared, products, tensor_cores in json.loads(done.stdout.splitlines()[-1]):
        assert shared <= 48 * 2**10 and products >= 512 and tensor_cores == 0


@pytest.mark.parametrize("limit", [2**24, 256])
def test_blocks_for_cuda_are_exact_with_ties_to_the_lowest(limit: int, monkeypatch) -> None:
    monkeypatch.setattr(nearest_module, "BLOCK_BYTES_CUDA", 8 * limit)
    monkeypatch.setattr(nearest_module, "TABLE_BYTES_CUDA", limit)
    for shape in SHAPES:
        z, e = whole_numbers(*shape)
        for share in (-0.5, 0.0):
            assert torch.equal(nearest_module._search_blocks_cuda(z, e, share), first_best(z, e, share)), shape
    z, e = torch.randn(40, 3), torch.randn(90, 3)
    z[1], e[3] = torch.nan, torch.inf
    codes = nearest_module._search_blocks_cuda(z, e, -0.5)
    assert codes[1] == 0 and not (codes == 3).any()


def test_without_kernels_or_where_triton_fails_torch_searches(monkeypatch) -> None:
    z, e = whole_numbers(20, 3, 9)
    monkeypatch.setenv("BENCH_KERNELS", "1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert nearest_module._fused.__wrapped__(torch.device("cpu")) is None      # Triton has no driver for it
    monkeypatch.setattr(nearest_module, "_fused", lambda device: lambda *arguments: "fused")
    assert nearest_module._search_cuda(z, e, -0.5) == "fused"
    monkeypatch.setenv("BENCH_KERNELS", "0")
    assert torch.equal(nearest_module._search_cuda(z, e, -0.5), first_best(z, e, -0.5))


def test_a_search_on_the_cpu_imports_no_triton() -> None:
    script = ("import sys, torch; from implementations.search.nearest import nearest_codes; "
              "nearest_codes(torch.zeros(3, 2), torch.ones(4, 2)); sys.exit('triton' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=120).returncode == 0


def run_checks() -> dict[str, str]:
    torch.manual_seed(0)
    said = {}
    for name in CHECKS:
        try:
            globals()[name]()
            said[name] = ""
        except Exception:
            said[name] = traceback.format_exc()
    return said


if __name__ == "__main__":
    print(json.dumps(run_checks()))
