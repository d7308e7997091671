"""`bench profile tokenizers`: parameters, MACs, images a second and memory of whole tokenizers, each as it was published."""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from bench.build import autocast, build_state
from bench.catalogue import checkpoints, load_checkpoint
from bench.costs import architecture_id
from bench.errors import BadInput
from bench.interfaces import Tokenizer
from bench.places import Places
from bench.profile import Session, sized, threads_of
from bench.registry import available, did_you_mean
from bench.spec import ComponentSpec, LoopSettings, OptimizerSpec, TrainSpec, bind, flatten
from bench.stopwatch import watch
from bench.structure import Structure, structures
from bench.suite import Suite, find_suite
from bench.timings import Architecture, Size, Timing
from bench.train import train
from bench.types import Batch

WHAT = ("encode", "decode", "train")
PLAIN = Size(1, 64, 1024)           # K and D of the quantizer where a tokenizer is given by its name alone
PLAIN_PIXELS = 64                   # and the images' side, where no published suite has it
LARGE = {"cpu": 4, "cuda": 64}      # the large batch where none is given
#: suites that hold a system as it was published
PUBLISHED = ("imagenet256_*", "fqgan_*", "optvq_*", "ffhq_vqgan", "simvq_*", "cifar10_*", "mnist_*")
ARCHITECTURES = Path(__file__).parent / "architectures.yaml"        # of published checkpoints
LONGEST = 24                        # characters of a value in a name

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class System:
    """A tokenizer for images of one size, and how it is trained."""

    name: str
    model: ComponentSpec
    image_size: int
    loop: LoopSettings = LoopSettings(compile=False)
    recipe: TrainSpec | None = None             # None: reconstruction alone, Adam
    checkpoint: str | None = None               # its name in the list of published ones

    def training(self, batch: int, precision: str | None = None) -> TrainSpec:
        """What a training step of it is, at this batch, without an end."""
        spec = self.recipe or TrainSpec(
            dataset=bind("dataset", {"name": "photos", "image_size": self.image_size}, ("dataset",), _fail), data="profile",
            model=self.model, objective=bind("objective", "reconstruction", ("objective",), _fail),
            optimizers={"tokenizer": OptimizerSpec(lr=1e-4)}, steps=10**9, batch_size=batch)
        return spec.model_copy(update={
            "steps": 10**9, "batch_size": batch, "accumulation": 1, "precision": precision or spec.precision})


# -- which systems ---------------------------------------------------------------------------------------------------


def systems(names: Sequence[str], places: Places, image_size: int | None = None, note: Callable[[str], None] = lambda sentence: None) -> list[System]:
    """Registered tokenizers, suites and published checkpoints; without names all that is published, and of tokenizers that
    are in none of it the plain form.

    A tokenizer's name stands for its published forms at their image sizes; with an image size, or where there are none, for
    its plain form. note: hears of published suites that cannot be read. Raises BadInput for a name that there is not.
    """
    published = [n for n in names if n not in available("tokenizer")]
    if image_size is not None and (published or not names):
        raise BadInput(f"--image-size {image_size}: {published[0] if published else 'what is published'} has its own; name tokenizers")
    if not names:
        published = _published(places, note)
        have = {s.model.name for s in published}
        return [*published, *(plain(name, PLAIN_PIXELS) for name in available("tokenizer") if name not in have)]
    found: list[System] = []
    for name in names:
        if name in available("tokenizer"):
            own = [] if image_size else [s for s in _published(places, note) if s.model.name == name]
            found += own or [plain(name, image_size or PLAIN_PIXELS)]
        elif name in checkpoints():
            found.append(of_checkpoint(name))
        else:
            try:
                file = find_suite(name)
            except BadInput as error:
                near = did_you_mean(name, [*available("tokenizer"), *checkpoints()])
                raise BadInput(f"{name}: no tokenizer, no published checkpoint and no suite{near}" if near else str(error)) from error
            found += of_suite(file, places)
    return found


def _published(places: Places, note: Callable[[str], None]) -> list[System]:
    home, found = find_suite("quickstart").parent, []
    for file in sorted(home.glob("*.yaml")):
        if any(fnmatch.fnmatch(file.stem, pattern) for pattern in PUBLISHED):
            try:
                found += of_suite(file, places)
            except BadInput as error:
                note(f"left out: {str(error).splitlines()[0]}")
    return [*found, *(of_checkpoint(name) for name in checkpoints() if name in _architectures())]


def plain(name: str, image_size: int) -> System:
    """A registered tokenizer with its defaults and K and D of PLAIN. Raises BadInput or Incompatible."""
    return System(name, sized("tokenizer", name, PLAIN), image_size)


def of_suite(file: Path, places: Places) -> list[System]:
    """Each tokenizer that a suite trains, once, called by the fewest settings that tell it from the others."""
    suite = Suite.load(file)
    runs = {}
    for run in suite.expand(places):
        runs.setdefault((repr(run.train.model.content()), run.train.dataset.kwargs["image_size"]), run)
    labels = [suite.drafts[r.train_id].label for r in runs.values()]
    told = _told_apart([flatten({"tokenizer": r.train.model}) for r in runs.values()])
    words = [label if label and labels.count(label) == 1 else ", ".join(filter(None, (label, said)))
             for label, said in zip(labels, told, strict=True)]
    return [System(f"{suite.name}: {said}" if said else suite.name, r.train.model, r.train.dataset.kwargs["image_size"], r.loop, r.train)
            for r, said in zip(runs.values(), words, strict=True)]


def of_checkpoint(name: str) -> System:
    """A published checkpoint as its format would read it off the tensors: the weights need not be here. Raises BadInput."""
    entry, said = load_checkpoint(name), _architectures().get(name)
    if said is None:
        raise BadInput(f"{name}: bench/architectures.yaml does not say what it is made of, so its costs are known from its records only")
    return System(name, bind("tokenizer", {**said, **entry.tokenizer}, ("tokenizer",), _fail), entry.image_size,
                  checkpoint=name)


@functools.cache
def _architectures() -> Mapping[str, Mapping[str, Any]]:
    return json.loads(json.dumps(yaml.safe_load(ARCHITECTURES.read_text(encoding="utf-8"))))


def _fail(path: tuple[Any, ...], value: Any, sentence: str) -> Exception:
    return BadInput(f"{'.'.join(map(str, path))} = {value!r}: {sentence}")


def _told_apart(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """'codebook_size 1024' for each, from the first settings that split those who still share their words."""
    words: list[tuple[str, ...]] = [() for _ in fields]
    for key in dict.fromkeys(k for f in fields for k in f):
        said = [_said(key, f[key]) if key in f else "" for f in fields]
        if len(set(zip(words, said, strict=True))) > len(set(words)):
            words = [(*w, s) if s else w for w, s in zip(words, said, strict=True)]
    return [", ".join(w) for w in words]


def _said(key: str, value: Any) -> str:
    text = json.dumps(value, default=list, ensure_ascii=False).strip('"')
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    path = key.removesuffix(".name").split(".")
    return short if key.endswith(".name") else f"{path[-1]} {short}"


# -- what is known without running -----------------------------------------------------------------------------------


def architectures(found: Sequence[System], session: Session, tell: Tell = lambda label, done, total: None) -> tuple[
        list[Architecture], list[tuple[list[System], Structure]], list[tuple[System, str]]]:
    """(one record a set of keywords, systems by structure, those that cannot be for their image size and why)."""
    known = structures([(s.model, s.image_size) for s in found], lambda done, total: tell("shapes", done, total))
    records: dict[str, Architecture] = {}
    groups: dict[str, tuple[list[System], Structure]] = {}
    refused = []
    for s, structure in zip(found, known, strict=True):
        if isinstance(structure, str):
            refused.append((s, structure))
            continue
        groups.setdefault(structure.digest, ([], structure))[0].append(s)
        key = architecture_id(s.model, s.image_size)
        before = records.get(key)
        records[key] = Architecture(
            architecture=key, structure=structure.digest, names=[*(before.names if before else ()), s.name],
            checkpoints=[*(before.checkpoints if before else ()), *([s.checkpoint] if s.checkpoint else ())],
            model=json.loads(s.model.model_dump_json()), image_size=s.image_size, layout=structure.layout,
            parameters=structure.parameters, macs=structure.macs, commit=session.commit, dirty=session.dirty)
    return list(records.values()), list(groups.values()), refused


# -- timing ----------------------------------------------------------------------------------------------------------


def profile_tokenizers(
    groups: Sequence[tuple[list[System], Structure]], refused: Sequence[tuple[System, str]] = (), *, session: Session,
    batches: Sequence[int], device: torch.device | None = None, precision: str | None = None, rounds: int = 7, threads: int | None = None,
    patience: float = float("inf"), what: Sequence[str] = WHAT, tell: Tell = lambda label, done, total: None,
) -> Iterator[Timing]:
    """Yields encode (images to codes), decode (codes to images) and train (a whole step of the training loop) at each batch.

    Of systems with the same operations and shapes the first is timed. What one system does takes turns, round by round;
    systems follow one another, since several do not fit a device. precision: bf16 or fp32; default: what training takes.
    """
    device = device or torch.device("cpu")
    with threads_of(threads):
        for s, reason in refused:
            for batch in batches:
                yield from (session.timing(**_common(s, batch, precision or "fp32"), what=w, reason=reason) for w in what)
        for (first, *_), structure in groups if what else ():
            yield from _profile(session, first, structure, batches, device, precision, rounds, patience, what, tell)


def unsettled(
    groups: Sequence[tuple[list[System], Structure]], have: Container[tuple[str, str, int, str]], *, batches: Sequence[int],
    what: Sequence[str], device: torch.device, precision: str | None = None,
) -> list[tuple[list[System], Structure]]:
    """The groups of which anything that is asked for is not among those (structure, what, batch, dtype)."""
    def lacks(first: System, structure: Structure) -> bool:
        dtype, _ = autocast(first.training(1, precision), device)
        return any((structure.digest, w, batch, dtype) not in have for w in what for batch in batches)

    return [group for group in groups if lacks(group[0][0], group[1])]


def _common(s: System, batch: int, dtype: str) -> dict[str, Any]:
    return {"kind": "tokenizer", "name": s.name, "size": {"image_size": s.image_size, "batch": batch}, "dtype": dtype}


def _profile(
    session: Session, s: System, structure: Structure, batches: Sequence[int], device: torch.device, precision: str | None, rounds: int,
    patience: float, what: Sequence[str], tell: Tell,
) -> Iterator[Timing]:
    dtype, context = autocast(s.training(1, precision), device)
    macs = structure.macs | {"train": sum(structure.macs.values())}
    facts = {"structure": structure.digest, "parameters": structure.parameters["total"]}
    tokenizer = _built(s, device)
    for batch in batches:
        pixels = torch.rand(batch, 3, s.image_size, s.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        layout = torch.channels_last if s.loop.channels_last else torch.contiguous_format
        images, reasons = pixels.to(device, memory_format=layout), {}
        calls = _calls(tokenizer, images, context)
        if "train" in what:
            try:
                calls["train"] = _training(s, s.training(batch, precision), images, device, context)
            except (BadInput, ValueError) as error:
                reasons["train"] = str(error).splitlines()[0]
        label = f"{s.name}, batch {batch}"
        watched = watch({w: calls[w] for w in what if w in calls}, rounds, device, lambda done, total, label=label: tell(label, done, total),
                        memory=True, patience=patience)
        for w in what:
            common = _common(s, batch, dtype) | facts | {"what": w, "macs": macs[w]}
            if reason := reasons.get(w) or watched[w].failure:
                yield session.timing(**common, reason=reason)
                continue
            one = watched[w]
            yield session.timing(**common, memory=one.memory, memory_by=one.memory_by, repeats=one.repeats, seconds=one.seconds,
                                 processor_seconds=one.processor_seconds)


def _built(s: System, device: torch.device) -> Tokenizer:
    """With weights of a fixed seed, which no cost depends on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer: Tokenizer = s.model.partial()(s.image_size)
    layout = torch.channels_last if s.loop.channels_last else torch.contiguous_format
    return tokenizer.to(device, memory_format=layout).eval().requires_grad_(False)


def _calls(tokenizer: Tokenizer, images: Tensor, context: Callable[[], AbstractContextManager]) -> dict[str, Callable[[], None]]:
    with torch.no_grad(), context():
        codes = tokenizer.tokenize(images)
        quantized = tokenizer(images).quantized if codes is None else None

    @torch.no_grad()
    def encode() -> None:
        with context():
            tokenizer.tokenize(images)

    @torch.no_grad()
    def decode() -> None:
        with context():
            tokenizer.decode(quantized) if codes is None else tokenizer.detokenize(codes)

    return {"encode": encode, "decode": decode}


def _training(
    s: System, spec: TrainSpec, images: Tensor, device: torch.device, context: Callable[[], AbstractContextManager]
) -> Callable[[], None]:
    """One step of the training loop. Raises BadInput or ValueError where it cannot be built: a loss's network is not here."""
    state, fixed = build_state(spec, s.loop, (), device), Batch(images)

    def step() -> None:
        train(state, lambda number, part: fixed, spec, lambda after: True, precision=context)

    return step
