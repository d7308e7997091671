"""Goldens of VectorQuantizer2, both places of beta: CompVis/taming-transformers at commit 3ba01b241669.

    python tests/parity/make_taming_vq.py CHECKOUT
"""

from codebook_recording import D, K, backward, checkout, load, maps, save, table

published = load(checkout() / "taming/modules/vqvae/quantize.py")
cases = {}
for legacy in (True, False):
    quantizer = published.VectorQuantizer2(K, D, beta=0.25, legacy=legacy)
    quantizer.embedding.weight.data = table(2)
    z = maps(1).requires_grad_()
    quantized, loss, (_, _, codes) = quantizer(z)
    cases["legacy" if legacy else "fixed"] = {
        "codes": codes, "loss": loss, **backward(quantized, loss, z, quantizer.embedding.weight)}
save("taming_vq", cases)
