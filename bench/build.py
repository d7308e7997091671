"""The spec stops here: from specs to objects. Also builds on the meta device, to fail before the queue."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from bench.distributed import derived_seed
from bench.errors import BadInput, Incompatible
from bench.init_from import freeze
from bench.interfaces import Loss, Objective, Tokenizer
from bench.optim import PlayerOptimizer, WeightAverage
from bench.registry import did_you_mean, source_file
from bench.run import Checked, Run
from bench.spec import ComponentSpec, LoopSettings, TrainSpec
from bench.train import TrainState
from bench.types import Batch


def pick_device(name: str | None = None) -> torch.device:
    """The named device; else CUDA, else the CPU. Apple's is never chosen: it has no float64, which statistics need."""
    if name:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def build_model(spec: TrainSpec) -> tuple[Tokenizer, Objective]:
    """Initial weights are drawn on the CPU from the seed: the same whatever the device."""
    torch.manual_seed(derived_seed(spec.seed, "init"))
    model = spec.model.partial()(spec.dataset.kwargs["image_size"])
    objective = spec.objective.partial()()
    objective.begin(spec.dataset.kwargs["image_size"])
    for part in objective.modules():
        if isinstance(part, Loss):
            part.begin(model)
    return model, objective


def build_state(spec: TrainSpec, loop: LoopSettings, monitors: tuple[ComponentSpec, ...], device: torch.device) -> TrainState:
    """Everything the loop needs, at step 0."""
    model, objective = build_model(spec)
    freeze(model, spec.freeze)
    layout = torch.channels_last if loop.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)
    objective.to(device)
    fused = device.type in ("cuda", "cpu") if loop.fused == "auto" else loop.fused
    optimizers = {
        player: PlayerOptimizer(named, spec.optimizers[player], spec.steps, fused=fused)
        for player, named in objective.players(model).items()
    }
    watching = [m.partial()() for m in monitors]
    for monitor in watching:
        monitor.begin(model, device)
    average = None if spec.average is None else WeightAverage(model, spec.average, spec.average_ramp)
    return TrainState(model, objective, optimizers, watching, average)


def wants_compile(loop: LoopSettings, device: torch.device) -> bool:
    """What `train.compile` means on this device."""
    return device.type == "cuda" if loop.compile == "auto" else loop.compile


def compile_model(model: Tokenizer, loop: LoopSettings, device: torch.device) -> None:
    """Compile what the tokenizer names, encode and decode (never the quantizer: its search is ours). Names in state dicts do
    not change."""
    if wants_compile(loop, device):
        for name in model.compiled:
            setattr(model, name, torch.compile(getattr(model, name)))


def autocast(spec: TrainSpec, device: torch.device) -> tuple[str, Callable[[], AbstractContextManager]]:
    """(what `precision` became on this device, a context for the forward)."""
    precision = spec.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if precision == "fp32":
        return precision, nullcontext
    return precision, lambda: torch.autocast(device.type, dtype=torch.bfloat16)


# -- before the queue ------------------------------------------------------------------------------------------------


def check_runs(runs: list[Run]) -> dict[str, Checked]:
    """Build each tokenizer once on the meta device, run one forward there, compare names. By train id.

    `bench.checked.check` says the same and remembers it.
    """
    done: dict[str, Checked] = {}
    seen: dict[str, Checked] = {}
    for run in runs:
        key = repr((run.train.model, run.train.objective, run.train.dataset.kwargs["image_size"],
                    sorted((player, sorted(o.lr_scale)) for player, o in run.train.optimizers.items())))
        if key not in seen:
            seen[key] = _check(run)
        done[run.train_id] = seen[key]
    return done


def _check(run: Run) -> Checked:
    spec = run.train
    try:
        with torch.device("meta"), torch.no_grad():
            size = spec.dataset.kwargs["image_size"]
            model, objective = build_model(spec)
            freeze(model, spec.freeze)
            output = model(torch.empty(2, 3, size, size))
            objective.terms(Batch(torch.empty(2, 3, size, size)), output)
    except Incompatible as error:
        return Checked(skip=str(error))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        lasting = not isinstance(error, BadInput)       # a constructor that found no weight file, say
        return Checked(problem=str(error).splitlines()[0], key=_at_fault(spec, error), lasting=lasting)
    if output.reconstruction.shape != (2, 3, size, size):
        return Checked(key="tokenizer", problem=f"{spec.model.name} turns 2 x 3 x {size} x {size} into "
                               f"{' x '.join(map(str, output.reconstruction.shape))}")
    emitted, declared = set(output.losses), {**model.loss_weights, **model.quantizer.loss_weights}
    if emitted != set(declared):
        return Checked(key="tokenizer", problem=f"{spec.model.name} emits the losses {sorted(emitted)} but declares "
                                                f"{sorted(declared)}")
    known, weighted = objective.loss_names(model)
    for name in sorted(weighted - known):
        return Checked(key=f"objective.weights.{name}", problem=f"no such loss{did_you_mean(name, known)}")
    players = objective.players(model)
    for player in players.keys() - spec.optimizers.keys():
        return Checked(key="optimizers", problem=f"the player {player} moves in {spec.objective.name} and needs an optimizer of its own")
    for player in spec.optimizers.keys() - players.keys():
        return Checked(key=f"optimizers.{player}", problem=f"no such player{did_you_mean(player, players)}")
    for player, named in players.items():
        for prefix in spec.optimizers[player].lr_scale:
            if not any(name.startswith(prefix) for name, _ in named):
                return Checked(key=f"optimizers.{player}.lr_scale.{prefix}", problem="no parameter's name begins so"
                               + did_you_mean(prefix, {n.rpartition(".")[0] or n for n, _ in named}))
        if not any(p.requires_grad for _, p in named):
            return Checked(key="optimizers", problem=f"the player {player} has nothing to learn")
    return Checked(parameters=sum(p.numel() for p in model.parameters()))


def _at_fault(spec: TrainSpec, error: BaseException) -> str:
    """The dotted key of the component that raised, and of its keyword where the message names one."""
    if (setting := re.match(r"train\.\w+", str(error))) is not None:
        return setting.group()
    parts = {"tokenizer": spec.model, "objective": spec.objective}
    for section, component in list(parts.items()):
        parts |= {f"{section}.{path}": below for path, below in component.nested()}
    raised = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    inner = [path for path, c in parts.items() if str(source_file(c.kind, c.name)) in raised]
    words = set(re.findall(r"\w+", str(error)))
    for path in reversed(inner):
        for keyword in parts[path].kwargs:
            if keyword in words:
                return f"{path}.{keyword}"
    if "image_size" in words:
        return "dataset.image_size"
    return inner[-1] if inner else "tokenizer"
