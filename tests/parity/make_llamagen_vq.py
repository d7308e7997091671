"""Goldens of the VQ with unit latents and codes, and its entropy loss: FoundationVision/LlamaGen at commit ce98ec41803a.

    python tests/parity/make_llamagen_vq.py CHECKOUT

The entropy weight is the repository's argument; 0.1 where it is switched on.
"""

from codebook_recording import D, K, backward, checkout, load, maps, save, table

published = load(checkout() / "tokenizer/tokenizer_image/vq_model.py")
cases = {}
for case, unit, share in (("unit", True, 0.0), ("unit_entropy", True, 0.1), ("plain_entropy", False, 0.1)):
    quantizer = published.VectorQuantizer(K, D, 0.25, share, unit, show_usage=False)
    quantizer.train()
    scale = 0.1 if case == "plain_entropy" else 0.5
    quantizer.embedding.weight.data = table(2, scale=scale)
    z = maps(1, scale=scale).requires_grad_()
    quantized, (codebook, commitment, entropy, _), (_, _, codes) = quantizer(z)
    fields = {"codes": codes, "codebook": codebook, "commitment": commitment / 0.25}
    if share:
        fields["entropy"] = entropy / share
    cases[case] = fields | backward(quantized, codebook + commitment + entropy, z, quantizer.embedding.weight)
save("llamagen_vq", cases)
