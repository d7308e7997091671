"""Goldens of the Wasserstein losses: VQ-Research/Wasserstein-VQ at commit 777e310640f6, its VQGAN and its VAR form.

    python tests/parity/make_wasserstein_vq.py CHECKOUT

The distance alone, with the queue's content given: the VQGAN form divides both sides by the largest standard deviation
of the latents, the VAR form multiplies the latents' covariance by 0.25.
"""

import sys
from types import SimpleNamespace

import torch
from codebook_recording import D, checkout, load, maps, rows, save, table

folder = checkout() / "code"
latents = rows(maps(1, batch=4)).flatten(0, 1) * torch.linspace(0.4, 2, D) + 0.3
cases = {}
for case, place, name in (("vqgan", "VQGAN", "WassersteinVectorQuantizer"), ("var", "VAR", "WassersteinVARQuantizer")):
    sys.modules.pop("models.base_quantizer", None)
    published = load(folder / place / "models/wasserstein_quantizer.py", "models.base_quantizer")
    book = table(2).requires_grad_()
    model = SimpleNamespace(embedding=SimpleNamespace(weight=book))
    loss = getattr(published, name).calc_wasserstein_loss(model, latents)
    cases[case] = {"latents": latents, "table": book, "loss": loss, "table_grad": torch.autograd.grad(loss, book)[0]}
save("wasserstein_vq", cases)
