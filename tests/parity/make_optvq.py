"""Goldens of OptVQ's quantizer in training and in evaluation: zbr17/OptVQ at commit b71895cc931b.

    python tests/parity/make_optvq.py CHECKOUT

Codes are the largest entries of the plan (use_prob off, as in the released configurations), losses squared errors.
"""

import sys
import types

import torch
from codebook_recording import D, K, checkout, load, maps, rows, save, table

# It logs into a global object, which we leave out.
logger = types.ModuleType("optvq.utils.logger")
logger.GET_STATS, logger.log = False, types.SimpleNamespace(add_scalar=lambda *given: None)
utils = types.ModuleType("optvq.utils")
utils.logger = logger
package = types.ModuleType("optvq")
package.utils = utils
sys.modules |= {"optvq": package, "optvq.utils": utils, "optvq.utils.logger": logger}

published = load(checkout() / "src/optvq/models/quantizer.py")
cases = {}
for case, heads, projected, mode in (("plain", 1, False, "all"), ("heads", 4, True, "all"), ("scaled", 1, False, "dim"),
                                     ("cost", 2, True, "null")):
    torch.manual_seed(3)
    quantizer = published.VectorQuantizerSinkhorn(
        n_e=K, e_dim=D, beta=0.25, use_proj=projected, loss_q_type="l2", num_head=heads, use_prob=False,
        normalize_mode=mode).train()
    quantizer.embedding.weight.data = table(2, dim=D // heads)
    z = rows(maps(1)).contiguous().requires_grad_()
    toward = torch.randn(z.shape, generator=torch.Generator().manual_seed(99))
    quantized, loss, codes = quantizer(z)
    names = {"table": quantizer.embedding.weight}
    if projected:
        names |= {"weight": quantizer.proj.weight, "bias": quantizer.proj.bias}
    found = torch.autograd.grad((quantized * toward).sum() + loss, [z, *names.values()])
    cases[case] = {"codes": codes, "loss": loss, "quantized": quantized, "latents": z, "toward": toward, **names,
                   "latents_grad": found[0],
                   **{f"{name}_grad": grad for name, grad in zip(names, found[1:], strict=True)}}
    with torch.no_grad():
        other = rows(maps(5)).contiguous()
        quantized, _, codes = quantizer.eval()(other)
    cases[case] |= {"eval_latents": other, "eval_codes": codes, "eval_quantized": quantized}
save("optvq", cases)
