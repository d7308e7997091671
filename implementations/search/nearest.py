"""Nearest code, exactly, without the N x K table.

argmin |z - e|^2 = argmax (z.e - |e|^2 / 2): no |z|^2, no square root. Scores live one block at a time, and blocks are
limited over codes as well as over rows, so that the memory of a search does not depend on N, K or D; in fp32 whatever
autocast says, because bf16 products give 0.5-6 % wrong codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from implementations.search.precision import without_autocast

BLOCK_BYTES = 4 * 2**20         # CPU: flat between 2 and 8 MiB; above, every temporary is mapped anew
BLOCK_BYTES_CUDA = 256 * 2**20
TABLE_BYTES = 4 * 2**20         # codes that are compared at a time
FEWEST_ROWS = 16                # products of fewer rows take other roads, on which equal codes score differently


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> codes int64 [N] by squared Euclidean distance.

    Lowest index where scores are equal. Scores are fp32: two codes that are nearest to within rounding (also equal
    ones at different places of the table) may come out either way, in the same way for the same shapes. A code whose
    squared length is not finite is never chosen; a latent with NaN gets code 0.
    """
    return _search(latents, codebook, -0.5)


@torch.no_grad()
def largest_product(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> codes int64 [N] by the largest z.e, lengths as they are; see `nearest_codes`."""
    return _search(latents, codebook, 0.0)


def _search(latents: Tensor, codebook: Tensor, share: float) -> Tensor:
    """argmax over k of z.e_k + share * |e_k|^2."""
    n, k = len(latents), len(codebook)
    if latents.is_meta:
        return torch.empty(n, dtype=torch.int64, device="meta")
    with without_autocast(latents):
        z, e = latents.detach(), codebook.detach().float().contiguous()
        if z.is_cuda:
            offset = _offsets(e, share)
            e = e.masked_fill(offset.isinf()[:, None], 0)
            rows = max(1, BLOCK_BYTES_CUDA // (4 * k))
            return torch.cat([torch.addmm(offset, block.float(), e.T).argmax(1) for block in z.split(rows)])
        codes = torch.zeros(n, dtype=torch.int64)
        width = max(1, min(k, TABLE_BYTES // (4 * max(1, e.shape[1]))))
        best = torch.full((n,), -torch.inf) if width < k else None
        for first in range(0, k, width):
            _search_part(z, e[first:first + width], share, codes, best, first)
    return codes


def _offsets(e: Tensor, share: float) -> Tensor:
    """share * |e|^2 [K]; minus infinity where the length is not finite."""
    squares = e.square().sum(1)
    return torch.where(squares.isfinite(), squares.mul(share), -torch.inf)


def _search_part(z: Tensor, e: Tensor, share: float, codes: Tensor, best: Tensor | None, first: int) -> None:
    """Compare with the codes `first` and following. The product as a 1x1 convolution runs faster than the bundled
    BLAS, and numpy's arg-max along rows is vectorised where torch's is not. Both operands are views with channels
    last: nothing is copied."""
    k = len(e)
    offset = _offsets(e, share)
    unusable = offset.isinf()
    if unusable.any():
        e = e.masked_fill(unusable[:, None], 0)
    weight = e.view(k, 1, 1, -1).permute(0, 3, 1, 2)                        # [K, D, 1, 1]
    rows = max(1, BLOCK_BYTES // (4 * k))
    for at in range(0, len(z), rows):
        block = z[at:at + rows].float().contiguous()
        part = codes[at:at + rows]
        if len(part) < FEWEST_ROWS:
            block = F.pad(block, (0, 0, 0, FEWEST_ROWS - len(part)))
        pixels = block.view(1, 1, len(block), -1).permute(0, 3, 1, 2)       # [1, D, 1, rows]
        scores = F.conv2d(pixels, weight, offset).permute(0, 2, 3, 1).reshape(-1, k)    # [rows, K]
        found = torch.from_numpy(scores[: len(part)].numpy().argmax(1))
        if best is None:
            part.copy_(found)
            continue
        value = scores.gather(1, found[:, None])[:, 0]
        before = best[at:at + rows]
        better = value > before                                             # equal: the lower index stays
        part[better] = found[better] + first
        before[better] = value[better]
