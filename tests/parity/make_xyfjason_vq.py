"""Goldens of VQ (plain, unit codes, entropy), EMA and SimVQ: xyfJASON/visual-tokenizer-pytorch at commit 351d29ddf8f4.

    python tests/parity/make_xyfjason_vq.py CHECKOUT

The repository's trainer counts hits and sums after the optimizer's step and hands them to `update_codebook`; the same
sums are taken here.
"""

import torch
from codebook_recording import D, K, backward, checkout, load, maps, rows, save, table

folder = checkout() / "models/quantizer"
plain, sim = load(folder / "quantizer.py"), load(folder / "simvq_quantizer.py")
cases = {}


def losses(found: dict) -> dict:
    names = {"loss_commit": "commitment", "loss_vq": "codebook", "loss_entropy": "entropy"}
    return {ours: found[theirs] for theirs, ours in names.items() if found.get(theirs) is not None}


def total(found: dict) -> torch.Tensor:
    weights = {"commitment": 0.25, "codebook": 1.0, "entropy": 0.1}
    return sum(weights[name] * value for name, value in losses(found).items())


for case, keywords in {"plain": {}, "unit_codes": {"l2_norm": True}, "entropy": {"use_entropy_reg": True}}.items():
    scale = 0.1 if "entropy" in case else 0.5           # so that assignments at temperature 0.01 are not all certain
    quantizer = plain.VectorQuantizer(K, D, **keywords)
    quantizer.codebook.weight.data = table(2, scale=scale)
    z = maps(1, scale=scale).requires_grad_()
    found = quantizer(z)
    cases[case] = {"codes": found["indices"], **losses(found),
                   **backward(found["quantized_z"], total(found), z, quantizer.codebook.weight)}

quantizer = plain.VectorQuantizer(K, D, use_ema_update=True)
first = table(2)
quantizer.codebook.weight.data, quantizer.ema_sumz.data = first.clone(), first.clone()
steps = [maps(10 + step) for step in range(3)]
codes, tables, commitment = [], [], []
for z in steps:
    found = quantizer(z)
    chosen = torch.nn.functional.one_hot(found["indices"], K).float()
    quantizer.update_codebook(chosen.T @ rows(z).flatten(0, 1), chosen.sum(0))
    codes.append(found["indices"])
    commitment.append(found["loss_commit"].detach())
    tables.append(quantizer.codebook.weight.data.clone())
cases["ema"] = {"table": first, "latents": torch.stack([rows(z) for z in steps]), "codes": torch.stack(codes),
                "commitment": torch.stack(commitment), "tables": torch.stack(tables),
                "sums": quantizer.ema_sumz, "counts": quantizer.ema_sumn}

torch.manual_seed(5)
quantizer = sim.SimVQQuantizer(K, D)
z = maps(1).requires_grad_()
found = quantizer(z)
loss = 0.25 * found["loss_commit"] + found["loss_vq"]
grads = torch.autograd.grad(found["loss_vq"], list(quantizer.codebook_proj.parameters()), retain_graph=True)
cases["simvq"] = {"codes": found["indices"], **losses(found), **backward(found["quantized_z"], loss, z, None),
                  "rows": quantizer.codebook.weight, "weight": quantizer.codebook_proj.weight,
                  "bias": quantizer.codebook_proj.bias, "weight_grad": grads[0], "bias_grad": grads[1]}
save("xyfjason_vq", cases)
