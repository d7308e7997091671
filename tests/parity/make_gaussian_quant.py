"""Goldens of both Gaussian quantizers: tongdaxu/VQ-VAE-from-Gaussian-VAE at commit 1910dc2b5cf0.

    python tests/parity/make_gaussian_quant.py CHECKOUT

Nine training steps at three scales of the latents, below, above and around log2 K bits; torch's generator is seeded
with 1000 before each. Multipliers are those after the step. Needs scipy.
"""

import torch
from codebook_recording import checkout, load, maps, rows, save

WIDTH, CODES = 4, 64
published = load(checkout() / "pit" / "quantization" / "gaussian.py")
quantizers = {
    "first": published.GaussianQuantRegularizer("blc", CODES, group=WIDTH),
    "second": published.GaussianQuantRegularizer2(WIDTH, CODES, dim_idx=2),
}
scales = [0.3] * 3 + [2.0] * 3 + [1.2] * 3
steps = [rows(maps(60 + step, dim=2 * WIDTH, scale=scale)).contiguous() for step, scale in enumerate(scales)]
cases = {"inputs": {"latents": torch.stack(steps), "table": quantizers["first"].prior_samples}}
for case, quantizer in quantizers.items():
    found = {name: [] for name in ("loss", "lam", "lam_min", "lam_max", "latents_grad")}
    for step in steps:
        z = step.clone().requires_grad_()
        torch.manual_seed(1000)
        quantized, info = quantizer.train()(z)
        found["loss"].append(info["kl_loss"].detach())
        found["latents_grad"].append(torch.autograd.grad(quantized.sum() + info["kl_loss"], z)[0])
        for name in ("lam", "lam_min", "lam_max"):
            found[name].append(torch.tensor(getattr(quantizer, name)))
    codes = [quantizer.eval()(step)[1]["indices"] for step in steps]
    cases[case] = {name: torch.stack(values) for name, values in found.items()}
    cases[case] |= {"quantized": quantized, "codes": torch.stack(codes)}
save("gaussian_quant", cases)
