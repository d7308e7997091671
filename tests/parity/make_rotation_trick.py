"""Goldens of the rotation trick in both released forms and of the reflection: cfifty/rotation_trick at commit 99104924a2a6.

    python tests/parity/make_rotation_trick.py CHECKOUT

`vector` is the rotation of the VQ-VAE experiments, `direction`, `reflection` and `no_scale` are `encode` of the VQGAN
patch with each of its switches, run on fixed latents with a quantizer that hands out given codes.
"""

from types import SimpleNamespace

import torch
from codebook_recording import D, K, checkout, load, maps, rows, save, table
from torch import nn

folder = checkout()
vae = load(folder / "src/models/vq_vae.py", "pyprojroot", "diffusers.models.autoencoders.vae",
           "taming.modules.diffusionmodules.model", "src.models.model_utils",
           "src.local_vector_quantize_pytorch.vector_quantize_pytorch").VQVAE
gan = load(folder / "exp_weights_and_configs/table_3/rot_vqgan.py", "pytorch_lightning",
           "taming.modules.vqvae.quantize", "ldm.modules.diffusionmodules.model",
           "ldm.modules.distributions.distributions", "ldm.util", "ldm.models.enhancing_autoencoders",
           "ldm.models.taming_fsq")
published = next(value for value in vars(gan).values()
                 if isinstance(value, type) and "get_reflection" in vars(value))
book = table(2)


def straight_through(z: torch.Tensor) -> tuple:
    """What the patched quantizers hand out: nearest codes, gradient passed straight through."""
    flat = z.permute(0, 2, 3, 1).reshape(-1, D)
    codes = torch.cdist(flat.detach(), book).argmin(1)
    q = book[codes].reshape(*z.shape[:1], *z.shape[2:], D).permute(0, 3, 1, 2)
    return z + (q - z).detach(), torch.zeros(()), (None, None, codes)


class Whole(nn.Module):
    """The VQ-VAE's forward, with its networks taken out: what the decoder gets is kept."""

    cosine = False
    pre_quant_proj = post_quant_proj = encoder = staticmethod(lambda x: x)
    get_very_efficient_rotation = staticmethod(vae.get_very_efficient_rotation)

    @staticmethod
    def vq(z):
        q, loss, (_, _, codes) = straight_through(z)
        return q, codes, loss

    def decoder(self, x):
        self.handed = x
        return x


cases = {}
for case in ("vector", "direction", "reflection", "no_scale"):
    z = maps(1).requires_grad_()
    if case == "vector":
        model = Whole()
        vae.forward(model, z, rot=True)
        quantized, codes = model.handed, straight_through(z)[2][2]
    else:
        model = SimpleNamespace(
            encoder=lambda x: x, quant_conv=lambda x: x, quantize=straight_through, rot_trick=case == "direction",
            ref_trick=case == "reflection", no_grad_scale=case == "no_scale", get_rotation=published.get_rotation,
            get_reflection=published.get_reflection)
        quantized, _, (_, _, codes) = published.encode(model, z)
    toward = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(99))
    gradient, = torch.autograd.grad((quantized * toward).sum(), z)
    cases[case] = {"codes": codes, "latents": rows(z), "table": book, "toward": rows(toward),
                   "quantized": rows(quantized), "latents_grad": rows(gradient)}
assert len(book) == K
save("rotation_trick", cases)
