"""faiss, exact flat index: nearest code only, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.peer import Calls, Peer
from bench.registry import register


@register("peer", "faiss")
class Faiss(Peer):
    """IndexFlatL2 over the codes, one neighbour. The bare search: no look-up of the chosen codes, which ours includes.

    It brings a thread runtime of its own, which gets as many threads as torch has.
    """

    title = "faiss"
    searches = True
    module = "faiss"
    package = "faiss-cpu"
    devices = ("cpu",)

    def form(self, quantizer: str, keywords: Mapping[str, Any]) -> str | None:
        return "flat" if "codebook_size" in keywords else None

    def build(self, form: str, latents: Tensor, table: Tensor, keywords: Mapping[str, Any]) -> Calls:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(table.shape[1])
        index.add(np.ascontiguousarray(table.float().numpy()))
        rows = np.ascontiguousarray(latents.detach().float().numpy())

        def search() -> Tensor:
            return torch.from_numpy(index.search(rows, 1)[1][:, 0])

        return {"search": search}
