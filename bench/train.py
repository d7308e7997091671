"""One loop for every tokenizer: the objective yields updates, the loop moves the players."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.distributed import average_gradients, mean_across, min_across, seed_step
from bench.errors import NonFinite
from bench.interfaces import Monitor, Objective
from bench.optim import PlayerOptimizer, WeightAverage
from bench.spec import TrainSpec
from bench.types import Batch, Update


class Terms:
    """Means of loss terms since the last logged step, and the first step at which each was not finite.

    Everything stays on the device until `read`, which makes one transfer.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.shares: dict[str, float] = {}          # Python floats: how many steps a sum holds
        self.bad: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, terms: dict[str, Tensor], step: int, share: float) -> None:
        for name, value in terms.items():
            value = value.detach().double()
            bad = torch.where(value.isfinite(), float("inf"), float(step))
            if name in self.sums:
                self.sums[name] += value * share
                self.bad[name] = torch.minimum(self.bad[name], bad)
                self.shares[name] += share
            else:
                self.sums[name], self.bad[name], self.shares[name] = value * share, bad, share

    def read(self, monitors: Sequence[Monitor]) -> dict[str, float]:
        """All terms and all monitors' scalars in one transfer; clears the terms.

        Raises NonFinite for the term that was not finite first.
        """
        names = list(self.sums)
        means = [total / self.shares[n] for n, total in zip(names, self._means(), strict=True)]
        scalars = {name: value for monitor in monitors for name, value in monitor.scalars().items()}
        columns = [*means, *self._bad_anywhere(), *scalars.values()]
        numbers = torch.stack([c.detach().double() for c in columns]).tolist() if columns else []
        _refuse(dict(zip(names, numbers[len(names) : 2 * len(names)], strict=True)))
        self.sums, self.bad, self.shares = {}, {}, {}
        row = dict(zip(names, numbers, strict=False))
        return row | dict(zip(scalars, numbers[2 * len(names) :], strict=True))

    def check(self) -> None:
        """Raises NonFinite as `read` does, and clears nothing; before a checkpoint."""
        if self.bad:
            _refuse(dict(zip(self.bad, self._bad_anywhere().tolist(), strict=True)))

    def _bad_anywhere(self) -> Tensor:
        """First bad step of each term over all processes: either all of them stop, or none does."""
        return min_across(torch.stack(list(self.bad.values()))) if self.bad else torch.zeros(0)

    def _means(self) -> Sequence[Tensor]:
        """Each sum's mean over processes, in one exchange."""
        return mean_across(torch.stack(list(self.sums.values()))).unbind() if self.sums else ()

    def state_dict(self) -> dict[str, Any]:
        """Of all processes: from here on each holds their mean, as it does after loading."""
        self.sums = dict(zip(self.sums, self._means(), strict=True))
        return {"sums": self.sums, "bad": self.bad, "shares": self.shares}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.sums = {n: v.to(device) for n, v in state["sums"].items()}
        self.bad = {n: v.to(device) for n, v in state["bad"].items()}
        self.shares = dict(state["shares"])


def _refuse(first: dict[str, float]) -> None:
    if first and (step := min(first.values())) != float("inf"):
        raise NonFinite(int(step), next(name for name, bad in first.items() if bad == step))


@dataclass
class TrainState:
    """All that a resumed run needs; one state_dict, one file."""

    model: nn.Module
    objective: Objective
    optimizers: dict[str, PlayerOptimizer]
    monitors: list[Monitor]
    average: WeightAverage | None = None
    terms: Terms = field(default_factory=Terms)
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Every process calls it, and all get the same: what each has seen of its own is brought together."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "monitors": [m.state_dict() for m in self.monitors],
            "average": None if self.average is None else self.average.state_dict(),
            "terms": self.terms.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Monitors are resumed where the same ones were saved; with others they start empty."""
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if len(state["monitors"]) == len(self.monitors):
            for monitor, saved in zip(self.monitors, state["monitors"], strict=True):
                here = monitor.state_dict()
                if {n: v.shape for n, v in saved.items()} == {n: v.shape for n, v in here.items()}:
                    monitor.load_state_dict(saved)
        self.terms.load_state_dict(state["terms"], device)
        torch.set_rng_state(state["random"].cpu())
        self.step = state["step"]


def train(
    state: TrainState,
    batches: Callable[[int, int], Batch],                       # (step, part) -> Batch: no position to save
    spec: TrainSpec,
    after_step: Callable[[TrainState], bool],                   # log, watch, checkpoint; True: stop here
    *,
    watched: Callable[[int], bool] = lambda step: False,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Train from `state.step` to `spec.steps`. Nothing in here waits for the device.

    Gradients of `accumulation` micro-batches and of all processes are averaged; all players step after the last
    micro-batch; codebooks move in `after_step` of the model, once per step.
    """
    model, objective, monitors = state.model, state.objective, state.monitors
    model.train()
    while state.step < spec.steps:
        step = state.step
        seed_step(spec.seed, step)
        model.before_step(step)
        moved: dict[str, None] = {}                             # ordered set of players

        for part in range(spec.accumulation):
            updates = objective.updates(model, batches(step, part), step)
            while (update := _next(updates, precision)) is not None:
                # inputs= keeps one player's loss out of the other players' gradients.
                (update.loss / spec.accumulation).backward(
                    inputs=state.optimizers[update.player].params, retain_graph=update.retain_graph
                )
                moved[update.player] = None
                state.terms.add(update.terms, step, share=1 / spec.accumulation)
                if update.output is not None:
                    for monitor in monitors:
                        monitor.observe(update.output, step)

        for player in moved:                                    # nobody steps before all have looked
            average_gradients(state.optimizers[player].params)
        if watched(step):
            for monitor in monitors:
                monitor.observe_gradients(model, step)
        for player in moved:
            state.optimizers[player].step(step)
        with torch.no_grad():
            model.after_step(step)
            objective.after_step(step)
            if state.average is not None:
                state.average.update(model, step)
        state.step += 1
        if after_step(state):
            return


def _next(updates: Iterator[Update], precision: Callable[[], AbstractContextManager]) -> Update | None:
    with precision():                                           # forward only, never the backward
        return next(updates, None)
