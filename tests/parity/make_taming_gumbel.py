"""Goldens of GumbelQuantize in training (hard and soft) and in evaluation: CompVis/taming-transformers at 3ba01b241669.

    python tests/parity/make_taming_gumbel.py CHECKOUT

Latents are images of one pixel, so that noise is drawn in the order of [N, K]; torch's generator is seeded with 1000
before each forward. Its kl is weighted with 5e-4.
"""

import torch
from codebook_recording import D, K, checkout, load, maps, rows, save, table

published = load(checkout() / "taming/modules/vqvae/quantize.py")
cases = {}
for case, hard, training in (("hard", True, True), ("soft", False, True), ("eval", True, False)):
    torch.manual_seed(3)
    quantizer = published.GumbelQuantize(D, D, K, straight_through=hard, temp_init=0.7).train(training)
    quantizer.embed.weight.data = table(2)
    z = maps(1, batch=32, side=1).requires_grad_()
    toward = torch.randn(32, 1, D, generator=torch.Generator().manual_seed(99))
    torch.manual_seed(1000)
    quantized, loss, _, logits = quantizer(z, return_logits=True)
    names = {"table": quantizer.embed.weight, "weight": quantizer.proj.weight, "bias": quantizer.proj.bias}
    cases[case] = {"loss": loss, "quantized": rows(quantized), "latents": rows(z), "toward": toward,
                   "likeliest": logits.argmax(1), **{k: v.flatten(1) if v.dim() > 1 else v for k, v in names.items()}}
    if training:
        found = torch.autograd.grad((quantized.flatten(2).transpose(1, 2) * toward).sum() + loss, [z, *names.values()])
        cases[case] |= {"latents_grad": rows(found[0]), "table_grad": found[1], "weight_grad": found[2].flatten(1),
                        "bias_grad": found[3]}
save("taming_gumbel", cases)
