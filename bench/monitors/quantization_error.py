"""How far latents are from what replaces them, on average since the last logged step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.distributed import mean_across, sum_across
from bench.interfaces import Monitor, Tokenizer
from bench.registry import register
from bench.types import TokenizerOutput


@register("monitor", "quantization_error")
class QuantizationError(Monitor):
    """Mean squared difference per element between latents and quantized, where both have the same width."""

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.comparable = tokenizer.quantizer.input_dim == tokenizer.quantizer.output_dim
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.parts = 0

    @torch.no_grad()
    def observe(self, output: TokenizerOutput, step: int) -> None:
        if self.comparable:
            self.total += (output.latents - output.quantized).float().square().mean()
            self.parts += 1

    def scalars(self) -> dict[str, Tensor]:
        if not self.comparable:
            return {}
        sums = sum_across(torch.stack([self.total, self.total.new_tensor(self.parts)]))
        self.total.zero_()
        self.parts = 0
        return {"quantization_error": sums[0] / sums[1]}

    def state_dict(self) -> dict[str, Tensor]:
        self.total = mean_across(self.total)        # what every process holds after loading
        return {"total": self.total, "parts": torch.tensor(self.parts)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.total.copy_(state["total"])
        self.parts = int(state["parts"])
