"""vector-quantize-pytorch (lucidrains), as its constructors leave it but for sizes and the codes, which are ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.peer import Calls, Peer, step
from bench.registry import register

#: our quantizer -> its class, what its constructor is told beside sizes, and the name it has in tables
FORMS = {
    "ema_vq": "EMA", "vq": "learned codes", "sim_vq": "SimVQ", "fsq": "FSQ", "lfq": "LFQ", "bsq": "BSQ",
}


@register("peer", "vector_quantize_pytorch")
class VectorQuantizePytorch(Peer):
    """EMA, learned codes and SimVQ by its own defaults; FSQ with our levels; LFQ and BSQ (spherical LFQ) with their
    entropy loss where our quantizer has one."""

    title = "vector-quantize-pytorch"
    module = "vector_quantize_pytorch"
    package = "vector-quantize-pytorch"

    def form(self, quantizer: str, keywords: Mapping[str, Any]) -> str | None:
        return FORMS.get(quantizer)

    def build(self, form: str, latents: Tensor, table: Tensor, keywords: Mapping[str, Any]) -> Calls:
        module = self._module(form, latents.shape[1], table, keywords).to(latents.device)
        z = latents.detach().clone()[None].requires_grad_()                             # [1, N, D]
        ones = torch.ones_like(z)

        @torch.no_grad()
        def search() -> Tensor:
            return module.eval()(z)[1].flatten()

        def train() -> None:
            out = module.train()(z)
            loss = out[2].sum() if len(out) > 2 else z.new_zeros(())
            step((out[0], loss), z, ones) if loss.requires_grad else step((out[0], out[0].sum() * 0), z, ones)
            for parameter in module.parameters():
                parameter.grad = None

        return {"search": search, "train": train}

    def _module(self, form: str, dim: int, table: Tensor, keywords: Mapping[str, Any]) -> nn.Module:
        import vector_quantize_pytorch as package

        match form:
            case "FSQ":
                return package.FSQ(list(keywords["levels"]))
            case "LFQ" | "BSQ":
                entropy = 0.1 if keywords.get("entropy", True) else 0.0
                return package.LFQ(dim=dim, codebook_size=2**dim, entropy_loss_weight=entropy, spherical=form == "BSQ")
            case "SimVQ":
                return package.SimVQ(dim, len(table))
        learned = {"learnable_codebook": True, "ema_update": False} if form == "learned codes" else {}
        module = package.VectorQuantize(dim, len(table), **learned)
        with torch.no_grad():
            module._codebook.embed.copy_(table[None])
            if hasattr(module._codebook, "embed_avg"):
                module._codebook.embed_avg.copy_(table[None])
        return module

    def distances(self, form: str) -> int:
        return 9 if form in ("EMA", "learned codes", "SimVQ") else 0
