"""Goldens of `rotate_to`, EMA, DiVeQ and the orthogonal loss: vector-quantize-pytorch 1.32.0 from its package.

    python tests/parity/make_vector_quantize_pytorch.py
"""

import torch
from codebook_recording import SIDE, B, D, K, maps, rows, save, table
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam, orthogonal_loss_fn, rotate_to

torch.set_num_threads(1)
cases = {}
book = table(2).requires_grad_()
z = rows(maps(1)).flatten(0, 1).requires_grad_()
codes = torch.cdist(z, book).argmin(1)
toward = torch.randn(z.shape, generator=torch.Generator().manual_seed(99))
shape = (B, SIDE * SIDE, D)
for case in ("rotation", "diveq"):
    torch.manual_seed(1000)
    if case == "rotation":
        quantized = rotate_to(z, book[codes].detach())
    else:
        quantized = directional_reparam(z, book[codes], 1e-4)
    wanted = [z] if case == "rotation" else [z, book]
    found = torch.autograd.grad((quantized * toward).sum(), wanted)
    cases[case] = {"codes": codes, "latents": z.view(shape), "table": book, "toward": toward.view(shape),
                   "quantized": quantized.view(shape), "latents_grad": found[0].view(shape)}
    if case == "diveq":
        cases[case]["table_grad"] = found[1]
loss = orthogonal_loss_fn(book[None])
cases["orthogonal"] = {"table": book, "loss": loss, "table_grad": torch.autograd.grad(loss, book)[0]}

quantizer = VectorQuantize(D, K, decay=0.8, rotation_trick=False, commitment_weight=0.25)
quantizer.train()
first = table(2)
quantizer._codebook.embed.copy_(first)
quantizer._codebook.embed_avg.copy_(first)
steps = [rows(maps(40 + step)) for step in range(3)]
fields: dict[str, list] = {"codes": [], "loss": [], "tables": []}
for latents in steps:
    _, codes, loss = quantizer(latents)
    for field, value in (("codes", codes.flatten()), ("loss", loss.sum().detach()),
                         ("tables", quantizer._codebook.embed[0].clone())):
        fields[field].append(value)
cases["ema"] = {"table": first, "latents": torch.stack(steps),
                **{field: torch.stack(values) for field, values in fields.items()}}
save("vector_quantize_pytorch_vq", cases)
