"""Goldens of Open-MAGVIT2's LFQ and of IBQ: TencentARC/SEED-Voken at commit b9a17eac8e2c.

    python tests/parity/make_seed_voken.py CHECKOUT

Losses carry the weights of the released configurations. At a scale of 0.5 the softmax of temperature 0.01 is saturated
and next to no gradient comes through it: the cases `small` have latents at which it is not.
"""

import torch
from codebook_recording import D, K, backward, checkout, load, maps, save, table

folder = checkout() / "src"
lfq = load(folder / "Open_MAGVIT2/modules/vqvae/lookup_free_quantize.py")
ibq = load(folder / "IBQ/modules/vqvae/quantize.py")
cases = {}
for case, scale, factorized in (("lfq", 0.5, False), ("lfq_small", 0.005, False), ("lfq_levels", 0.01, True)):
    quantizer = lfq.LFQ(dim=D, codebook_size=2**D, token_factorization=factorized, factorized_bits=[D // 2, D // 2])
    z = maps(1, scale=scale).requires_grad_()
    (quantized, entropy, codes), parts = quantizer.train()(z, return_loss_breakdown=True)
    loss = 0.1 * entropy + 0.25 * parts.commitment
    cases[case] = {"codes": torch.stack(codes, -1) if factorized else codes, "entropy": entropy,
                   "commitment": parts.commitment, "loss": loss, **backward(quantized, loss, z, None)}
for case, scale, temperature in (("ibq", 0.5, None), ("ibq_entropy", 0.5, 0.01), ("ibq_small", 0.05, 0.01)):
    quantizer = ibq.IndexPropagationQuantize(K, D, beta=0.25, use_entropy_loss=temperature is not None,
                                             entropy_temperature=temperature)
    quantizer.embedding.weight.data = table(2)
    z = maps(1, scale=scale).requires_grad_()
    quantized, loss, (_, _, codes) = quantizer.train()(z)
    fields = {"codes": codes}
    if temperature is not None:
        loss, _, _, fields["entropy"] = loss
        loss = loss + 0.05 * fields["entropy"]
    cases[case] = {**fields, "loss": loss, **backward(quantized, loss, z, quantizer.embedding.weight)}
save("seed_voken", cases)
