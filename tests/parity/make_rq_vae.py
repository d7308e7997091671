"""Golden vectors of RQ-VAE's bottleneck: kakaobrain/rq-vae-transformer at 341395e562ac347f5eb62db9f5f08b9f2cc42a60.

Usage: python make_rq_vae.py CHECKOUT. In eval, where its table does not move within a forward.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def main(checkout: Path) -> None:
    file = checkout / "rqvae" / "models" / "rqvae" / "quantizations.py"
    spec = importlib.util.spec_from_file_location("quantizations", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    made = {}
    for shared in (True, False):
        theirs = module.RQBottleneck((3, 4, 5), (3, 4, 3), 16, shared_codebook=shared).eval()
        z = (1.5 * torch.randn(2, 3, 4, 5)).requires_grad_()
        mix = torch.randn(2, 3, 4, 5)
        quantized, commitment, codes = theirs(z)
        gradient, = torch.autograd.grad((quantized * mix).sum() + 0.25 * commitment, z)
        books = torch.stack([book.weight[:-1] for book in theirs.codebooks])
        found = {"z": z, "mix": mix, "books": books, "quantized": quantized, "commitment": commitment, "codes": codes,
                 "gradient": gradient}
        made |= {f"{'shared' if shared else 'own'}.{k}": v.detach().numpy() for k, v in found.items()}
    np.savez_compressed(HERE / "rq_vae.npz", **made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
