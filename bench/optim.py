"""One optimizer per player: groups, schedule, clipping, step; and the weight average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.spec import Decay, Drops, OneCycle, OptimizerSpec


class PlayerOptimizer:
    """Moves one player's learnable parameters. `params` is what `backward(inputs=)` gets."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], spec: OptimizerSpec, steps: int, *, fused: bool) -> None:
        named = [(name, p) for name, p in named if p.requires_grad]
        self.params = [p for _, p in named]
        self.spec, self.steps = spec, max(1, steps - spec.schedule_start)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, p in named:
            groups.setdefault((_scale(name, spec.lr_scale), _decay(name, p, spec.weight_decay)), []).append(p)
        self.scales = [scale for scale, _ in groups]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
        self.optimizer = kind(
            [{"params": params, "weight_decay": decay} for (_, decay), params in groups.items()],
            lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused,
        )

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        s = self.spec
        step = max(0, step - s.schedule_start)
        match s.schedule:
            case OneCycle() as cycle:
                low = s.lr / cycle.start_divisor
                return self._cycled(step, cycle, low, s.lr, low / cycle.final_divisor)
            case _ if step < s.warmup_steps:
                return s.lr * (step + 1) / s.warmup_steps
            case "constant":
                return s.lr
            case Drops() as drops:
                return s.lr * drops.factor ** sum(step >= at for at in drops.at)
            case Decay() as decay:
                name, length = decay.name, decay.steps
            case name:
                length = self.steps - s.warmup_steps
        done = min(1.0, (step - s.warmup_steps) / max(1, length))
        left = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)),
                "quarter_cosine": math.cos(math.pi / 2 * done)}[name]
        return s.final_lr + (s.lr - s.final_lr) * left

    def beta1(self, step: int) -> float:
        """Decay of the first moment at a step, counted from 0."""
        cycle = self.spec.schedule
        if not isinstance(cycle, OneCycle) or cycle.beta1 is None:
            return self.spec.betas[0]
        ends, peak = cycle.beta1
        return self._cycled(max(0, step - self.spec.schedule_start), cycle, ends, peak, ends)

    def _cycled(self, step: int, cycle: OneCycle, start: float, peak: float, end: float) -> float:
        """Half a cosine from start to peak, which is reached at step rise * steps - 1, and another one to end."""
        top, last = cycle.rise * self.steps - 1, self.steps - 1
        if step <= top:
            return _half_cosine(start, peak, step / top if top > 0 else 1.0)
        return _half_cosine(peak, end, (step - top) / (last - top))

    def step(self, step: int) -> None:
        """Clip, set the rate, move, clear the gradients."""
        if self.spec.clip_value is not None:
            nn.utils.clip_grad_value_(self.params, self.spec.clip_value)
        if self.spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.params, self.spec.clip_norm)
        rate, betas = self.rate(step), (self.beta1(step), self.spec.betas[1])
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"], group["betas"] = rate * scale, betas
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


def _scale(name: str, scales: Mapping[str, float]) -> float:
    matching = [prefix for prefix in scales if name.startswith(prefix)]
    return scales[max(matching, key=len)] if matching else 1.0


def _decay(name: str, p: nn.Parameter, decay: float) -> float:
    """No decay on norms, biases, embeddings and codebooks."""
    spared = p.dim() < 2 or any(word in name for word in ("codebook", "embedding", "norm"))
    return 0.0 if spared else decay


class WeightAverage:
    """Exponential moving average of the parameters; buffers are taken from the live model when it is used.

    ramp: with which the first weights are soon forgotten, at step t, counted from 0. `ratio`: the decay is
    min(decay, (1 + t) / (10 + t)), as in bytedance/1d-tokenizer, markweberdev/maskbit and CompVis/latent-diffusion;
    `power`: min(decay, 1 - (1 + t)^(-2/3)), as in xyfJASON/visual-tokenizer-pytorch; None: always `decay`.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: Literal["ratio", "power"] | None = None) -> None:
        self.decay, self.ramp = decay, ramp
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def decay_at(self, step: int) -> float:
        match self.ramp:
            case "ratio":
                return min(self.decay, (1 + step) / (10 + step))
            case "power":
                return min(self.decay, 1 - (1 + step) ** (-2 / 3))
        return self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After the optimizers moved at a step, counted from 0."""
        live = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [live[n].detach() for n in self.weights], 1 - self.decay_at(step))

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Begin anew with the model's weights."""
        for name, p in model.named_parameters():
            self.weights[name].copy_(p)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.weights.items():
            value.copy_(state[name])

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the live and the averaged weights; called twice it changes nothing."""
        for name, p in model.named_parameters():
            kept = p.detach().clone()
            p.copy_(self.weights[name])
            self.weights[name].copy_(kept)
