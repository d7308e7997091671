"""One YAML, one question: a suite file with line numbers -> a checked Suite -> runs. Torch-free."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from bench.binder import RESOURCES, SECTIONS, Binder, Draft, Measurement, Where, explain, show
from bench.catalogue import CheckpointEntry, called, format_name, load_checkpoint
from bench.errors import BadInput
from bench.places import Places
from bench.registry import did_you_mean
from bench.report.spec import ReportSpec, TableSpec
from bench.resources import Resources
from bench.results import Record
from bench.run import Run
from bench.spec import MISSING, ComponentSpec, Spec, bind, flatten
from bench.yaml_lines import KeyPath, load_yaml, scalar

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
    zip: Annotated[tuple[dict[str, list[Any]], ...], Field(
        description="groups of keys that move together; the key label names the runs")] = ()
    include: Annotated[tuple[dict[str, Any], ...], Field(description="further runs: base with these settings")] = ()
    exclude: Annotated[tuple[dict[str, Any], ...], Field(description="leave out the runs that match")] = ()
    override: Annotated[tuple[Override, ...], Field(description="change settings of the runs that match")] = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1, description="each run once per seed")] = (0,)
    resources: Resources = Resources()
    sanity: Annotated[tuple[str | dict[str, Any], ...], Field(
        description="baselines that are measured beside the runs: names, or mappings with a name and keywords")] = ()
    checkpoints: Annotated[tuple[str | dict[str, Any], ...], Field(
        description="trained elsewhere, measured beside the runs or instead of them: names of the list of published "
                    "checkpoints, or mappings with checkpoint, format, label and tokenizer")] = ()
    report: ReportSpec = ReportSpec()


#: what is wrong with several values of a setting that is in no identity
ONE_RUN = ("resources are in no identity, so this would be the same run several times; give them in override, or in "
           "zip beside the key that they go with")


def _of_resources(key: str) -> bool:
    return key.partition(".")[0] == RESOURCES


# -- loading and expanding -------------------------------------------------------------------------------------------


class Suite:
    """A suite file (and the command line's overrides), its frame checked."""

    def __init__(self, frame: SuiteFrame, file: str, lines: dict[KeyPath, int], overrides: dict[str, Any]) -> None:
        if frame.checkpoints:
            frame = frame.model_copy(update={"report": frame.report.ordered("checkpoint", tuple(map(called, frame.checkpoints)))})
        self.frame, self.file, self.lines = frame, file, lines
        self.overrides = {k: v for k, v in overrides.items() if not _of_resources(k)}
        self.resources = {k: v for k, v in overrides.items() if _of_resources(k)}       # likewise, but of no identity
        self._found: dict[KeyPath, dict[KeyPath, Where]] = {}
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
        if data.get("task") == "points":
            raise BadInput(f"{file}: a suite of points has no runs, and its report is made by `bench run`; `bench check` "
                           "and `bench run` know it, other commands do not")
        return cls.of(data, str(file), lines, overrides, name=name)

    @classmethod
    def of(cls, data: dict[str, Any], file: str, lines: dict[KeyPath, int], overrides: Iterable[str] = (), *,
           name: str | None = None) -> Suite:
        """A suite from what a file says, or from what stands for one."""
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
            raise BadInput("\n".join(explain(error, SuiteFrame, (), data, where))) from None
        return cls(frame, file, lines, run_level)

    def expand(self, places: Places, *, debug: bool = False) -> list[Run]:
        """All runs, in the order written but after those that they begin from, duplicates of the command line's making
        joined. Reads listings of the data sets, no image. Raises BadInput with one line per problem."""
        problems: dict[str, None] = {}
        self._baselines(problems)
        self._checkpoints(problems)
        drafts = self._drafts(problems)
        if self.trains_nothing:
            if problems:
                raise BadInput("\n".join(problems))
            return []
        binder = Binder(problems, places)
        runs: dict[str, Run] = {}
        labels = _named(drafts)
        made: dict[int, Run] = {}
        for i, parent in _parents_first(drafts, labels, problems):
            draft = drafts[i]
            run = binder.run(draft, self.name, labels[i], debug, made.get(parent) if parent is not None else None)
            if run is None:
                continue
            made[i] = run
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

    def baselines(self) -> tuple[ComponentSpec, ...]:
        """What `sanity` asks for, bound. Raises BadInput with one line per problem."""
        problems: dict[str, None] = {}
        bound = self._baselines(problems)
        if problems:
            raise BadInput("\n".join(problems))
        return bound

    def _baselines(self, problems: dict[str, None]) -> tuple[ComponentSpec, ...]:
        draft = Draft(written=((("sanity",), self._origins(("sanity",))),))

        def fail(path: KeyPath, value: Any, sentence: str) -> BadInput:
            shown = "" if value is MISSING else f" = {show(value)}"
            return BadInput(f"{draft.where(path)}: {'.'.join(map(str, path))}{shown}: {sentence}")

        bound = []
        for i, given in enumerate(self.frame.sanity):
            try:
                bound.append(bind("baseline", given, ("sanity", i), fail))
            except BadInput as error:
                problems[str(error)] = None
        return tuple(bound)

    @property
    def trains_nothing(self) -> bool:
        """Whether it is about checkpoints alone: it says of no tokenizer how to train it."""
        return bool(self.frame.checkpoints) and "tokenizer" not in self.frame.base

    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        """What `checkpoints` asks for. Raises BadInput with one line per problem."""
        problems: dict[str, None] = {}
        entries = self._checkpoints(problems)
        if problems:
            raise BadInput("\n".join(problems))
        return entries

    def _checkpoints(self, problems: dict[str, None]) -> tuple[CheckpointEntry, ...]:
        entries = []
        for i, given in enumerate(self.frame.checkpoints):
            where = self._at("checkpoints", i)
            try:
                data = {"checkpoint": given} if isinstance(given, str) else given
                entries.append(entry := CheckpointEntry.model_validate_json(json.dumps(data), strict=True))
                if entry.format is not None:
                    format_name(entry.format)
                elif entry.listed is None and re.fullmatch(r"[\w-]+", entry.checkpoint) and not Path(entry.checkpoint).exists():
                    load_checkpoint(entry.checkpoint)
            except ValidationError as error:
                for line in explain(error, CheckpointEntry, ("checkpoints", i), data, lambda _, where=where: where):
                    problems[line] = None
            except BadInput as error:
                problems[f"{where}: checkpoints.{i} = {show(given)}: {error}"] = None
        return tuple(entries)

    def measurements(self, places: Places, *, debug: bool = False) -> list[Measurement]:
        """On which images, and for which values, checkpoints are measured: `dataset` and `measure` of the runs, each pair
        once. Raises BadInput with one line per problem."""
        problems: dict[str, None] = {}
        binder = Binder(problems, places)
        found: dict[str, Measurement | None] = {}
        for draft in self._drafts(problems):
            key = json.dumps([draft.data.get("dataset"), draft.data.get("measure")], default=str)
            if key not in found:
                found[key] = binder.measurement(draft, debug)
        if problems:
            raise BadInput("\n".join(problems))
        return [one for one in found.values() if one is not None]

    def locate(self, run: Run, key: str | None, sentence: str) -> str:
        """A sentence about a setting of a run, with the file, the line, the dotted key and the value."""
        draft = self.drafts[run.train_id]
        if key is None:
            return f"{self.file}: {run.label}: {sentence}"
        path = tuple(key.split("."))
        value = draft.get(path)
        shown = "" if value is MISSING or isinstance(value, dict) else f" = {show(value)}"
        return f"{draft.where(path)}: {key}{shown}: {sentence}"

    def _drafts(self, problems: dict[str, None]) -> list[Draft]:
        frame = self.frame
        base = Draft(written=(((), {(): Where(self.file, self.lines.get(("base",)))}),))
        for section, value in frame.base.items():
            if section not in SECTIONS:
                wrong = ("resources are written beside base, at the top of a suite" if section == RESOURCES
                         else f"no such section{did_you_mean(section, SECTIONS)}")
                problems[f"{self._at('base', section)}: base.{section}: {wrong}"] = None
                continue
            base.set((section,), value, self._origins(("base", section)))
        base.set((RESOURCES,), frame.resources.model_dump(exclude_unset=True), self._origins((RESOURCES,)))

        choices: list[list[list[tuple[str, Any, KeyPath]]]] = []        # per axis: per choice: settings
        for key, values in frame.axes.items():
            if not values:
                problems[f"{self._at('axes', key)}: axes.{key}: an axis needs at least one value"] = None
            if _of_resources(key) and len(values) > 1:
                problems[f"{self._at('axes', key)}: axes.{key} = {show(values)}: {ONE_RUN}"] = None
            choices.append([[(key, value, ("axes", key, i))] for i, value in enumerate(values)])
        for g, group in enumerate(frame.zip):
            lengths = {key: len(values) for key, values in group.items()}
            if len(set(lengths.values())) > 1:
                problems[f"{self._at('zip', g)}: zip: keys that move together need equally many values, got {lengths}"] = None
                continue
            if group and all(map(_of_resources, group)) and max(lengths.values()) > 1:
                problems[f"{self._at('zip', g)}: zip = {show(list(group))}: {ONE_RUN}"] = None
            choices.append([[(key, values[i], ("zip", g, key, i)) for key, values in group.items()]
                            for i in range(next(iter(lengths.values()), 0))])

        drafts: list[Draft] = []
        for combination in itertools.product(*choices):
            draft = base.copy()
            for key, value, path in sorted(itertools.chain(*combination), key=lambda s: s[0].count(".")):
                if key == "label":
                    draft.label = str(value)
                else:
                    draft.set(tuple(key.split(".")), value, self._origins(path))
            groups = [choice for options, choice in zip(choices, combination, strict=True) if len(options) > 1]
            draft.chosen = {group[0][0]: group[0][1] for group in groups if all(key != "label" for key, _, _ in group)}
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
            for key, value in (self.overrides | self.resources).items():
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
        if path not in self._found:
            n = len(path)
            found = {k[n:]: Where(self.file, line) for k, line in self.lines.items() if k[:n] == path}
            self._found[path] = found or {(): Where("command line")}
        return self._found[path]


#: what a checkpoint is asked for where nobody says more
VALUES = ["psnr", "ssim", "lpips", "rfid", "usage", "perplexity"]


def checkpoint_suite(checkpoints: Iterable[str], format: str | None, words: Sequence[str], name: str) -> Suite:
    """A suite that measures these checkpoints and trains nothing.

    words: maybe the name or file of a suite, whose images and values are then meant, and overrides; tokenizer.key=value
    changes the checkpoints' tokenizers. Raises BadInput where nothing says on which images.
    """
    given = words[0] if words and "=" not in words[0] else None
    overrides = list(words[1:] if given is not None else words)
    question = "How well do these checkpoints reconstruct?"
    if given is None:
        base: dict[str, Any] = {"dataset": {}, "measure": {"values": VALUES}}
        suite = Suite.of({"name": name, "question": question, "base": base}, "command line", {}, overrides, name=name)
    else:
        suite = Suite.load(given, overrides)
    keywords = _keywords(suite.overrides)
    if given is None and not any(key.startswith("dataset.") or key == "dataset" for key in suite.overrides):
        raise BadInput("on which images? Name a suite, or say dataset.name=imagenet dataset.image_size=256 (`bench ls datasets`)")
    entries = tuple({"checkpoint": one, "format": format, "tokenizer": keywords} for one in checkpoints)
    frame = suite.frame.model_copy(update={"name": name, "question": question, "checkpoints": entries, "sanity": ()})
    return Suite(frame, suite.file, suite.lines, suite.overrides)


def tokenizer_keywords(words: Sequence[str]) -> dict[str, Any]:
    """tokenizer.quantizer.name=vq ... as a suite writes it. Raises BadInput for any other setting."""
    written = _apply_overrides({}, words, {})
    if other := [key for key in written if not key.startswith("tokenizer.")]:
        raise BadInput(f"command line: {other[0]}: only settings of the tokenizer can be given here, as tokenizer.key=value")
    return _keywords(written)


def _keywords(overrides: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys below `tokenizer` as nested mappings."""
    keywords: dict[str, Any] = {}
    for key, value in overrides.items():
        section, *path = key.split(".")
        if section == "tokenizer" and path:
            here = keywords
            for part in path[:-1]:
                here = here.setdefault(part, {})
            here[path[-1]] = value
    return keywords


def checkpoint_report(records: Iterable[Record]) -> ReportSpec:
    """One table of checkpoints that no suite says how to show: what was measured, its price, and where the weights are."""
    values = {v.name: None for r in records for v in r.values.values()}
    known = [name for name in VALUES if name in values]
    columns = (*known, *sorted(values.keys() - set(known)), "layout.bits_per_image", "layout.num_tokens",
               "parameters.total", "provenance.weights")
    table = TableSpec(name="checkpoints", rows=("checkpoint", "dataset", "dataset.image_size"), columns=columns)
    return ReportSpec(tables=(table,))


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
            if head == RESOURCES:
                run_level[key] = value              # also where axes, zip, include or override give it
            if key != head and head in ("axes", RESOURCES):
                if isinstance(data.setdefault(head, {}), dict):
                    data[head][key.partition(".")[2]] = value
                not_from_file(*((head,) if head == RESOURCES else (head, key.partition(".")[2])))
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
                if not isinstance(value, list):
                    run_level[key] = value          # also in the runs that `include` adds
            else:
                run_level[key] = value
        else:
            raise BadInput(f"command line: {text!r}: no section {head!r}{did_you_mean(head, SECTIONS)}")
    return run_level


def _labels(drafts: list[Draft]) -> list[str]:
    """Short names from what differs between the runs."""
    # what drafts share is one object, and is flattened once
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def row(draft: Draft) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for section, value in draft.data.items():
            if section != RESOURCES:
                if (section, id(value)) not in known:
                    known[section, id(value)] = flatten(value, section)
                flat |= known[section, id(value)]
        return flat

    flat = [row(d) for d in drafts]
    keys = list(dict.fromkeys(k for row in flat for k in row))
    keys.sort(key=lambda k: k == "train.seed")              # stable: the seed comes last
    varying = [k for k in keys if len({_same(row.get(k)) for row in flat}) > 1]
    named = {k for k in varying if k.endswith(".name")}
    short = {k: k.rpartition(".")[2] for k in varying}
    clash = {s for s in short.values() if list(short.values()).count(s) > 1}
    words = {k: "" if k in named else f"{k if short[k] in clash else short[k]}=" for k in varying}
    return [" ".join(f"{words[k]}{row[k]}" for k in varying if k in row) or "run" for row in flat]


def _named(drafts: Sequence[Draft]) -> list[str]:
    """A label for each: its own, with the axes' values where several share it; else what differs from the others."""
    shared = {label for label, count in Counter((d.label, _same(d.get(("train", "seed")))) for d in drafts).items() if count > 1}
    names = []
    for draft, other in zip(drafts, _labels(drafts), strict=True):
        words = [f"{key.rpartition('.')[2]}={show(value)}" for key, value in draft.chosen.items()
                 if (draft.label, _same(draft.get(("train", "seed")))) in shared]
        names.append(" ".join([draft.label, *words]) if draft.label else other)
    return names


def _parents_first(drafts: Sequence[Draft], labels: Sequence[str], problems: dict[str, None]) -> Iterator[tuple[int, int | None]]:
    """(position of a draft, that of the one it begins from): in the order given, but after that one.

    A label stands for the run of that name, of the same seed and of the same values of all axes and other groups of zip."""
    seeds = [draft.get(("train", "seed")) for draft in drafts]
    parents: dict[int, int] = {}
    for i, draft in enumerate(drafts):
        wanted = draft.get(("train", "init_from", "run"))
        if not isinstance(wanted, str):
            continue
        fitting = [j for j, label in enumerate(labels)
                   if wanted in (drafts[j].label, label, label.removesuffix(f" seed={seeds[j]}"))]
        for like in (lambda j, i=i: seeds[j] == seeds[i], lambda j, i=i: drafts[j].chosen == drafts[i].chosen):
            fitting = [j for j in fitting if like(j)] or fitting
        sentence = ("" if len(fitting) == 1 else "several runs are called so" if fitting else
                    f"no run of this suite is called so{did_you_mean(wanted, set(labels))}")
        if sentence:
            problems[f"{draft.where(('train', 'init_from', 'run'))}: train.init_from.run = {show(wanted)}: {sentence}"] = None
        else:
            parents[i] = fitting[0]
    done: set[int] = set()
    for i, draft in enumerate(drafts):
        line = [i]
        while (above := parents.get(line[-1])) is not None and above not in done:
            if above in line:
                problems[f"{draft.where(('train', 'init_from', 'run'))}: train.init_from.run = {show(labels[parents[i]])}: "
                         "these runs begin from each other"] = None
                return
            line.append(above)
        for j in reversed(line):
            if j not in done:
                done.add(j)
                yield j, parents.get(j)


def _same(value: Any) -> Any:
    """Equal and hashable for values that are written alike; 1, 1.0 and true are not."""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else (type(value), value)
