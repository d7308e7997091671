"""Goldens of a loaded table behind a projector: zh460045050/VQGAN-LC at commit 4708958f2257.

    python tests/parity/make_vqgan_lc.py CHECKOUT

Its loss has weight 1 on the commitment and 0.33 on the codebook term; only their sum is handed out.
"""

from types import SimpleNamespace

import torch
from codebook_recording import D, K, backward, checkout, load, maps, save, table
from torch import nn

published = load(checkout() / "vqgan-gpt-lc/models/models_vq.py", "models.discriminator", "models.lpips",
                 "models.encoder_decoder").VQModel
torch.manual_seed(5)
width = 12
rows = nn.Embedding(K, width)
rows.weight.data = table(2, dim=width)
cases = {}
for case, projector in (("linear", nn.Linear(width, D)),):
    nn.init.normal_(projector.weight, std=D**-0.5)
    model = SimpleNamespace(e_dim=D, args=SimpleNamespace(use_cblinear=1), codebook_projection=projector,
                            tok_embeddings=rows, quantize_type="default", remap=None, sane_index_shape=False)
    z = maps(1).requires_grad_()
    quantized, loss, (_, _, codes) = published.quantize(model, z)
    grads = torch.autograd.grad(loss, list(projector.parameters()), retain_graph=True)
    cases[case] = {"codes": codes, "loss": loss, **backward(quantized, loss, z, None), "rows": rows.weight,
                   "weight": projector.weight, "bias": projector.bias, "weight_grad": grads[0], "bias_grad": grads[1]}
save("vqgan_lc", cases)
