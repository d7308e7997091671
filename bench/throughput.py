"""`bench profile tokenizers`: images a second, memory, parameters and MACs of whole tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.build import autocast, build_state
from bench.errors import BadInput, Incompatible
from bench.interfaces import Tokenizer
from bench.profile import Session, sized, threads_of
from bench.spec import LoopSettings, OptimizerSpec, TrainSpec, bind
from bench.stopwatch import extra_memory, watch
from bench.timings import Size, Timing
from bench.train import TrainState, train
from bench.types import Batch

WHAT = ("encode", "decode", "train")
PLAIN = Size(1, 64, 1024)           # K and D of the quantizer where a tokenizer is given by its name alone


@dataclass(frozen=True, slots=True)
class System:
    """A tokenizer with all that a training step of it needs."""

    label: str
    spec: TrainSpec
    loop: LoopSettings


def system(name: str, image_size: int, batch: int) -> System:
    """A registered tokenizer with its defaults, reconstruction alone and Adam. Raises BadInput."""

    def fail(path: tuple[Any, ...], value: Any, sentence: str) -> Exception:
        return BadInput(f"{'.'.join(map(str, path))} = {value!r}: {sentence}")

    spec = TrainSpec(
        dataset=bind("dataset", {"name": "photos", "image_size": image_size}, ("dataset",), fail), data="profile",
        model=sized("tokenizer", name, PLAIN), objective=bind("objective", "reconstruction", ("objective",), fail),
        optimizers={"tokenizer": OptimizerSpec(lr=1e-4)}, steps=10**9, batch_size=batch)
    return System(name, spec, LoopSettings(compile=False))


def profile_tokenizers(
    systems: Sequence[System], *, batch: int | None = None, device: torch.device | None = None, rounds: int = 7, threads: int | None = None,
    what: Sequence[str] = WHAT, progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Iterator[Timing]:
    """Yields encode (images to codes), decode (codes to images) and train (a whole step of the training loop) of each.

    What one system does takes turns, round by round; systems follow one another, since several do not fit a device.
    batch: images at a time instead of each system's own.
    """
    device = device or torch.device("cpu")
    with threads_of(threads):
        session = Session.begin(device)
        for s in systems:
            yield from _profile(session, s, batch or s.spec.batch_size, device, rounds, what, progress)


def _profile(
    session: Session, s: System, batch: int, device: torch.device, rounds: int, what: Sequence[str], progress: Callable[[str, int, int], None]
) -> Iterator[Timing]:
    image_size = s.spec.dataset.kwargs["image_size"]
    precision, context = autocast(s.spec, device)
    common: dict[str, Any] = {
        "kind": "tokenizer", "name": s.label, "size": {"image_size": image_size, "batch": batch}, "dtype": precision,
        "keywords": json.loads(s.spec.model.model_dump_json())["kwargs"],
    }
    spec = s.spec.model_copy(update={"steps": 10**9, "batch_size": batch, "accumulation": 1})
    try:
        state = build_state(spec, s.loop, (), device)
    except (Incompatible, ValueError) as error:
        yield from (session.timing(**common, what=w, reason=str(error).splitlines()[0]) for w in what)
        return
    tokenizer = state.model
    pixels = torch.rand(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    layout = torch.channels_last if s.loop.channels_last else torch.contiguous_format
    images = pixels.to(device, memory_format=layout)
    common["parameters"] = sum(p.numel() for p in tokenizer.parameters())
    common["macs"] = macs(tokenizer, images[:1])
    calls = _calls(state, spec, images, context)
    watched = watch({w: calls[w] for w in what}, rounds, device, lambda done, total: progress(s.label, done, total))
    for w in what:
        if watched[w].failure:
            yield session.timing(**common, what=w, reason=watched[w].failure)
            continue
        memory, how = extra_memory(calls[w], device)
        yield session.timing(**common, what=w, memory=memory, memory_by=how, repeats=watched[w].repeats, seconds=watched[w].seconds,
                             processor_seconds=watched[w].processor_seconds)


def _calls(state: TrainState, spec: TrainSpec, images: Tensor, context: Callable[[], Any]) -> dict[str, Callable[[], None]]:
    tokenizer: Tokenizer = state.model
    tokenizer.eval()
    with torch.no_grad(), context():
        out = tokenizer(images)
    codes, quantized, fixed = out.codes, out.quantized, Batch(images)

    @torch.no_grad()
    def encode() -> None:
        tokenizer.eval()
        with context():
            tokenizer.tokenize(images)

    @torch.no_grad()
    def decode() -> None:
        tokenizer.eval()
        with context():
            tokenizer.decode(quantized) if codes is None else tokenizer.detokenize(codes)

    def step() -> None:
        train(state, lambda number, part: fixed, spec, lambda after: True, precision=context)

    return {"encode": encode, "decode": decode, "train": step}


@torch.no_grad()
def macs(tokenizer: Tokenizer, image: Tensor) -> int:
    """Multiply-adds of products and convolutions of one encode, quantize and decode, the search among them."""
    tokenizer.eval()
    with FlopCounterMode(display=False) as counter:
        tokenizer(image)
    return counter.get_total_flops() // 2
