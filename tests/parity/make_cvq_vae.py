"""Goldens of CVQ's anchors (closest, random, probrandom), both distances: lyndonzheng/CVQ-VAE at commit 04864b721665.

    python tests/parity/make_cvq_vae.py CHECKOUT

No optimizer moves codes between the steps. Torch's generator is seeded before each forward; the seeds are recorded, and
for `probrandom` the draws of each step. Case `random_pool` has fewer latents than codes; cases of the
same number of latents share table and latents, in `steps4` and `steps2` (their side).
"""

import torch
from codebook_recording import D, K, backward, checkout, load, maps, rows, save, table

published = load(checkout() / "quantise.py")
drawn = {}
multinomial = torch.multinomial


def recorded(probabilities: torch.Tensor, **keywords) -> torch.Tensor:
    result = multinomial(probabilities, **keywords)
    drawn.setdefault("draws", []).append(result.flatten())
    return result


torch.multinomial = recorded
cases = {}
for case, anchor, distance, side, once in (
    ("closest_cosine", "closest", "cos", 4, False), ("closest_l2", "closest", "l2", 4, False),
    ("random", "random", "cos", 4, False), ("random_pool", "random", "l2", 2, False),
    ("probabilistic_cosine", "probrandom", "cos", 4, False), ("probabilistic_l2", "probrandom", "l2", 4, False),
    ("first_batch", "closest", "l2", 4, True),
):
    quantizer = published.VectorQuantiser(K, D, 0.25, distance=distance, anchor=anchor, first_batch=once)
    quantizer.train()
    drawn.clear()
    first = table(2)
    quantizer.embedding.weight.data = first.clone()
    pool = quantizer.pool.features.clone()
    steps = [maps(30 + step, side=side) for step in range(3)]
    fields: dict[str, list] = {"codes": [], "tables": [], "loss": []}
    for step, z in enumerate(steps):
        torch.manual_seed(1000 + step)
        _, loss, (_, _, codes) = quantizer(z)
        for field, value in (("codes", codes), ("tables", quantizer.embedding.weight.detach().clone()),
                             ("loss", loss.detach())):
            fields[field].append(value)
    cases[case] = {field: torch.stack(values) for field, values in {**fields, **drawn}.items()}
    cases[case] |= {"pool": pool, "use": quantizer.embed_prob}
    cases[f"steps{side}"] = {"table": first, "latents": torch.stack([rows(z) for z in steps]),
                             "seeds": torch.arange(1000, 1000 + len(steps))}

for distance in ("cos", "l2"):
    quantizer = published.VectorQuantiser(K, D, 0.25, distance=distance).eval()
    quantizer.embedding.weight.data = table(2)
    z = maps(1).requires_grad_()
    quantized, loss, (_, _, codes) = quantizer(z)
    cases[f"eval_{distance}"] = {"codes": codes, "loss": loss,
                                 **backward(quantized, loss, z, quantizer.embedding.weight)}
save("cvq_vae", cases)
