"""Goldens of zero-debiased EMA, alone and with CVQ's random anchor: hoanhle/vqvae at commit abf0f98ff159.

    python tests/parity/make_hoanhle_ema.py CHECKOUT

Case `pool` has fewer latents than codes, so that anchors come from the pool. Torch's generator is seeded before each
forward with the number of the step, which is recorded as `seeds`.
"""

import torch
from codebook_recording import D, K, checkout, load, maps, rows, save, table

published = load(checkout() / "models/vqvae.py", "utils.torch_utils")
cases = {}
for case, online, size, batch, side in (("ema", False, K, 2, 4), ("anchor", True, K, 2, 4), ("pool", True, K, 2, 2),
                                        ("gradient_anchor", True, K, 2, 4)):
    ema = case != "gradient_anchor"
    quantizer = published.VectorQuantizer(D, size, ema, 0.99, 1e-5, online_update=online, anchor="random")
    quantizer.train()
    first = table(2, size=size)
    quantizer.e_i_ts.data = first.T.clone()
    pool = quantizer.pool.features.clone()
    steps = [maps(20 + step, batch=batch, side=side) for step in range(6)]
    codes, tables, commitment = [], [], []
    for step, z in enumerate(steps):
        torch.manual_seed(1000 + step)
        quantizer(z)
        codes.append(quantizer.last_encoding_indices.flatten())
        commitment.append(quantizer.last_commitment_loss.detach())
        tables.append(quantizer.e_i_ts.detach().T.clone())
    cases[case] = {"table": first, "pool": pool, "latents": torch.stack([rows(z) for z in steps]),
                   "codes": torch.stack(codes), "commitment": torch.stack(commitment), "tables": torch.stack(tables),
                   "seeds": torch.arange(1000, 1000 + len(steps))}
    if online:
        cases[case]["use"] = quantizer.embed_prob
save("hoanhle_ema", cases)
