"""Which codes a step teaches: per-code gradient norms, and the share of codes whose gradient is not zero."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.interfaces import Monitor, Tokenizer
from bench.monitors.codebook_usage import level_name
from bench.registry import register


@register("monitor", "codebook_gradients")
class CodebookGradients(Monitor):
    """|dL/de_k| after the backward and the average over processes, before the optimizer, on logged and watched steps.

    Only for codebooks that learn by gradient. A level without such a table (moving averages, implicit codes) has no
    column and an array of length 0: watched, and there is none. Behind a straight-through estimator only the codebook
    loss reaches the table, so that a gradient of zero means: not chosen in this step.
    """

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.norms = [
            None if table is None else torch.full((len(table),), float("nan"), device=device)
            for table in tokenizer.quantizer.tables()
        ]

    def observe_gradients(self, tokenizer: Tokenizer, step: int) -> None:
        for norms, table in zip(self.norms, tokenizer.quantizer.tables(), strict=True):
            if norms is not None:
                norms.copy_(torch.zeros_like(norms) if table.grad is None else table.grad.float().norm(dim=1))

    def scalars(self) -> dict[str, Tensor]:
        row: dict[str, Tensor] = {}
        for level, norms in enumerate(self.norms):
            if norms is not None:
                values = {
                    "codes_with_gradient": (norms > 0).float().mean(),
                    "code_gradient_mean": norms.mean(),
                    "code_gradient_max": norms.max(),
                }
                row |= {level_name(name, level, len(self.norms)): value for name, value in values.items()}
        return row

    def arrays(self) -> dict[str, Tensor]:
        none = torch.zeros(0)
        return {level_name("code_gradient_norms", i, len(self.norms)): none if norms is None else norms
                for i, norms in enumerate(self.norms)}
