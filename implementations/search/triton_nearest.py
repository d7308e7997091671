"""The search on CUDA in one pass: products, arg-max and, where asked for, counts and sums of each code.

A program takes ROWS latents and goes over the codes, CODES at a time, and over their width, DEPTH at a time; scores
stay in registers. Every place of the tile keeps the best score it has seen and the tile that was in: an arg-max across
threads happens once, at the end, rather than in every tile. Beyond codes and statistics it writes K numbers, the
lengths of the codes.

Products are fp32 (`ieee`, no TF32), each score adds up in one order whichever the code and the row, so equal codes
score equally and the lowest index wins. Tiles are fixed: nothing is tuned, so nothing depends on what ran before.

How far this was tested: on no GPU. It was run under Triton's interpreter only, on the CPU, and compiled for sm_80 and
sm_90; its speed is not known. nearest.py uses it only where `works` finds it agrees with torch on the device at hand.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64
CODES = 64
WARPS = 4                       # 32 scores a thread, as many best ones and their tiles: 168 to 255 registers on sm_90
DEEPEST = 32                    # narrower latents take the next power of two, from 16 on, the least that a dot takes


@triton.jit
def _weigh(e, offset, share, K, D: tl.constexpr, CODES: tl.constexpr, DEPTH: tl.constexpr):
    """offset [K] = share * |e|^2; minus infinity where the length is not finite."""
    code = tl.program_id(0) * CODES + tl.arange(0, CODES)
    depth = tl.arange(0, DEPTH)
    squares = tl.zeros([CODES], tl.float32)
    for d in range(0, D, DEPTH):
        inside = (code < K)[:, None] & (d + depth < D)[None, :]
        part = tl.load(e + code.to(tl.int64)[:, None] * D + (d + depth)[None, :], mask=inside, other=0.0)
        squares += tl.sum(part * part, 1)
    tl.store(offset + code, tl.where(squares < float("inf"), squares * share, float("-inf")), mask=code < K)


@triton.jit
def _search(z, e, offset, codes, counts, sums, N, K, row_stride, column_stride,
            D: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, DEPTH: tl.constexpr):
    """codes [N] = argmax over k of z.e_k + offset_k. No score that is NaN or minus infinity is ever chosen."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column, depth = tl.arange(0, CODES), tl.arange(0, DEPTH).to(tl.int64)
    latents, there = z + row[:, None] * row_stride, (row < N)[:, None]
    if D <= DEPTH:
        inside = there & (depth < D)[None, :]
        whole = tl.load(latents + depth[None, :] * column_stride, mask=inside, other=0.0).to(tl.float32)
    best = tl.full([ROWS, CODES], float("-inf"), tl.float32)
    tile = tl.zeros([ROWS, CODES], tl.int32)
    for first in range(0, K, CODES):
        code = first + column
        table = e + code.to(tl.int64)[None, :] * D + depth[:, None]                 # [DEPTH, CODES]
        real = (code < K)[None, :]
        score = tl.zeros([ROWS, CODES], tl.float32)
        if D <= DEPTH:
            part = tl.load(table, mask=real & (depth < D)[:, None], other=0.0)
            score = tl.dot(whole, part, score, input_precision="ieee")
        else:
            for d in range(0, D, DEPTH):
                inside = there & (d + depth < D)[None, :]
                left = tl.load(latents + (d + depth)[None, :] * column_stride, mask=inside, other=0.0).to(tl.float32)
                part = tl.load(table + d, mask=real & (d + depth < D)[:, None], other=0.0)
                score = tl.dot(left, part, score, input_precision="ieee")
        score += tl.load(offset + code, mask=code < K, other=float("-inf"))[None, :]
        better = score > best                       # of equal scores that of the earlier tile stays
        best = tl.where(better, score, best)
        tile = tl.where(better, first, tile)
    top = tl.max(best, 1)
    code = tl.min(tl.where(best == top[:, None], tile + column[None, :], 2147483647), 1)
    tl.store(codes + row, code.to(tl.int64), mask=row < N)
    if counts is not None:
        tl.atomic_add(counts + code, tl.full([ROWS], 1, counts.dtype.element_ty), mask=row < N, sem="relaxed")
    if sums is not None:
        chosen = sums + code.to(tl.int64)[:, None] * D + depth[None, :]
        for d in range(0, D, DEPTH):
            inside = there & (d + depth < D)[None, :]
            left = tl.load(latents + (d + depth)[None, :] * column_stride, mask=inside, other=0.0).to(tl.float32)
            tl.atomic_add(chosen + d, left, mask=inside, sem="relaxed")


def tile_depth(d: int) -> int:
    """DEPTH for latents of width d."""
    return min(DEEPEST, max(16, triton.next_power_of_2(d)))


@torch.no_grad()
def search(z: Tensor, e: Tensor, share: float, counts: Tensor | None = None, sums: Tensor | None = None) -> Tensor:
    """argmax over k of z.e_k + share * |e_k|^2: latents z [N, D], codes e [K, D] -> int64 [N].

    z: floating point of any kind and strides, computed with in fp32. e: fp32, contiguous.
    counts, sums: in place, in the same pass, counts [K] += hits of each code and sums [K, D] (fp32, contiguous) += the
        latents that chose it. Both are atomic additions in whatever order threads arrive: fp32 sums differ in their
        last digits from run to run. (fp32 counts do not, below 2^24.)

    Lowest index where scores are equal. A code whose squared length is not finite is never chosen (all of them: code
    0); a latent with NaN gets code 0, one with an infinity some code. Raises ValueError for tables of another form.
    """
    (n, d), k = z.shape, len(e)
    for name, table, shape in (("e", e, (k, d)), ("counts", counts, (k,)), ("sums", sums, (k, d))):
        if table is not None and (table.shape != shape or not table.is_contiguous() or table.device != z.device):
            raise ValueError(f"{name} must be contiguous, of shape {shape} on {z.device}, "
                             f"got {tuple(table.shape)} on {table.device}")
        if table is not None and name != "counts" and table.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {table.dtype}")
    codes = torch.empty(n, dtype=torch.int64, device=z.device)
    if n == 0:
        return codes
    offset = torch.empty(k, device=z.device)
    depth = tile_depth(d)
    with torch.cuda.device_of(z):                   # Triton launches on the current device, not on that of its arguments
        _weigh[triton.cdiv(k, CODES),](e, offset, share, k, D=d, CODES=CODES, DEPTH=depth, num_warps=WARPS)
        _search[triton.cdiv(n, ROWS),](z, e, offset, codes, counts, sums, n, k, z.stride(0), z.stride(1),
                                       D=d, ROWS=ROWS, CODES=CODES, DEPTH=depth, num_warps=WARPS)
    return codes


def works(device: torch.device) -> bool:
    """Whether it runs on the device and finds what torch finds, on whole numbers, where scores are exact and ties
    many. Compiles two sizes and waits for the device."""
    for n, d, k in ((70, 5, 150), (70, 40, 150)):
        numbers = torch.arange((n + k) * d, device=device).square().remainder(7).sub(3).float()
        z, e = numbers.view(n + k, d).split([n, k])
        scores = z.double() @ e.double().T - 0.5 * e.double().square().sum(1)
        if not torch.equal(search(z, e, -0.5), scores.argmax(1)):
            return False
    return True
