"""Goldens of DiVeQ, its detached variant and its replacement of codes: AaltoML/DiVeQ at commit 9b288d081e14.

    python tests/parity/make_diveq.py CHECKOUT

Torch's generator is seeded with 1000 before each forward.
"""

import torch
from codebook_recording import SIDE, B, D, K, checkout, load, maps, rows, save, table

folder = checkout() / "vqgan_generation"
cases = {}
for case, file, name in (("diveq", "diveq.py", "DIVEQ"), ("detach", "diveq_detach.py", "DIVEQDetach")):
    keywords = {"noise_var": 0.01} if case == "diveq" else {}
    quantizer = getattr(load(folder / file), name)(K, D, allow_warning=False, verbose=False, **keywords)
    quantizer.codebook.data = table(2)
    z = rows(maps(1)).flatten(0, 1).requires_grad_()
    torch.manual_seed(1000)
    quantized, codes, _ = quantizer(z)
    toward = torch.randn(z.shape, generator=torch.Generator().manual_seed(99))
    grads = torch.autograd.grad((quantized * toward).sum(), [z, quantizer.codebook])
    shape = (B, SIDE * SIDE, D)
    cases[case] = {"codes": codes, "latents": z.view(shape), "table": quantizer.codebook, "toward": toward.view(shape),
                   "quantized": quantized.view(shape), "latents_grad": grads[0].view(shape), "table_grad": grads[1]}

quantizer = load(folder / "diveq.py").DIVEQ(K, D, replacement_iters=4, discard_threshold=0.5, perturb_eps=1e-9,
                                            allow_warning=False, verbose=False)
quantizer.codebook.data, quantizer.codebook.requires_grad = table(2), False
steps = [rows(maps(50 + step)) for step in range(4)]
codes = []
for z in steps:
    codes.append(quantizer(z.flatten(0, 1))[1])
cases["replacement"] = {"table": table(2), "latents": torch.stack(steps), "codes": torch.stack(codes),
                        "last_table": quantizer.codebook}
save("diveq", cases)
