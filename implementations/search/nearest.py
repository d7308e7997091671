"""Nearest code, exactly, without the N x K table.

argmin |z - e|^2 = argmax (z.e - |e|^2 / 2): no |z|^2, no square root. In fp32 whatever autocast says, because bf16
products give 0.5-6 % wrong codes. Memory beyond the codes does not depend on N, K or D (but for a number or two for
each row and code): rows and codes both come in blocks. Four roads to the same answer, by what there is:

CPU, with a C compiler: nearest.c, where no score leaves the registers and each depends on its row and code alone.
CPU, without: products of blocks and numpy's arg-max, which is vectorised along rows where torch's is not; wide latents
    as a 1x1 convolution, which runs faster than the bundled BLAS, narrow ones on a thread per share of the rows.
CUDA, with Triton: triton_nearest.py, one pass without scores in memory. It was run under Triton's interpreter only, and
    is taken where it has shown once in this process that it agrees with torch on this device.
CUDA, without, or with BENCH_KERNELS=0: blocks of products and torch's arg-max.

Where scores are exact (whole numbers, say) all give the same codes. Elsewhere codes that are nearest to within
rounding may come out either way: roads add up in different orders.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from implementations.search.kernel import library, switched_off
from implementations.search.precision import without_autocast
from implementations.search.shares import in_shares

BLOCK_BYTES = 4 * 2**20         # CPU: flat between 2 and 8 MiB; above, every temporary is mapped anew
BLOCK_BYTES_CUDA = 16 * 2**20   # of scores; with latents, codes and their squares below 32 MiB
TABLE_BYTES_CUDA = 4 * 2**20    # codes that are compared at a time
CODES_CUDA = 2**14              # and no more than these, so that products keep many rows
TABLE_BYTES = 4 * 2**20         # codes that are compared at a time
PACKED_BYTES = 256 * 2**10      # the same for the compiled search: what stays in a core's cache
FEWEST_ROWS = 16                # products of fewer rows take other roads, on which equal codes score differently
FEWEST_CODES = 64
WIDE = 32                       # latents from here on go through the convolution
WIDEST_COMPILED = 4096
LEAST_WORK = 2**20              # multiplications that are worth a thread
ROWS_AT_ONCE = 2**20            # of the compiled search, which keeps one value for each

_log = logging.getLogger(__name__)


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> codes int64 [N] by squared Euclidean distance.

    Lowest index where scores are equal. A code whose squared length is not finite is never chosen (all of them: code
    0); a latent with NaN gets code 0, one with an infinity some code.
    """
    return _search(latents, codebook, -0.5)


@torch.no_grad()
def largest_product(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> codes int64 [N] by the largest z.e, lengths as they are; else as above."""
    return _search(latents, codebook, 0.0)


def _search(latents: Tensor, codebook: Tensor, share: float) -> Tensor:
    """argmax over k of z.e_k + share * |e_k|^2."""
    if latents.is_meta:                         # the product that there is, for whoever counts them
        return torch.mm(latents.float(), codebook.float().T).argmax(1)
    with without_autocast(latents):
        z, e = latents.detach(), codebook.detach().float().contiguous()
        if z.is_cuda:
            return _search_cuda(z, e, share)
        codes = torch.zeros(len(z), dtype=torch.int64)
        if library() is not None and 0 < z.shape[1] <= WIDEST_COMPILED:
            _search_compiled(z, e, share, codes)
        else:
            _search_blocks(z, e, share, codes)
        return codes


def _search_compiled(z: Tensor, e: Tensor, share: float, codes: Tensor) -> None:
    compiled, (k, d) = library(), e.shape
    tile = compiled.tile()
    width = max(1, min(PACKED_BYTES // (4 * d), k + tile - 1) // tile) * tile
    rows = ROWS_AT_ONCE if z.dtype == torch.float32 and z.is_contiguous() else max(1024, BLOCK_BYTES // (4 * d))
    for at in range(0, len(z), rows):
        block, part = z[at:at + rows].float().contiguous(), codes[at:at + rows]

        def compare(first: int, last: int, block: Tensor = block, part: Tensor = part) -> None:
            best, scratch = torch.empty(last - first), torch.empty(width * (d + 1))
            compiled.search(block.data_ptr() + 4 * d * first, last - first, d, e.data_ptr(), k, share, width,
                            scratch.data_ptr(), best.data_ptr(), part.data_ptr() + 8 * first)

        in_shares(compare, len(block), LEAST_WORK // (k * d))


def _search_blocks(z: Tensor, e: Tensor, share: float, codes: Tensor) -> None:
    """The codes in parts; of equal scores that of an earlier part stays."""
    k, d = e.shape
    width = max(1, min(k, TABLE_BYTES // (4 * max(1, d)), max(FEWEST_CODES, BLOCK_BYTES // (4 * 4 * FEWEST_ROWS))))
    best = torch.full((len(z) if width < k else 0,), -torch.inf)
    for first in range(0, k, width):
        part = e[first:first + width]
        offset = _offsets(part, share)
        if offset.isinf().any():
            part = part.masked_fill(offset.isinf()[:, None], 0)

        def compare(at: int, to: int, part: Tensor = part, offset: Tensor = offset, first: int = first) -> None:
            _compare(z[at:to], part, offset, codes[at:to], best[at:to], first)

        if d < WIDE:
            in_shares(compare, len(z), max(FEWEST_ROWS, LEAST_WORK // (width * max(1, d))))
        else:
            compare(0, len(z))


def _compare(z: Tensor, e: Tensor, offset: Tensor, codes: Tensor, best: Tensor, first: int) -> None:
    """With the codes `first` and following. Operands of the convolution are views with channels last: no copies."""
    k, d = e.shape
    weight = e.view(k, 1, 1, d).permute(0, 3, 1, 2)                             # [K, D, 1, 1]
    rows = max(1, BLOCK_BYTES // (4 if d >= WIDE else 16) // k)                 # narrow: one block a thread
    for at in range(0, len(z), rows):
        block, part = z[at:at + rows].float().contiguous(), codes[at:at + rows]
        if len(part) < FEWEST_ROWS:
            block = F.pad(block, (0, 0, 0, FEWEST_ROWS - len(part)))
        if d < WIDE:
            scores = torch.addmm(offset, block, e.T)                            # [rows, K]
        else:
            pixels = block.view(1, 1, len(block), d).permute(0, 3, 1, 2)        # [1, D, 1, rows]
            scores = F.conv2d(pixels, weight, offset).permute(0, 2, 3, 1).reshape(-1, k)
        found = torch.from_numpy(scores[: len(part)].numpy().argmax(1))
        if len(best):
            value, before = scores.gather(1, found[:, None])[:, 0], best[at:at + rows]
            better = value > before
            part[better], before[better] = found[better] + first, value[better]
        else:
            part.copy_(found)


def _offsets(e: Tensor, share: float) -> Tensor:
    """share * |e|^2 [K]; minus infinity where the length is not finite."""
    squares = e.square().sum(1)
    return torch.where(squares.isfinite(), squares.mul(share), -torch.inf)


def _search_cuda(z: Tensor, e: Tensor, share: float) -> Tensor:
    search = None if switched_off() else _fused(z.device)
    return (search or _search_blocks_cuda)(z, e, share)


@functools.cache
def _fused(device: torch.device) -> Callable[[Tensor, Tensor, float], Tensor] | None:
    """The search in Triton; None, and a line in the log, where there is no Triton or it fails on the device."""
    try:
        from implementations.search import triton_nearest
        if triton_nearest.works(device):
            return triton_nearest.search
        _log.warning("the search in Triton gives wrong codes on %s and is not used", device)
    except Exception as error:          # what a compiler and a driver raise has no common class
        _log.debug("the search on %s runs without Triton: %s", device, error)
    return None


def _search_blocks_cuda(z: Tensor, e: Tensor, share: float) -> Tensor:
    """As _search_blocks, and nothing waits for the device."""
    codes, best = torch.zeros(len(z), dtype=torch.int64, device=z.device), z.new_full((len(z),), -torch.inf).float()
    width = max(1, min(len(e), CODES_CUDA, TABLE_BYTES_CUDA // (4 * max(1, e.shape[1]))))
    rows = max(1, min(BLOCK_BYTES_CUDA // (4 * width), TABLE_BYTES_CUDA // (4 * max(1, e.shape[1]))))
    for first in range(0, len(e), width):
        part = e[first:first + width]
        offset = _offsets(part, share)
        part = part.masked_fill(offset.isinf()[:, None], 0)
        for block, code, before in zip(z.split(rows), codes.split(rows), best.split(rows), strict=True):
            value, found = torch.addmm(offset, block.float(), part.T).max(1)
            better = value > before
            code.copy_(torch.where(better, found + first, code))
            before.copy_(torch.where(better, value, before))
    return codes
