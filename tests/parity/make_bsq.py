"""Goldens of binary spherical quantization: zhaoyue-zephyrus/bsq-vit at commit 37d212d2b43f.

    python tests/parity/make_bsq.py CHECKOUT

Latents are normalized before, as its model does. With `analytical` sample entropies the released code also takes the
batch entropy of single bits, whatever the size of a group: such cases are made with groups of 4 and are those of 1.
"""

import torch.nn.functional as F
from codebook_recording import D, backward, checkout, load, maps, save

published = load(checkout() / "transcoder/models/quantizer/bsq.py")
cases = {}
for case, how, sharpness, beta, gamma in (("groups", "group", 1.0, 0.0, 1.0), ("bits", "analytical", 1.0, 0.0, 1.0),
                                          ("sharp", "group", 30.0, 0.5, 0.7)):
    quantizer = published.BinarySphericalQuantizer(
        embed_dim=D, beta=beta, gamma0=1.0, gamma=gamma, zeta=0.1, l2_norm=True, group_size=4, inv_temperature=sharpness,
        persample_entropy_compute=how).train()
    z = maps(1).requires_grad_()
    quantized, loss, told = quantizer(F.normalize(z, dim=1))
    cases[case] = {"codes": told["indices"], "loss": loss, **backward(quantized, loss, z, None)}
save("bsq", cases)
