"""Nearest code, exactly, without the N x K table.

argmin |z - e|^2 = argmax (z.e - |e|^2 / 2): no |z|^2, no square root. Scores live one block at a time; in fp32
whatever autocast says, because bf16 products give 0.5-6 % wrong codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from implementations.search.precision import without_autocast

BLOCK_BYTES = 4 * 2**20         # CPU: flat between 2 and 8 MiB; above, every temporary is mapped anew
BLOCK_BYTES_CUDA = 256 * 2**20
FEWEST_ROWS = 16                # products of fewer rows take other roads, on which equal codes score differently


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> codes int64 [N] by squared Euclidean distance.

    Lowest index where scores are equal. Scores are fp32: two codes that are nearest to within rounding (also equal
    ones at different places of the table) may come out either way, in the same way for the same shapes.
    """
    n, k = len(latents), len(codebook)
    if latents.is_meta:
        return torch.empty(n, dtype=torch.int64, device="meta")
    with without_autocast(latents):
        z, e = latents.detach().float(), codebook.detach().float().contiguous()
        offset = e.square().sum(1).mul_(-0.5)                               # [K]
        if z.is_cuda:
            rows = max(1, BLOCK_BYTES_CUDA // (4 * k))
            return torch.cat([torch.addmm(offset, block, e.T).argmax(1) for block in z.split(rows)])
        # CPU: the product as a 1x1 convolution runs faster than the bundled BLAS, and numpy's arg-max along rows
        # is vectorised where torch's is not. Both operands are views with channels last: nothing is copied.
        codes = torch.empty(n, dtype=torch.int64)
        weight = e.view(k, 1, 1, -1).permute(0, 3, 1, 2)                    # [K, D, 1, 1]
        rows = max(1, BLOCK_BYTES // (4 * k))
        for block, part in zip(z.contiguous().split(rows), codes.split(rows), strict=True):
            if len(part) < FEWEST_ROWS:
                block = F.pad(block, (0, 0, 0, FEWEST_ROWS - len(part)))
            pixels = block.view(1, 1, len(block), -1).permute(0, 3, 1, 2)   # [1, D, 1, rows]
            scores = F.conv2d(pixels, weight, offset).permute(0, 2, 3, 1).reshape(-1, k)    # [rows, K]
            part.copy_(torch.from_numpy(scores[: len(part)].numpy().argmax(1)))
    return codes
