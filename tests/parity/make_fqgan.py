"""Golden vectors of FQGAN's disentanglement: showlab/FQGAN at dc34256b36af7227f0916de8015c882fe8101b56.

Usage: python make_fqgan.py CHECKOUT. The method is called on a stand-in that holds its ratio: it needs no network.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

HERE = Path(__file__).parent


def main(checkout: Path) -> None:
    tree = ast.parse((checkout / "tokenizer" / "vq_model_dual.py").read_text())
    method = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "compute_disentangle_loss")
    scope = {"torch": torch, "F": F, "rearrange": rearrange}
    exec(compile(ast.Module([method], []), "vq_model_dual.py", "exec"), scope)
    model = SimpleNamespace(config=SimpleNamespace(disentanglement_ratio=0.1))
    torch.manual_seed(2)
    a, b = (torch.randn(2, 5, 3, 4, requires_grad=True) for _ in range(2))
    loss = scope["compute_disentangle_loss"](model, a, b)
    gradients = torch.autograd.grad(loss, (a, b))
    made = {"a": a, "b": b, "loss": loss, "grad_a": gradients[0], "grad_b": gradients[1]}
    np.savez_compressed(HERE / "fqgan.npz", **{k: v.detach().numpy() for k, v in made.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
