"""One YAML, one question: a suite file with line numbers -> a checked Suite -> runs. Torch-free."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bench.errors import BadInput
from bench.image_cache import OpenSplit, open_split
from bench.places import Places
from bench.protocol import load_protocol
from bench.registry import did_you_mean, signature
from bench.report.spec import ReportSpec
from bench.resources import Resources
from bench.results import Component, DataRecord
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
from bench.yaml_lines import KeyPath, load_yaml, scalar

SECTIONS = ("dataset", "tokenizer", "objective", "optimizers", "train", "measure", "monitors")
DEBUG_STEPS = 10
DEBUG_IMAGES = 64


# -- the schema ------------------------------------------------------------------------------------------------------


class Override(Spec):
    """Settings for the runs that match: keys are dotted, a list of values matches any of them."""

    match: dict[str, Any]
    set: dict[str, Any]


class SuiteFrame(Spec):
    """The top level of a suite file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_\-]*$", description="also the folder of its results")]
    question: Annotated[str, Field(description="the one question that this suite answers, as a sentence")]
    base: Annotated[dict[str, Any], Field(description="settings that all runs share")]
    axes: Annotated[dict[str, list[Any]], Field(description="dotted key -> values; their product")] = {}
    zip: Annotated[tuple[dict[str, list[Any]], ...], Field(description="groups of keys that move together")] = ()
    include: Annotated[tuple[dict[str, Any], ...], Field(description="further runs: base with these settings")] = ()
    exclude: Annotated[tuple[dict[str, Any], ...], Field(description="leave out the runs that match")] = ()
    override: Annotated[tuple[Override, ...], Field(description="change settings of the runs that match")] = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1, description="each run once per seed")] = (0,)
    resources: Resources = Resources()
    report: ReportSpec = ReportSpec()


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


# -- what comes out --------------------------------------------------------------------------------------------------


class Wanted(Spec):
    """One number a run is asked for: the column's name, and all that can change it."""

    name: str
    protocol: str
    spec: ValueSpec

    @functools.cached_property
    def value_id(self) -> str:
        return self.spec.value_id

    def settings(self) -> dict[str, Any]:
        """What is in the value id besides the metric's keywords, for the record."""
        spec = self.spec
        return {"revision": spec.metric.revision, "weights": spec.weights, "split": spec.split, "limit": spec.images,
                "prepare": spec.prepare, "networks": spec.networks}


class Run(Spec):
    """One run of a suite, complete and checked; travels to a job as JSON."""

    suite: str
    label: str
    train: TrainSpec
    values: tuple[Wanted, ...]
    loop: LoopSettings
    monitors: tuple[ComponentSpec, ...] = ()
    fields: dict[str, Any]                      # dotted key -> scalar: what tables show and group by
    components: dict[str, Component]
    data: dict[str, DataRecord]
    resources: Resources = Resources()

    @functools.cached_property
    def train_id(self) -> str:
        return self.train.train_id


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


# -- loading and expanding -------------------------------------------------------------------------------------------


class Suite:
    """A suite file (and the command line's overrides), its frame checked."""

    def __init__(self, frame: SuiteFrame, file: str, lines: dict[KeyPath, int], overrides: dict[str, Any]) -> None:
        self.frame, self.file, self.lines, self.overrides = frame, file, lines, overrides
        self.notes: list[str] = []
        self.drafts: dict[str, Draft] = {}          # by train id: where each setting of a run was written

    @property
    def name(self) -> str:
        return self.frame.name

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), *, name: str | None = None) -> Suite:
        """Read a suite by path, or by name from suites/. Raises BadInput with file, line, key and value."""
        file = find_suite(path)
        try:
            data, lines = load_yaml(file.read_text(), file)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: cannot be read ({error})") from error
        if not isinstance(data, dict):
            raise BadInput(f"{file}: a suite is a mapping with name, question, base, ...; see docs/suites.md")
        run_level = _apply_overrides(data, overrides, lines)
        if name is not None:
            data["name"] = name

        def where(loc: KeyPath) -> str:
            for end in range(len(loc), -1, -1):
                if loc[:end] in lines:
                    return f"{file}:{lines[loc[:end]]}" if end or not loc else "command line"
            return "command line"

        try:
            frame = SuiteFrame.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            raise BadInput("\n".join(_explain(error, SuiteFrame, (), data, where))) from None
        return cls(frame, str(file), lines, run_level)

    def expand(self, places: Places, *, debug: bool = False) -> list[Run]:
        """All runs, in the order written, duplicates of the command line's making joined. Reads listings of the
        data sets, no image. Raises BadInput with one line per problem."""
        problems: dict[str, None] = {}
        drafts = self._drafts(problems)
        opened: dict[str, dict[str, OpenSplit | DataRecord]] = {}
        runs: dict[str, Run] = {}
        labels = _labels(drafts)
        for draft, label in zip(drafts, labels, strict=True):
            binder = _Binder(draft, problems, opened, places)
            run = binder.run(self.name, draft.label or label, self.frame.resources, debug)
            if run is None:
                continue
            if run.train_id in runs:
                if not self.overrides:
                    problems[f"{self.file}: the runs {runs[run.train_id].label!r} and {run.label!r} have the same "
                             f"settings; exclude one"] = None
                else:
                    self.notes.append(f"{run.label} is the same run as {runs[run.train_id].label} under these overrides")
                continue
            runs[run.train_id], self.drafts[run.train_id] = run, draft
        if problems:
            raise BadInput("\n".join(problems))
        if not runs:
            raise BadInput(f"{self.file}: exclude: leaves no run")
        return list(runs.values())

    def locate(self, run: Run, key: str | None, sentence: str) -> str:
        """A sentence about a setting of a run, with the file, the line, the dotted key and the value."""
        draft = self.drafts[run.train_id]
        if key is None:
            return f"{self.file}: {run.label}: {sentence}"
        path = tuple(key.split("."))
        value = draft.get(path)
        shown = "" if value is MISSING or isinstance(value, dict) else f" = {_show(value)}"
        return f"{draft.where(path)}: {key}{shown}: {sentence}"

    def _drafts(self, problems: dict[str, None]) -> list[Draft]:
        frame = self.frame
        base = Draft(origins={(): Where(self.file, self.lines.get(("base",)))})
        for section, value in frame.base.items():
            if section not in SECTIONS:
                problems[f"{self._at('base', section)}: base.{section}: no such section"
                         f"{did_you_mean(section, SECTIONS)}"] = None
                continue
            base.set((section,), value, self._origins(("base", section)))

        choices: list[list[list[tuple[str, Any, KeyPath]]]] = []        # per axis: per choice: settings
        for key, values in frame.axes.items():
            if not values:
                problems[f"{self._at('axes', key)}: axes.{key}: an axis needs at least one value"] = None
            choices.append([[(key, value, ("axes", key, i))] for i, value in enumerate(values)])
        for g, group in enumerate(frame.zip):
            lengths = {key: len(values) for key, values in group.items()}
            if len(set(lengths.values())) > 1:
                problems[f"{self._at('zip', g)}: zip: keys that move together need equally many values, got {lengths}"] = None
                continue
            choices.append([[(key, values[i], ("zip", g, key, i)) for key, values in group.items()]
                            for i in range(next(iter(lengths.values()), 0))])

        drafts: list[Draft] = []
        for combination in itertools.product(*choices):
            draft = base.copy()
            for key, value, path in sorted(itertools.chain(*combination), key=lambda s: s[0].count(".")):
                draft.set(tuple(key.split(".")), value, self._origins(path))
            drafts.append(draft)
        for i, settings in enumerate(frame.include):
            draft = base.copy()
            for key, value in sorted(settings.items(), key=lambda s: s[0].count(".")):
                if key == "label":
                    draft.label = str(value)
                else:
                    draft.set(tuple(key.split(".")), value, self._origins(("include", i, key)))
            drafts.append(draft)

        for kind, matchers in (("exclude", frame.exclude), ("override", [o.match for o in frame.override])):
            for i, match in enumerate(matchers):
                if not any(d.matches(match) for d in drafts) and not self.overrides:
                    problems[f"{self._at(kind, i)}: {kind}: {json.dumps(match)} matches no run"] = None
        drafts = [d for d in drafts if not any(d.matches(m) for m in frame.exclude)]
        for i, change in enumerate(frame.override):
            for draft in drafts:
                if draft.matches(change.match):
                    for key, value in change.set.items():
                        draft.set(tuple(key.split(".")), value, self._origins(("override", i, "set", key)))
        seeded: list[Draft] = []
        for draft, seed in itertools.product(drafts, frame.seeds):
            one = draft.copy()
            if isinstance(one.data.get("train", {}), dict) and one.get(("train", "seed")) is MISSING:
                one.set(("train", "seed"), seed, {(): Where(self.file, self.lines.get(("seeds",)))})
            for key, value in self.overrides.items():
                one.set(tuple(key.split(".")), value, {(): Where("command line")})
            seeded.append(one)
        return seeded

    def _at(self, *path: str | int) -> str:
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]}"
        return self.file

    def _origins(self, path: KeyPath) -> dict[KeyPath, Where]:
        """Where everything below a path of the file was written; the command line where it was not."""
        n = len(path)
        found = {k[n:]: Where(self.file, line) for k, line in self.lines.items() if k[:n] == path}
        return found or {(): Where("command line")}


def find_suite(path: str | Path) -> Path:
    """suites/x.yaml, or x for suites/x.yaml."""
    given = Path(path)
    if given.suffix in (".yaml", ".yml"):
        if given.is_file():
            return given
        near = did_you_mean(given.stem, [p.stem for p in given.parent.glob("*.yaml")] if given.parent.is_dir() else [])
        raise BadInput(f"{given}: no such suite file{near}")
    here = Path("suites") / f"{given}.yaml"
    if here.is_file():
        return here
    names = [p.stem for p in Path("suites").glob("*.yaml")]
    raise BadInput(f"there is no suite {str(given)!r} in suites/{did_you_mean(str(given), names)}")


def _apply_overrides(data: dict[str, Any], overrides: Iterable[str], lines: dict[KeyPath, int]) -> dict[str, Any]:
    """Frame keys and axes are changed in `data` (and leave `lines`); what remains is set in every run, last."""
    run_level: dict[str, Any] = {}

    def not_from_file(*path: str) -> None:
        for known in [k for k in lines if k[: len(path)] == path]:
            del lines[known]

    for text in overrides:
        key, equals, written = text.partition("=")
        key = key.removeprefix("base.")
        head = key.split(".")[0]
        if not equals or not key:
            raise BadInput(f"command line: {text!r}: an override is written dotted.key=value")
        value = load_yaml(written, "command line")[0] if written[:1] in "[{\"'" and written else scalar(written)
        if key == "train.seed":
            key, head, value = "seeds", "seeds", value if isinstance(value, list) else [value]
        if head in SuiteFrame.model_fields and head not in ("base", "name"):
            if key != head and head in ("axes", "resources"):
                data.setdefault(head, {})[key.partition(".")[2]] = value
                not_from_file(*((head,) if head == "resources" else (head, key.partition(".")[2])))
            elif key == head:
                data[head] = value
                not_from_file(head)
            else:
                raise BadInput(f"command line: {text!r}: only {head}=... as a whole can be overridden")
        elif head in SECTIONS:
            moved = [g for g in data.get("zip") or [] if isinstance(g, dict) and key in g]
            if moved:
                raise BadInput(f"command line: {text!r}: {key} moves together with other keys in zip; override zip=[...]")
            if key in (data.get("axes") or {}):
                data["axes"][key] = value if isinstance(value, list) else [value]
                not_from_file("axes", key)
            else:
                run_level[key] = value
        else:
            raise BadInput(f"command line: {text!r}: no section {head!r}{did_you_mean(head, SECTIONS)}")
    return run_level


def _labels(drafts: list[Draft]) -> list[str]:
    """Short names from what differs between the runs."""
    flat = [flatten(d.data) for d in drafts]
    keys = list(dict.fromkeys(k for row in flat for k in row))
    keys.sort(key=lambda k: k == "train.seed")              # stable: the seed comes last
    varying = [k for k in keys if len({json.dumps(row.get(k), default=str) for row in flat}) > 1]
    named = {k for k in varying if k.endswith(".name")}
    short = {k: k.rpartition(".")[2] for k in varying}
    clash = {s for s in short.values() if list(short.values()).count(s) > 1}
    labels = []
    for row in flat:
        words = []
        for k in varying:
            if k not in row:
                continue
            words.append(str(row[k]) if k in named else f"{k if short[k] in clash else short[k]}={row[k]}")
        labels.append(" ".join(words) or "run")
    return labels


def _explain(error: ValidationError, model: Any, root: KeyPath, data: Any, where: Any) -> Iterator[str]:
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
        shown = "" if value is MISSING else f" = {_show(value)}"
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
    import typing

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


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


class _Binder:
    """One draft -> one Run; problems are collected, each once."""

    def __init__(self, draft: Draft, problems: dict[str, None], opened: dict[str, Any], places: Places) -> None:
        self.draft, self.problems, self.opened, self.places = draft, problems, opened, places

    def fail(self, path: KeyPath, value: Any, sentence: str) -> BadInput:
        shown = "" if value is MISSING else f" = {_show(value)}"
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
            for line in _explain(error, model, path, data, lambda loc: self.draft.where(loc)):
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


_TRAIN_FIELDS = ("data", "steps", "batch_size", "accumulation", "flip", "precision", "average", "seed", "debug", "harness")


def describe(component: ComponentSpec) -> Component:
    """Name, title and source file of a component, as a record keeps them."""
    sig = signature(component.kind, component.name)
    parts = sig.file.parts
    root = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] in ("bench", "implementations")), None)
    source = None if sig.outside or root is None else "/".join(parts[root:])
    return Component(name=component.name, title=sig.title, source=source)


def open_images(run: Run, split: Literal["train", "test"], places: Places) -> OpenSplit:
    """The data set of a run, opened. Raises BadInput when it is not on this machine or not the one planned."""
    dataset = run.train.dataset
    try:
        opened = open_split(dataset.partial(), split, places)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from error
    if opened.record.fingerprint != run.data[split].fingerprint:
        raise BadInput(f"{dataset.name} ({split}): these are not the images this run was planned with: fingerprint "
                       f"{opened.record.fingerprint} instead of {run.data[split].fingerprint}; run `bench plan` again")
    return opened


def streams(run: Run, opened: OpenSplit) -> bool:
    """Whether the training images are decoded on the fly: random crops, or too many for the cache."""
    size = run.train.dataset.kwargs["image_size"]
    return opened.dataset.random or len(opened.dataset) * 3 * size * size > run.loop.cache_gib * 2**30


def data_key(dataset: ComponentSpec) -> str:
    """The preprocessing part of the decoded cache's key."""
    return json.dumps(dataset.content(), sort_keys=True, default=str)
