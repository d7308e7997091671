"""Goldens of SF-DiVeQ and of its first codes: AaltoML/DiVeQ at commit 9b288d081e14.

    python tests/parity/make_sf_diveq.py CHECKOUT

Torch's generator is seeded with 1000 before the forward. `start`: two steps without quantization and four whose
latents become codes (its counter begins at 1, so that 7 means six).
"""

import torch
from codebook_recording import SIDE, B, D, K, checkout, load, maps, rows, save, table

published = load(checkout() / "vqvae_compression" / "sf_diveq.py").SFDIVEQ
quantizer = published(K, D, noise_var=0.01, skip_iters=0, avg_iters=0, allow_warning=False)
quantizer.codebook.data = table(2)
z = rows(maps(1)).flatten(0, 1).requires_grad_()
torch.manual_seed(1000)
quantized, codes, _ = quantizer(z)
toward = torch.randn(z.shape, generator=torch.Generator().manual_seed(99))
grads = torch.autograd.grad((quantized * toward).sum(), [z, quantizer.codebook])
shape = (B, SIDE * SIDE, D)
cases = {"training": {
    "codes": codes, "latents": z.view(shape), "table": quantizer.codebook, "toward": toward.view(shape),
    "quantized": quantized.view(shape), "latents_grad": grads[0].view(shape), "table_grad": grads[1]}}

quantizer = published(K - 1, D, skip_iters=7, avg_iters=4, allow_warning=False)
steps = [rows(maps(50 + step)) for step in range(6)]
for step in steps:
    quantizer(step.flatten(0, 1))
cases["start"] = {"latents": torch.stack(steps), "table": quantizer.codebook}
save("sf_diveq", cases)
