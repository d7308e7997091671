"""How far codes move: what takes the gradients' place where a codebook is a moving average."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.interfaces import Monitor, Tokenizer
from bench.monitors.codebook_usage import level_name
from bench.registry import register
from bench.types import TokenizerOutput


@register("monitor", "codebook_movement")
class CodebookMovement(Monitor):
    """|e_k(t) - e_k(s)| / (t - s) of each level's effective codebook: its displacement a step between two looks.

    A look is a logged or watched step, before that step's own move; s is the look before, at first the first step
    that was observed (after an initialisation from its batch). Not a number until the second look. It keeps one copy
    of the codebooks, also in checkpoints. Nothing for implicit codes (FSQ, LFQ, KL).
    """

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.quantizer = tokenizer.quantizer
        self.before = [book.clone() for book in self._books()]                          # [K, D] a level
        self.moved = [torch.full((len(b),), float("nan"), device=device) for b in self.before]
        self.step = -1                              # of the look before; a Python int: no transfer

    def observe(self, output: TokenizerOutput, step: int) -> None:
        if self.step < 0:
            self._keep(self._books(), step)

    def observe_gradients(self, tokenizer: Tokenizer, step: int) -> None:
        if step > self.step:
            books = self._books()
            for moved, before, book in zip(self.moved, self.before, books, strict=True):
                moved.copy_((book - before).norm(dim=1) / (step - self.step))
            self._keep(books, step)

    def scalars(self) -> dict[str, Tensor]:
        row: dict[str, Tensor] = {}
        for level, moved in enumerate(self.moved):
            values = {"code_movement_mean": moved.mean(), "code_movement_max": moved.max()}
            row |= {level_name(name, level, len(self.moved)): value for name, value in values.items()}
        return row

    def arrays(self) -> dict[str, Tensor]:
        return {level_name("code_movement", i, len(self.moved)): moved for i, moved in enumerate(self.moved)}

    @torch.no_grad()
    def _books(self) -> list[Tensor]:
        return [book.detach().float() for book in self.quantizer.codebooks()]

    def _keep(self, books: list[Tensor], step: int) -> None:
        for before, book in zip(self.before, books, strict=True):
            before.copy_(book)
        self.step = step

    def state_dict(self) -> dict[str, Tensor]:
        state = {"step": torch.tensor(self.step)}
        state |= {f"before{i}": before for i, before in enumerate(self.before)}
        return state | {f"moved{i}": moved for i, moved in enumerate(self.moved)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.step = int(state["step"])
        for i in range(len(self.before)):
            self.before[i].copy_(state[f"before{i}"])
            self.moved[i].copy_(state[f"moved{i}"])
