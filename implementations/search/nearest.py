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


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> codes int64 [N] by squared Euclidean distance; lowest index on ties."""
    n, k = len(latents), len(codebook)
    if latents.is_meta:
        return torch.empty(n, dtype=torch.int64, device="meta")
    with without_autocast(latents):
        z, e = latents.detach().float(), codebook.detach().float()
        offset = e.square().sum(1).mul_(-0.5)                               # [K]
        if z.is_cuda:
            rows = max(1, BLOCK_BYTES_CUDA // (4 * k))
            return torch.cat([torch.addmm(offset, block, e.T).argmax(1) for block in z.split(rows)])
        # CPU: the product as a 1x1 convolution runs at twice the rate of the bundled BLAS, and numpy's
        # arg-max along rows is vectorised where torch's is not.
        codes = torch.empty(n, dtype=torch.int64)
        weight = e[:, :, None, None]                                        # [K, D, 1, 1]
        rows = max(1, BLOCK_BYTES // (4 * k))
        for start in range(0, n, rows):
            block = z[start : start + rows]
            pixels = block.T[None, :, :, None]                              # [1, D, rows, 1], channels-last
            scores = F.conv2d(pixels.contiguous(memory_format=torch.channels_last), weight, offset)
            scores = scores.permute(0, 2, 3, 1).reshape(len(block), k)      # [rows, K]
            codes[start : start + rows] = torch.from_numpy(scores.numpy().argmax(1))
    return codes
