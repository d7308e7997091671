"""How long ago each code was last chosen: the age of dead codes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.distributed import min_across
from bench.interfaces import Monitor, Tokenizer
from bench.monitors.codebook_usage import level_name
from bench.registry import register
from bench.types import TokenizerOutput


@register("monitor", "code_age")
class CodeAge(Monitor):
    """Optimizer steps since some image of a step, on any process, was given the code; 0: in the last step.

    A code that was never chosen is as old as the watch. dead_codes: the share of K unused for more than
    `dead_after` steps; code_age_mean and code_age_max: over all K codes, in steps. Processes meet only where
    somebody looks.
    """

    def __init__(self, *, dead_after: int = 100) -> None:
        self.dead_after = dead_after

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        sizes = tokenizer.layout.vocab_sizes
        self.last = [torch.zeros(k, dtype=torch.int64, device=device) for k in sizes]   # steps done after its last use
        self.step = -1                              # steps done; a Python int: no transfer

    @torch.no_grad()
    def observe(self, output: TokenizerOutput, step: int) -> None:
        if output.codes is None:
            return
        if self.step < 0:
            for last in self.last:
                last.fill_(step)                    # nothing is known of earlier steps
        self.step = step + 1
        for level, last in enumerate(self.last):
            last.index_fill_(0, output.codes[..., level].flatten(), self.step)

    def scalars(self) -> dict[str, Tensor]:
        row: dict[str, Tensor] = {}
        for level, ages in enumerate(self._ages()):
            values = {
                "dead_codes": (ages > self.dead_after).float().mean(),
                "code_age_mean": ages.double().mean(),
                "code_age_max": ages.max(),
            }
            row |= {level_name(name, level, len(self.last)): value for name, value in values.items()}
        return row

    def arrays(self) -> dict[str, Tensor]:
        return {level_name("code_ages", i, len(self.last)): ages.int() for i, ages in enumerate(self._ages())}

    def _ages(self) -> list[Tensor]:
        return [max(self.step, 0) - last for last in self._everywhere()]

    def _everywhere(self) -> list[Tensor]:
        """When each code was last used on any process."""
        return [-min_across(-last) for last in self.last]

    def state_dict(self) -> dict[str, Tensor]:
        self.last = self._everywhere()              # what every process holds after loading
        return {"step": torch.tensor(self.step)} | {f"last{i}": last for i, last in enumerate(self.last)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.step = int(state["step"])
        for i, last in enumerate(self.last):
            last.copy_(state[f"last{i}"])
