"""One draft of a run -> one checked Run; every problem names file, line, dotted key and value. Torch-free."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from bench.catalogue import Absent, digest, format_name, load_checkpoint
from bench.errors import BadInput
from bench.image_cache import open_split
from bench.places import Places
from bench.protocol import load_protocol
from bench.protocol import wanted as wish_of
from bench.registry import did_you_mean, signature
from bench.resources import Resources
from bench.results import Component, DataRecord
from bench.run import Run, Start, Wanted, describe
from bench.spec import (
    MISSING,
    ComponentSpec,
    InitFrom,
    LoopSettings,
    OptimizerSpec,
    Positive,
    Spec,
    TrainSpec,
    ValueSpec,
    bind,
    flatten,
    hint,
)
from bench.weights import identity as weight_identity
from bench.weights import needed
from bench.yaml_lines import KeyPath

SECTIONS = ("dataset", "tokenizer", "objective", "optimizers", "train", "measure", "monitors")
RESOURCES = "resources"                         # a section of every run, too, but in no identity
DEBUG_STEPS = 10
DEBUG_IMAGES = 64
_TRAIN_FIELDS = ("data", "steps", "batch_size", "accumulation", "flip", "precision", "average", "seed", "debug", "harness")

T = TypeVar("T")


# -- the sections of a run -------------------------------------------------------------------------------------------


class InitFromSection(Spec):
    """`train.init_from:` of a suite: another run of it by its label, or a checkpoint."""

    run: str | None = None
    checkpoint: str | None = None               # a name, a file, a folder, an URL, hf:OWNER/NAME[:FILE]
    format: str | None = None                   # where the checkpoint does not say so itself
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{12,64}$")] | None = None    # of its file, where it is not here yet
    names: dict[str, str] = {}                  # how names begin there -> how they begin here
    weights: Literal["live", "average"] = "live"

    @model_validator(mode="after")
    def _one_source(self) -> InitFromSection:
        if (self.run is None) == (self.checkpoint is None):
            raise ValueError("name the run of this suite (run: its label) or the checkpoint to begin from; one of them")
        if self.run is not None and (self.format or self.sha256):
            raise ValueError("format and sha256 are of a checkpoint, not of a run of this suite")
        return self


class TrainSection(LoopSettings):
    """`train:` of a suite: what changes the weights, and how the run is carried out (in no identity)."""

    steps: Positive | None = None               # one of steps and epochs
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive
    accumulation: Positive = 1
    flip: bool = False
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    average_ramp: Literal["ratio", "power"] | None = None
    init_from: InitFromSection | None = None
    freeze: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _averages(self) -> TrainSection:
        if self.average_ramp is not None and self.average is None:
            raise ValueError("average_ramp needs train.average, the decay that it rises to")
        return self


class OptimizerSection(OptimizerSpec):
    """`optimizers.<player>:`; lr, or lr_per_image times the global batch."""

    lr: Annotated[float, Field(gt=0)] | None = None
    lr_per_image: Annotated[float, Field(gt=0)] | None = None


class MeasureSection(Spec):
    """`measure:` of a suite: which numbers, under which protocol."""

    values: Annotated[tuple[str, ...], Field(min_length=1)]
    protocol: str = "ours-1"
    images: Positive | None = None              # only the first so many test images
    weights: Literal["live", "average"] = "live"


# -- what was written, and where -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """Where a setting was written."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Draft:
    """A run while it is put together: plain data, and where each setting came from.

    Neither is ever changed in place, so that a thousand drafts share what they have in common.
    """

    data: dict[str, Any] = field(default_factory=dict)
    written: tuple[tuple[KeyPath, dict[KeyPath, Where]], ...] = ()      # (path, origins below it), the last one counts
    label: str | None = None
    chosen: dict[str, Any] = field(default_factory=dict)                # of each axis, and of each group of zip its first key

    def set(self, path: tuple[str, ...], value: Any, origins: dict[KeyPath, Where]) -> None:
        """Write a value and, for every path below it, where it was written (`origins`: relative paths)."""
        self.data = _with(self.data, path, value)
        self.written = (*self.written, (path, origins))

    def get(self, path: Iterable[str]) -> Any:
        here: Any = self.data
        for key in path:
            if isinstance(here, str) and key == "name":
                return here
            if not isinstance(here, dict) or key not in here:
                return MISSING
            here = here[key]
        return here

    def where(self, path: KeyPath) -> Where:
        for written, origins in reversed(self.written):
            if path[: len(written)] == written:
                below = path[len(written):]
                for end in range(len(below), -1, -1):
                    if below[:end] in origins:
                        return origins[below[:end]]
        return Where("suite")

    def matches(self, wanted: dict[str, Any]) -> bool:
        for key, values in wanted.items():
            value = self.get(key.split("."))
            if value not in (values if isinstance(values, list) else [values]):
                return False
        return True

    def copy(self) -> Draft:
        return Draft(self.data, self.written, self.label, self.chosen)


def _with(here: Any, path: KeyPath, value: Any) -> Any:
    """`here` with a value at a path; what lies beside the path is shared, not copied."""
    if not path:
        return value
    if isinstance(here, str):
        here = {"name": here}                               # `quantizer: vq` is short for {name: vq}
    elif not isinstance(here, dict):
        here = {}
    return {**here, path[0]: _with(here.get(path[0]), path[1:], value)}


def explain(error: ValidationError, model: Any, root: KeyPath, data: Any, where: Callable[[KeyPath], object]) -> Iterator[str]:
    """pydantic's findings as our sentences; those on the branches of one union as one."""
    sentences: dict[KeyPath, list[str]] = {}
    unions: dict[KeyPath, list[KeyPath]] = {}           # where a union is -> what was found at or below it
    for finding in error.errors():
        loc, value, union = _located(tuple(finding["loc"]), data, finding["type"] == "missing")
        match finding["type"]:
            case "extra_forbidden":
                sentence = f"no such key{did_you_mean(str(loc[-1]), _fields_at(model, tuple(finding['loc'])[:-1]))}"
            case "missing":
                sentence = "this key is missing"
            case "too_short":
                sentence = "at least one value is needed"
            case kind:
                said = finding["msg"].removeprefix("Value error, ")
                sentence = said[0].lower() + said[1:] + ("" if union is not None else hint(value, kind))
        found = sentences.setdefault(loc, [])
        found.append(sentence.removeprefix("input should be ") if found else sentence)
        if union is not None:
            unions.setdefault(union, []).append(loc)
    for union, locs in unions.items():
        if any(len(loc) > len(union) for loc in locs):  # one branch was entered: the others were not meant
            sentences.pop(union, None)
    for loc, found in sentences.items():
        missing = found == ["this key is missing"]
        value = MISSING if missing else _located(loc, data, False)[1]
        shown = "" if value is MISSING else f" = {show(value)}"
        written = loc[:-1] if missing else loc
        yield (f"{where((*root, *written))}: {'.'.join(map(str, (*root, *loc)))}{shown}: "
               f"{' or '.join(dict.fromkeys(found))}")


def _located(loc: KeyPath, data: Any, missing: bool) -> tuple[KeyPath, Any, KeyPath | None]:
    """(path in what was written, value there, path of the union on the way): pydantic names a union's branches."""
    path: list[str | int] = []
    value, union = data, None
    for i, part in enumerate(loc):
        try:
            value = value[part]
            path.append(part)
        except (KeyError, IndexError, TypeError):
            if i == len(loc) - 1 and (missing or not path):
                return (*path, part), MISSING, union
            union = tuple(path)                         # not a key: the name of a branch
    return tuple(path), value, union


def _fields_at(model: Any, loc: KeyPath) -> list[str]:
    here: Any = model
    for part in loc:
        if hasattr(here, "model_fields") and part in here.model_fields:
            here = here.model_fields[part].annotation
            while typing.get_args(here) and not hasattr(here, "model_fields"):
                models = [a for a in typing.get_args(here) if hasattr(a, "model_fields") or typing.get_args(a)]
                if not models:
                    break
                here = models[0]
    return list(getattr(here, "model_fields", {}))


def show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


# -- binding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """A bound component with what a run and its record say of it."""

    spec: ComponentSpec
    fields: dict[str, Any]
    components: dict[str, Component]                        # itself, then those below it


@dataclass(frozen=True, slots=True)
class Measurement:
    """What checkpoints that were trained elsewhere are measured on, and for what."""

    dataset: Part
    test: DataRecord
    values: tuple[Wanted, ...]                              # of nobody's weights yet
    debug: bool


class Binder:
    """Drafts -> Runs; problems are collected, each once. What reads the same in many runs is bound once."""

    def __init__(self, problems: dict[str, None], places: Places) -> None:
        self.problems, self.places = problems, places
        self.draft = Draft()                                # the one that is being bound
        self.known: dict[tuple[str, str], Any] = {}         # (section, what is written there) -> what became of it

    def once(self, section: str, written: Any, bound: Callable[[], T]) -> T:
        """`bound()`, shared by all runs in which the section reads the same; a faulty one is read again, since it
        may be written elsewhere."""
        key = section, json.dumps(written, default=str)
        if key not in self.known:
            before = len(self.problems)
            made = bound()
            if made is None or len(self.problems) > before:
                return made
            self.known[key] = made
        return self.known[key]

    def fail(self, path: KeyPath, value: Any, sentence: str) -> BadInput:
        shown = "" if value is MISSING else f" = {show(value)}"
        return BadInput(f"{self.draft.where(path)}: {'.'.join(map(str, path))}{shown}: {sentence}")

    def component(self, section: str) -> Part | None:
        value = self.draft.data.get(section, MISSING)

        def bound() -> Part | None:
            try:
                if value is MISSING:
                    raise self.fail((section,), MISSING, "this section is missing")
                spec = bind(section, value, (section,), self.fail)
            except BadInput as error:
                self.problems[str(error)] = None
                return None
            below = {f"{section}.{path}": describe(c) for path, c in spec.nested()}
            return Part(spec, flatten({section: spec}), {section: describe(spec), **below})

        return self.once(section, value, bound)

    def section(self, model: type[BaseModel], name: str, data: Any, path: KeyPath) -> Any:
        if not isinstance(data, dict):
            self.problems[str(self.fail(path, data, "expected a mapping"))] = None
            return None
        try:
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for line in explain(error, model, path, data, lambda loc: self.draft.where(loc)):
                self.problems[line] = None
            return None

    def whole(self, model: type[BaseModel], name: str, data: Any) -> Any:
        """A section that is one model, bound once."""
        return self.once(name, data, lambda: self.section(model, name, data, (name,)))

    def run(self, draft: Draft, suite: str, label: str, debug: bool, parent: Run | None = None) -> Run | None:
        """parent: the run that this one begins from, where its draft names one."""
        self.draft = draft
        data = draft.data
        for section in data:
            if section not in SECTIONS and section != RESOURCES:
                self.problems[str(self.fail((section,), MISSING, f"no such section{did_you_mean(section, SECTIONS)}"))] = None
        dataset = self.component("dataset")
        model = self.component("tokenizer")
        objective = self.component("objective")
        monitors = self.once("monitors", data.get("monitors", []), lambda: self.monitors(data.get("monitors", [])))
        given = data.get("train", {})
        seed = given.get("seed", 0) if isinstance(given, dict) else 0
        if isinstance(given, dict):
            given = {k: v for k, v in given.items() if k != "seed"}
        train: TrainSection | None = self.whole(TrainSection, "train", given)
        written = data.get("optimizers", {})
        batch = None if train is None else train.batch_size
        optimizers = self.once("optimizers", (written, batch), lambda: self.optimizers(written, train))
        measure: MeasureSection | None = self.whole(MeasureSection, "measure", data.get("measure", {}))
        resources: Resources | None = self.whole(Resources, RESOURCES, data.get(RESOURCES, {}))
        if not isinstance(seed, int) or isinstance(seed, bool):
            self.problems[str(self.fail(("train", "seed"), seed, "a seed is a whole number"))] = None
        if measure is not None and measure.weights == "average" and train is not None and train.average is None:
            self.problems[str(self.fail(("measure", "weights"), measure.weights, "there are no averaged weights without "
                                        "train.average; set it, for example to 0.999"))] = None
        if None in (dataset, model, objective, train, measure, resources) or optimizers is None or self.problems:
            return None
        splits = self.splits(dataset.spec)
        if splits is None:
            return None
        steps = DEBUG_STEPS if debug else self.steps(train, splits["train"])
        if steps is None or not self.shared(train, resources):
            return None
        begun = self.begun(train, parent)
        if begun is None:
            return None
        start, init_from = begun
        spec = TrainSpec(
            dataset=dataset.spec, data=splits["train"].fingerprint, model=model.spec, objective=objective.spec,
            optimizers=optimizers, steps=steps, batch_size=train.batch_size, accumulation=train.accumulation,
            flip=train.flip, precision=train.precision, average=train.average, seed=seed, debug=debug,
            networks=self.once("networks", (model.spec, objective.spec), lambda: self.networks(model.spec, objective.spec)),
            init_from=init_from, freeze=train.freeze, average_ramp=train.average_ramp,
        )
        test = splits["test"]
        wanted = self.once("values", (data["measure"], test.fingerprint), lambda: self.values(measure, test, debug))
        if wanted is None:
            return None
        train_id = spec.train_id
        values = (w.model_copy(update={"spec": w.spec.model_copy(update={"train_id": train_id})}) for w in wanted)
        parts = {"dataset": dataset, "tokenizer": model, "objective": objective}
        fields = {k: v for part in parts.values() for k, v in part.fields.items()}
        fields |= self.once("their fields", (written, batch), lambda: flatten({"optimizers": optimizers}))
        fields |= {f"train.{k}": getattr(spec, k) for k in _TRAIN_FIELDS}
        if start is not None:
            fields["train.init_from"] = start.label
        if spec.freeze:
            fields["train.freeze"] = " ".join(spec.freeze)
        components = {section: part.components[section] for section, part in parts.items()}
        components |= {k: c for part in parts.values() for k, c in part.components.items()}
        run = Run(
            suite=suite, label=label, train=spec, values=tuple(values), monitors=monitors, fields=fields,
            loop=self.once("loop", given, lambda: self.loop(train, debug)), components=components, data=splits,
            resources=resources, start=start,
        )
        run.__dict__["train_id"] = train_id                 # where its cached_property keeps it: hashed once
        return run

    def measurement(self, draft: Draft, debug: bool) -> Measurement | None:
        """Of a draft that needs no more than `dataset` and `measure`; None, with problems, where one of them is faulty."""
        self.draft = draft
        dataset = self.component("dataset")
        measure: MeasureSection | None = self.whole(MeasureSection, "measure", draft.data.get("measure", {}))
        if dataset is None or measure is None or (splits := self.splits(dataset.spec)) is None:
            return None
        values = self.values(measure, splits["test"], debug)
        return None if values is None else Measurement(dataset, splits["test"], values, debug)

    def begun(self, train: TrainSection, parent: Run | None) -> tuple[Start | None, InitFrom | None] | None:
        """Where the weights are that a run begins with, and which ones they are; None, with a problem, where they are
        not known."""
        asked = train.init_from
        if asked is None:
            return None, None
        if asked.run is not None:
            if parent is None:
                return None                                     # it has problems of its own
            if asked.weights == "average" and parent.train.average is None:
                self.problems[str(self.fail(("train", "init_from", "weights"), asked.weights,
                                            f"{parent.label} has no averaged weights; set train.average in it"))] = None
                return None
            return (Start(label=parent.label),
                    InitFrom(run=parent.train_id, names=asked.names, weights=asked.weights))
        try:
            format = None if asked.format is None else format_name(asked.format)
            found = self.once("init_from", (asked.checkpoint, format), lambda: digest(asked.checkpoint, format, self.places))
        except Absent:                                          # planned without it; `preflight` lets nothing begin
            found = asked.sha256 or next((f.sha256 for f in load_checkpoint(asked.checkpoint).files[:1] if f.sha256), "unknown")
        except BadInput as error:
            self.problems[str(self.fail(("train", "init_from", "checkpoint"), asked.checkpoint, str(error)))] = None
            return None
        if asked.sha256 is not None and not found.startswith(asked.sha256) and not asked.sha256.startswith(found):
            self.problems[str(self.fail(("train", "init_from", "sha256"), asked.sha256,
                                        f"{asked.checkpoint} is another file: its sha256 is {found[:12]}..."))] = None
            return None
        named = Path(asked.checkpoint).name if asked.checkpoint[0] in "/~." else asked.checkpoint    # a record knows no paths
        return (Start(label=named, checkpoint=asked.checkpoint, format=format),
                InitFrom(sha256=found[:12], names=asked.names, weights=asked.weights))

    def loop(self, train: TrainSection, debug: bool) -> LoopSettings:
        loop = LoopSettings(**{k: getattr(train, k) for k in LoopSettings.model_fields})
        return loop.model_copy(update={"log_every": 1, "eval_every": None, "watch_every": 5}) if debug else loop

    def shared(self, train: TrainSection, resources: Resources) -> bool:
        """Whether the batch can be cut into micro-batches, and these among the processes: not found out at night."""
        if train.batch_size % train.accumulation:
            self.problems[str(self.fail(("train", "accumulation"), train.accumulation,
                                        f"must divide train.batch_size ({train.batch_size})"))] = None
            return False
        share = train.batch_size // train.accumulation
        if share % resources.world:
            counts = {"nodes": resources.nodes, "gpus": resources.gpus, "processes": resources.processes}
            given = ", ".join(f"resources.{k} = {v}" for k, v in counts.items() if v is not None)
            parts = f" in train.accumulation = {train.accumulation} parts" if train.accumulation > 1 else ""
            self.problems[str(self.fail(
                ("train", "batch_size"), train.batch_size,
                f"{given} make {resources.world} processes, which cannot share it equally{parts}; make it a multiple "
                f"of {train.accumulation * resources.world}, or change the resources"))] = None
            return False
        return True

    def monitors(self, given: Any) -> tuple[ComponentSpec, ...]:
        bound = []
        for i, item in enumerate(given if isinstance(given, list) else [given]):
            try:
                bound.append(bind("monitor", item, ("monitors", i), self.fail))
            except BadInput as error:
                self.problems[str(error)] = None
        return tuple(bound)

    def networks(self, *components: ComponentSpec) -> dict[str, str]:
        """Hash of each pretrained file that these, or a component in them, train with."""
        parts = [part for c in components for part in (c, *(below for _, below in c.nested()))]
        names = {n for p in parts for n in needed(signature(p.kind, p.name).attributes, p.kwargs)}
        return {name: weight_identity(name, self.places) for name in sorted(names)}

    def optimizers(self, given: Any, train: TrainSection | None) -> dict[str, OptimizerSpec] | None:
        if not isinstance(given, dict) or not given:
            self.problems[str(self.fail(("optimizers",), given, "expected one entry per player, for example "
                                        "{tokenizer: {name: adam, lr: 4e-4}}"))] = None
            return None
        made: dict[str, OptimizerSpec] = {}
        for player, data in given.items():
            section: OptimizerSection | None = self.section(OptimizerSection, player, data, ("optimizers", player))
            if section is None:
                continue
            if (section.lr is None) == (section.lr_per_image is None):
                self.problems[str(self.fail(("optimizers", player), data, "give lr, or lr_per_image; one of them"))] = None
                continue
            values = section.model_dump(exclude={"lr_per_image"})
            if section.lr is None and train is not None:
                values["lr"] = section.lr_per_image * train.batch_size
            if values["lr"] is not None:
                made[player] = OptimizerSpec(**values)
        return made

    def splits(self, dataset: ComponentSpec) -> dict[str, DataRecord] | None:
        def opened() -> dict[str, DataRecord] | None:
            records: dict[str, DataRecord] = {}
            for split in ("train", "test"):
                try:
                    records[split] = open_split(dataset.partial(), split, self.places).record
                except FileNotFoundError:
                    size = signature("dataset", dataset.name).attributes.get("official_size", {}).get(split)
                    records[split] = DataRecord(fingerprint="official", images=size or 0, of=size)
                except BadInput as error:
                    named = [k for k in dataset.kwargs if k in str(error)]
                    self.problems[f"{self.draft.where(('dataset', *named[:1]))}: dataset: {error}"] = None
                    return None
            return records

        return self.once("splits", self.draft.data["dataset"], opened)

    def steps(self, train: TrainSection, images: DataRecord) -> int | None:
        if (train.steps is None) == (train.epochs is None):
            self.problems[str(self.fail(("train",), MISSING, "give train.steps, or train.epochs; one of them"))] = None
            return None
        if train.steps is not None:
            return train.steps
        if not images.images:
            self.problems[str(self.fail(("train", "epochs"), train.epochs, "the number of images is not known here, so "
                                        "epochs cannot become steps; give train.steps or point --data at the images"))] = None
            return None
        return max(1, round(train.epochs * images.images / train.batch_size))

    def values(self, measure: MeasureSection, test: DataRecord, debug: bool) -> tuple[Wanted, ...] | None:
        """What is measured, of no run yet."""
        try:
            protocol = load_protocol(measure.protocol)
        except BadInput as error:
            self.problems[str(self.fail(("measure", "protocol"), measure.protocol, str(error)))] = None
            return None
        limit = min(DEBUG_IMAGES, measure.images or DEBUG_IMAGES) if debug else measure.images
        wanted: dict[str, Wanted] = {}                      # by value id: two protocols may mean the same
        for i, name in enumerate(measure.values):
            try:
                wish = wish_of(name, protocol.name)
            except BadInput as error:
                self.problems[str(self.fail(("measure", "values", i), name, str(error)))] = None
                continue
            needs = needed(signature("metric", wish.metric.name).attributes, wish.metric.kwargs)
            one = Wanted(name=name, protocol=wish.protocol.name, spec=ValueSpec(
                train_id="", weights=measure.weights, data=test.fingerprint, images=limit,
                prepare=wish.prepare, metric=wish.metric, networks={n: weight_identity(n, self.places) for n in needs},
            ))
            wanted.setdefault(one.spec.value_id, one)
        return None if self.problems else tuple(wanted.values())
