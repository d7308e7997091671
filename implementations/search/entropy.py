"""Entropy regulariser of soft assignments, streamed over blocks of rows with recomputation in the backward."""

from __future__ import annotations

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.distributed import mean_across

BLOCK_BYTES = 16 * 2**20


def assignment_entropy(z: Tensor, table: Tensor, temperature: float, *, product: bool = False) -> Tensor:
    """H(p_i) averaged over samples minus H of the mean p, with p_i = softmax(-|z_i - e|^2 / temperature).

    z [N, D], table [K, D] -> scalar. Low when each sample is sure and all codes are used (Eq. 4 of
    arXiv:2310.05737, on squared distances as in the VQ baselines that share it). The mean p is over all processes.
    product: p_i = softmax(z_i . e / temperature) instead.
    """
    k = len(table)
    norms = table.square().sum(1)

    def block_sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        products = rows @ table.T
        logits = (products if product else 2 * products - norms) / temperature      # |z|^2 is constant within a row
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        return -(p * log_p).sum(), p.sum(0)

    size = max(1, BLOCK_BYTES // (4 * k))
    sample = z.new_zeros(())
    mass = z.new_zeros(k)
    for rows in z.split(size):
        entropy, share = checkpoint(block_sums, rows, use_reentrant=False)
        sample, mass = sample + entropy, mass + share
    mean = mean_across(mass / len(z))
    return mean_across(sample / len(z)) + (mean * (mean + 1e-5).log()).sum()
