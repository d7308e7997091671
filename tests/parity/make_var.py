"""Golden vectors of VAR's quantizer: FoundationVision/VAR at 78b95394fc5896192e3a003e4b295f8ea743c48f.

Usage: python make_var.py CHECKOUT. Its forward asks how many processes there are: a group of one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def main(checkout: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    sys.path.insert(0, str(checkout))
    spec = importlib.util.spec_from_file_location("quant", checkout / "models" / "quant.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {}
    for name, share in {"shared": 1, "partial": 4, "separate": 0}.items():
        torch.manual_seed(1)
        scales = (1, 2, 3, 4, 6)
        theirs = module.VectorQuantizer2(16, 5, False, v_patch_nums=scales, share_quant_resi=share).eval()
        f = torch.randn(2, 5, 6, 6, requires_grad=True)
        mix = torch.randn(2, 5, 6, 6)
        f_hat, _, loss = theirs(f)
        phis = [p for p in theirs.quant_resi.parameters()]
        gradients = torch.autograd.grad((f_hat * mix).sum() + loss, [f, theirs.embedding.weight, phis[0], phis[1]])
        codes = torch.cat(theirs.f_to_idxBl_or_fhat(f, to_fhat=False), 1)
        found = {"f": f, "mix": mix, "table": theirs.embedding.weight, "f_hat": f_hat, "loss": loss, "codes": codes,
                 "grad_f": gradients[0], "grad_table": gradients[1], "grad_weight": gradients[2],
                 "grad_bias": gradients[3], "weights": torch.stack(phis[::2]), "biases": torch.stack(phis[1::2])}
        made |= {f"{name}.{k}": v.detach().numpy() for k, v in found.items()}
    np.savez_compressed(HERE / "var.npz", **made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
