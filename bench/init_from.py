"""A run that begins with another one's weights, and parts of it that do not learn (`train.init_from`, `train.freeze`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.catalogue import digest, locate
from bench.checkpoint import read_state
from bench.errors import BadInput
from bench.load import EXTRA, open_checkpoint
from bench.places import Places
from bench.registry import did_you_mean
from bench.run import Run
from bench.runs import RunFolder

log = logging.getLogger(__name__)

MOST_NAMED = 8              # names in one sentence


class NotThere(RuntimeError):
    """The weights that a run begins with are not there yet. Nothing is recorded; the same command continues later."""


def begin(model: nn.Module, run: Run, places: Places) -> dict[str, Any]:
    """Give the model the weights that `run.train.init_from` names, and say for the record what came from where.

    Every tensor of the same name (after `names`) and shape is taken; the others stay as they were drawn, and are named in
    the log. A table that came so counts as begun: its `init` does not draw it again. Raises NotThere where the other run
    has not ended, BadInput where its weights are gone, are others than planned, or have nothing in common with this model.
    """
    init, start = run.train.init_from, run.start
    assert init is not None and start is not None
    if start.checkpoint is None:
        given = _of_run(init.run or "", start.label, init.weights, places)
    else:
        given = _of_checkpoint(start.checkpoint, start.format, init.sha256 or "", init.weights, places)
    taken, drawn, left = take(model, renamed(given, init.names))
    if not taken:
        raise BadInput(f"train.init_from = {start.label}: none of its tensors has the name and shape of one of this "
                       f"tokenizer's (it has {_named(given)}, this has {_named(model.state_dict())}); say with names: how "
                       "names begin there and here")
    log.info("%s: %d tensors from %s%s%s", run.label, len(taken), start.label,
             f"; drawn anew: {_named(drawn)}" if drawn else "", f"; of no use here: {_named(left)}" if left else "")
    return {"label": start.label, "run": init.run, "sha256": init.sha256, "weights": init.weights, "tensors": len(taken),
            "drawn": len(drawn), "unused": len(left)}


def renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """With the beginnings of names exchanged; the longest that fits counts."""
    def name(key: str) -> str:
        fitting = [old for old in names if key.startswith(old)]
        old = max(fitting, key=len, default="")
        return names[old] + key.removeprefix(old) if fitting else key

    return {name(key): value for key, value in given.items()}


@torch.no_grad()
def take(model: nn.Module, given: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Copy what fits by name and shape into the model, in place. Names of what was taken, of what stays as it was, and of
    what was given and fits nowhere."""
    own = model.state_dict()
    taken = [key for key, mine in own.items() if isinstance(mine, Tensor) and isinstance(given.get(key), Tensor)
             and mine.shape == given[key].shape]
    for key in taken:
        own[key].copy_(given[key])
    state: dict[str, Any] = {}
    for key, mine in own.items():
        if not key.endswith(EXTRA):
            continue
        beside = [k for k in own if k.startswith(key.removesuffix(EXTRA)) and not k.endswith(EXTRA)]
        if key in given and set(beside) <= set(taken):
            state[key] = given[key]
        elif beside and set(beside) <= set(taken) and isinstance(mine, dict) and "started" in mine:
            state[key] = {**mine, "started": True}
    if state:
        model.load_state_dict(own | state)
    fresh = [key for key in own if key not in taken and not key.endswith(EXTRA)]
    return taken, fresh, [key for key in given if key not in taken and not key.endswith(EXTRA)]


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Parameters whose names begin so no longer learn, and modules all of whose parameters do are for ever in eval mode: no
    dropout, no statistics, no moving codebooks. A module counts by its name, also where it has no parameters.

    Raises BadInput for a prefix with which no name begins, and where nothing is left to learn.
    """
    prefixes = tuple(prefixes)
    names = [name for name, _ in model.named_parameters()]
    modules = [name for name, _ in model.named_modules() if name]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in (*names, *modules)):
            raise BadInput(f"train.freeze = {prefix}: no part of this tokenizer has a name that begins so"
                           + did_you_mean(prefix, {part for name in names for part in (name, name.partition(".")[0])}))
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput("train.freeze leaves nothing of this tokenizer that learns")
    for name, module in model.named_modules():
        own = [n for n, _ in module.named_parameters()]
        if name and (name.startswith(prefixes) or (own and all(f"{name}.{n}".startswith(prefixes) for n in own))):
            module.eval()
            module.train = _stays(module)               # type: ignore[method-assign]
            if hasattr(module, "after_step"):
                module.after_step = _rests              # type: ignore[assignment]


def _stays(module: nn.Module) -> Callable[[bool], nn.Module]:
    return lambda mode=True: module


def _rests(step: int) -> None:
    """In place of a quantizer's `after_step`, where averages would fade and codes be replaced."""


def _of_run(train_id: str, label: str, weights: str, places: Places) -> dict[str, Any]:
    folder = RunFolder(places.runs, train_id)
    file = folder.checkpoints / "final.pt"
    if not file.is_file():
        record = folder.record()
        if record is not None and record.trained:
            raise BadInput(f"train.init_from: the weights of {label} (run {train_id}) are gone; bring {file} back, or train it "
                           "again with `bench retry`")
        raise NotThere(f"begins with the weights of {label} (run {train_id}), which has not ended; run it first, then the same "
                       "command again")
    saved = read_state(file, torch.device("cpu"))
    if saved is None:
        raise BadInput(f"train.init_from: {file} is damaged; train {label} again with `bench retry`")
    state = saved["train"]
    return dict(state["model"]) | (state["average"] if weights == "average" else {})


def _of_checkpoint(given: str, format: str | None, sha256: str, weights: Literal["live", "average"], places: Places) -> dict[str, Any]:
    if (found := digest(given, format, places)[:12]) != sha256:
        raise BadInput(f"train.init_from = {given}: not the file that this run was planned with (its sha256 begins with {found}, "
                       f"not {sha256}); bring that one back, or run `bench plan` again")
    return open_checkpoint(locate(given, places), places, format=format, weights=weights).tokenizer.state_dict()


def _named(names: Iterable[str]) -> str:
    names = [name for name in names if not name.endswith(EXTRA)]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
