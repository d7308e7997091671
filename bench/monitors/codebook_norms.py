"""How long the codes are: statistics of their norms, and the norms themselves on watched steps."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.interfaces import Monitor, Tokenizer
from bench.monitors.codebook_usage import level_name
from bench.registry import register


@register("monitor", "codebook_norms")
class CodebookNorms(Monitor):
    """|e_k| of each level's effective codebook; nothing for implicit codes (FSQ, LFQ, KL)."""

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.quantizer = tokenizer.quantizer

    def scalars(self) -> dict[str, Tensor]:
        row: dict[str, Tensor] = {}
        books = self._norms()
        for level, norms in enumerate(books):
            values = {
                "code_norm_mean": norms.mean(), "code_norm_std": norms.std(correction=0),
                "code_norm_min": norms.min(), "code_norm_max": norms.max(),
            }
            row |= {level_name(name, level, len(books)): value for name, value in values.items()}
        return row

    def arrays(self) -> dict[str, Tensor]:
        books = self._norms()
        return {level_name("code_norms", i, len(books)): norms for i, norms in enumerate(books)}

    @torch.no_grad()
    def _norms(self) -> list[Tensor]:
        return [book.float().norm(dim=1) for book in self.quantizer.codebooks()]
