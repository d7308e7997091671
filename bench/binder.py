"""One draft of a run -> one checked Run; every problem names file, line, dotted key and value. Torch-free."""

from __future__ import annotations

import copy
import json
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bench.errors import BadInput
from bench.image_cache import open_split
from bench.places import Places
from bench.protocol import load_protocol
from bench.registry import did_you_mean, signature
from bench.resources import Resources
from bench.results import DataRecord
from bench.run import Run, Wanted, describe
from bench.spec import (
    MISSING,
    ComponentSpec,
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
DEBUG_STEPS = 10
DEBUG_IMAGES = 64
_TRAIN_FIELDS = ("data", "steps", "batch_size", "accumulation", "flip", "precision", "average", "seed", "debug", "harness")


# -- the sections of a run -------------------------------------------------------------------------------------------


class TrainSection(LoopSettings):
    """`train:` of a suite: what changes the weights, and how the run is carried out (in no identity)."""

    steps: Positive | None = None               # one of steps and epochs
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive
    accumulation: Positive = 1
    flip: bool = False
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    average: Annotated[float, Field(gt=0, lt=1)] | None = None


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
    """A run while it is put together: plain data, and where each setting came from."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Where] = field(default_factory=dict)
    label: str | None = None

    def set(self, path: tuple[str, ...], value: Any, origins: dict[KeyPath, Where]) -> None:
        """Write a value and, for every path below it, where it was written (`origins`: relative paths)."""
        here = self.data
        for key in path[:-1]:
            if isinstance(here.get(key), str):
                here[key] = {"name": here[key]}             # `quantizer: vq` is short for {name: vq}
            elif not isinstance(here.get(key), dict):
                here[key] = {}
            here = here[key]
        here[path[-1]] = copy.deepcopy(value)
        self.origins = {k: w for k, w in self.origins.items() if k[: len(path)] != path}
        self.origins |= {(*path, *below): where for below, where in origins.items()}

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
        for end in range(len(path), -1, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return Where("suite")

    def matches(self, wanted: dict[str, Any]) -> bool:
        for key, values in wanted.items():
            value = self.get(key.split("."))
            if value not in (values if isinstance(values, list) else [values]):
                return False
        return True

    def copy(self) -> Draft:
        return Draft(copy.deepcopy(self.data), dict(self.origins), self.label)


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
                sentence = finding["msg"][0].lower() + finding["msg"][1:] + ("" if union is not None else hint(value, kind))
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


class Binder:
    """One draft -> one Run; problems are collected, each once."""

    def __init__(self, draft: Draft, problems: dict[str, None], opened: dict[str, dict[str, DataRecord]], places: Places) -> None:
        self.draft, self.problems, self.opened, self.places = draft, problems, opened, places

    def fail(self, path: KeyPath, value: Any, sentence: str) -> BadInput:
        shown = "" if value is MISSING else f" = {show(value)}"
        return BadInput(f"{self.draft.where(path)}: {'.'.join(map(str, path))}{shown}: {sentence}")

    def component(self, kind: str, section: str) -> ComponentSpec | None:
        value = self.draft.data.get(section, MISSING)
        try:
            if value is MISSING:
                raise self.fail((section,), MISSING, "this section is missing")
            return bind(kind, value, (section,), self.fail)
        except BadInput as error:
            self.problems[str(error)] = None
            return None

    def section(self, model: type[Spec], name: str, data: Any, path: KeyPath) -> Any:
        if not isinstance(data, dict):
            self.problems[str(self.fail(path, data, "expected a mapping"))] = None
            return None
        try:
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for line in explain(error, model, path, data, lambda loc: self.draft.where(loc)):
                self.problems[line] = None
            return None

    def run(self, suite: str, label: str, resources: Resources, debug: bool) -> Run | None:
        data = self.draft.data
        for section in data:
            if section not in SECTIONS:
                self.problems[str(self.fail((section,), MISSING, f"no such section{did_you_mean(section, SECTIONS)}"))] = None
        dataset = self.component("dataset", "dataset")
        model = self.component("tokenizer", "tokenizer")
        objective = self.component("objective", "objective")
        monitors = self.monitors(data.get("monitors", []))
        given = data.get("train", {})
        seed = given.get("seed", 0) if isinstance(given, dict) else 0
        if isinstance(given, dict):
            given = {k: v for k, v in given.items() if k != "seed"}
        train: TrainSection | None = self.section(TrainSection, "train", given, ("train",))
        optimizers = self.optimizers(data.get("optimizers", {}), train)
        measure: MeasureSection | None = self.section(MeasureSection, "measure", data.get("measure", {}), ("measure",))
        if not isinstance(seed, int) or isinstance(seed, bool):
            self.problems[str(self.fail(("train", "seed"), seed, "a seed is a whole number"))] = None
        if measure is not None and measure.weights == "average" and train is not None and train.average is None:
            self.problems[str(self.fail(("measure", "weights"), measure.weights, "there are no averaged weights without "
                                        "train.average; set it, for example to 0.999"))] = None
        if None in (dataset, model, objective, train, measure) or optimizers is None or self.problems:
            return None
        splits = self.splits(dataset)
        if splits is None:
            return None
        steps = DEBUG_STEPS if debug else self.steps(train, splits["train"])
        if steps is None:
            return None
        loop = LoopSettings(**{k: getattr(train, k) for k in LoopSettings.model_fields})
        if debug:
            loop = loop.model_copy(update={"log_every": 1, "eval_every": None, "watch_every": 5})
        spec = TrainSpec(
            dataset=dataset, data=splits["train"].fingerprint, model=model, objective=objective, optimizers=optimizers,
            steps=steps, batch_size=train.batch_size, accumulation=train.accumulation, flip=train.flip,
            precision=train.precision, average=train.average, seed=seed, debug=debug,
        )
        if train.batch_size % train.accumulation:
            self.problems[str(self.fail(("train", "accumulation"), train.accumulation,
                                        f"must divide train.batch_size ({train.batch_size})"))] = None
            return None
        values = self.values(measure, spec.train_id, splits["test"], debug)
        if values is None:
            return None
        components = {"dataset": dataset, "tokenizer": model, "objective": objective}
        for name, part in list(components.items()):
            components |= {f"{name}.{below}": c for below, c in part.nested()}
        fields = flatten({"dataset": dataset, "tokenizer": model, "objective": objective, "optimizers": optimizers})
        fields |= {f"train.{k}": v for k, v in flatten(spec).items() if k in _TRAIN_FIELDS}
        return Run(
            suite=suite, label=label, train=spec, values=values, loop=loop, monitors=monitors, fields=fields,
            components={k: describe(c) for k, c in components.items()}, data=splits, resources=resources,
        )

    def monitors(self, given: Any) -> tuple[ComponentSpec, ...]:
        bound = []
        for i, item in enumerate(given if isinstance(given, list) else [given]):
            try:
                bound.append(bind("monitor", item, ("monitors", i), self.fail))
            except BadInput as error:
                self.problems[str(error)] = None
        return tuple(bound)

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
        key = json.dumps(dataset.content(), sort_keys=True, default=str)
        if key not in self.opened:
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
            self.opened[key] = records
        return self.opened[key]

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

    def values(self, measure: MeasureSection, train_id: str, test: DataRecord, debug: bool) -> tuple[Wanted, ...] | None:
        try:
            protocol = load_protocol(measure.protocol)
        except BadInput as error:
            self.problems[str(self.fail(("measure", "protocol"), measure.protocol, str(error)))] = None
            return None
        wanted: list[Wanted] = []
        for i, name in enumerate(measure.values):
            if name not in protocol.values:
                self.problems[str(self.fail(("measure", "values", i), name, f"protocol {protocol.name} has no such value"
                                            f"{did_you_mean(name, protocol.values)}"))] = None
                continue
            entry = dict(protocol.values[name])
            metric = bind("metric", {"name": entry.pop("metric"), **entry}, ("protocol", name), self.fail)
            needs = needed(signature("metric", metric.name).attributes, metric.kwargs)
            limit = min(DEBUG_IMAGES, measure.images or DEBUG_IMAGES) if debug else measure.images
            wanted.append(Wanted(name=name, protocol=protocol.name, spec=ValueSpec(
                train_id=train_id, weights=measure.weights, data=test.fingerprint, images=limit,
                prepare=protocol.prepare, metric=metric, networks={n: weight_identity(n, self.places) for n in needs},
            )))
        return None if self.problems else tuple(wanted)
