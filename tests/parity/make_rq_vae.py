"""Golden vectors of RQ-VAE's bottleneck: kakaobrain/rq-vae-transformer at 341395e562ac347f5eb62db9f5f08b9f2cc42a60.

Usage: python make_rq_vae.py CHECKOUT. The bottleneck in eval, where its table does not move within a forward; its codebook
alone in training, eight steps with restarts, with more and with fewer latents than codes, each step drawing from a seed.
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
    for case, latents in (("more", 40), ("fewer", 12)):
        torch.manual_seed(1)
        book = module.VQEmbedding(16, 5, decay=0.9).train()
        steps: dict[str, list[torch.Tensor]] = {}
        start = book.weight[:-1].clone()
        centres = torch.randn(4, 5)
        for step in range(8):
            z = centres[torch.arange(latents) % 4] * (step + 1) / 4 + 0.1 * torch.randn(latents, 5)
            torch.manual_seed(100 + step)
            embeds, codes = book(z)
            now = {"z": z, "codes": codes, "embeds": embeds, "tables": book.weight[:-1], "counts": book.cluster_size_ema,
                   "sums": book.embed_ema}
            for name, value in now.items():
                steps.setdefault(name, []).append(value.clone())
        made |= {f"{case}.{name}": torch.stack(values).detach().numpy() for name, values in steps.items()}
        made[f"{case}.start"] = start.detach().numpy()
    np.savez_compressed(HERE / "rq_vae.npz", **made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
