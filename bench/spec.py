"""What a run is, as frozen data: components bound to their signatures, and the two identities. Torch-free."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from bench.errors import BadInput
from bench.registry import REQUIRED, Part, did_you_mean, resolve, signature

HARNESS_REVISION = 1        # of the arithmetic of train.py, optim.py and data.py; part of every train_id

Positive = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Grown(Spec):
    """A spec that was given fields after runs had been made: at their neutral value they are in no identity, no file
    and no table, so that what was made before stays what it was."""

    neutral: ClassVar[Mapping[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _without_neutral(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self.kept(dump(self))

    def kept(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """These of the fields that are not at their neutral value."""
        return {k: v for k, v in fields.items() if not (k in self.neutral and self.neutral[k] == v)}


class ComponentSpec(Spec):
    """A name, its revision and its keyword arguments, defaults filled in; an argument may be a component."""

    kind: str
    name: str
    revision: int | str                         # of the arithmetic; a hash for code from outside
    kwargs: dict[str, Any]                      # typed values, ComponentSpec, or lists and dicts of them

    @field_validator("kwargs", mode="before")
    @classmethod
    def _revive(cls, value: Any) -> Any:        # read back from JSON, nested components are components again
        match value:
            case {"kind": _, "name": _, "revision": _, "kwargs": _}:
                return cls(**value)
            case dict():
                return {k: cls._revive(v) for k, v in value.items()}
            case list() | tuple():
                return tuple(cls._revive(v) for v in value)
        return value

    def partial(self) -> functools.partial[Any]:
        """The constructor with its keywords; the owner gives the positional arguments. Imports the component."""

        def ready(v: Any) -> Any:
            match v:
                case ComponentSpec():
                    return v.partial()
                case list() | tuple():
                    return tuple(ready(x) for x in v)
                case dict():
                    return {k: ready(x) for k, x in v.items()}
            return v

        return functools.partial(resolve(self.kind, self.name), **ready(self.kwargs))

    def content(self) -> dict[str, Any]:
        """What is hashed: keywords at their declared neutral value are left out."""
        neutral = signature(self.kind, self.name).neutral
        kept = {k: v for k, v in self.kwargs.items() if not (k in neutral and neutral[k] == v)}
        return {"kind": self.kind, "name": self.name, "revision": self.revision, "kwargs": kept}

    def nested(self) -> Iterator[tuple[str, ComponentSpec]]:
        """(dotted keyword path, component) of every component below this one."""

        def walk(v: Any, path: str) -> Iterator[tuple[str, ComponentSpec]]:
            match v:
                case ComponentSpec():
                    yield path, v
                    for key, value in v.kwargs.items():
                        yield from walk(value, f"{path}.{key}")
                case list() | tuple():
                    for i, item in enumerate(v):
                        yield from walk(item, f"{path}.{i}")
                case dict():
                    for key, value in v.items():
                        yield from walk(value, f"{path}.{key}")

        for key, value in self.kwargs.items():
            yield from walk(value, key)


class Decay(Spec):
    """From lr down to final_lr in `steps` steps after the warm-up, and on at final_lr."""

    name: Literal["cosine", "linear", "quarter_cosine"]
    steps: Positive


class Drops(Spec):
    """After the warm-up constant, and times `factor` from each of these steps on, counted from 0."""

    name: Literal["drops"]
    at: Annotated[tuple[Positive, ...], Field(min_length=1)]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class OneCycle(Spec):
    """Up to lr and down again along half cosines (arXiv:1708.07120, as in torch.optim.lr_scheduler.OneCycleLR).

    rise: share of all steps that go up. The rate begins at lr / start_divisor and ends at
    lr / start_divisor / final_divisor. beta1: its value at both ends and at the peak, in place of the optimizer's
    own; null: it stays the optimizer's.
    """

    name: Literal["one_cycle"]
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    start_divisor: Annotated[float, Field(ge=1)] = 25.0
    final_divisor: Annotated[float, Field(ge=1)] = 1e4
    beta1: tuple[Beta, Beta] | None = (0.95, 0.85)


class OptimizerSpec(Grown):
    """How one player moves. Rates are per step; `warmup_steps` ramps linearly from 0.

    clip_norm bounds the norm of all gradients of the player together, clip_value each element by itself, before that.
    A schedule is a name, which reaches from the end of the warm-up to the last step, or a mapping. Both count from
    `schedule_start`, before which the rate is that of the first step: for a discriminator whose own first step it is.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"clip_value": None, "schedule_start": 0}

    name: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0)]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0       # never on norms, biases, embeddings and codebooks
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    clip_value: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: (Literal["constant", "cosine", "linear", "quarter_cosine"]
               | Annotated[Decay | Drops | OneCycle, Field(discriminator="name")]) = "constant"
    final_lr: Annotated[float, Field(ge=0)] = 0.0
    schedule_start: Annotated[int, Field(ge=0)] = 0         # step from which warm-up and schedule count
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = {}     # per parameter-name prefix: a codebook's own rate is here

    @model_validator(mode="after")
    def _one_ramp(self) -> OptimizerSpec:
        if isinstance(self.schedule, OneCycle) and (self.warmup_steps or self.final_lr):
            raise ValueError("one_cycle has a rise and an end of its own: leave warmup_steps and final_lr out")
        return self


class InitFrom(Grown):
    """Whose weights a run begins with: every tensor of the same name and shape; the others are drawn as ever."""

    neutral: ClassVar[Mapping[str, Any]] = {"run": None, "sha256": None, "names": {}, "weights": "live"}

    run: str | None = None                      # train id of another run, or
    sha256: str | None = None                   # of the weight file, its first 12 digits
    names: dict[str, str] = {}                  # how names begin there -> how they begin here; others stay as they are
    weights: Literal["live", "average"] = "live"    # which of the other run's


class TrainSpec(Grown):
    """Everything that can change the weights, and nothing else."""

    neutral: ClassVar[Mapping[str, Any]] = {"networks": {}, "init_from": None, "freeze": (), "average_ramp": None}

    dataset: ComponentSpec
    data: str                                   # "official", or the fingerprint of a partial copy
    model: ComponentSpec
    objective: ComponentSpec
    optimizers: dict[str, OptimizerSpec]        # one per player
    steps: Positive
    batch_size: Positive                        # images per step, over all devices
    accumulation: Positive = 1
    flip: bool = False                          # horizontal, with probability 0.5
    precision: Literal["fp32", "bf16", "auto"] = "fp32"     # hashed as declared; what auto became is in the record
    average: float | None = None                # decay of the weight average
    seed: int = 0
    debug: bool = False
    harness: int = HARNESS_REVISION
    networks: dict[str, str] = {}               # hash of each pretrained file that it trains with
    init_from: InitFrom | None = None
    freeze: tuple[str, ...] = ()                # of the tokenizer: what begins so does not learn
    average_ramp: Literal["ratio", "power"] | None = None      # how the average's decay begins; see WeightAverage

    @property
    def train_id(self) -> str:
        return identity(self)


class ValueSpec(Spec):
    """Everything else that can change one measured number."""

    train_id: str                               # or sha256 of a published checkpoint
    weights: Literal["live", "average"] = "live"
    split: str = "test"
    data: str                                   # fingerprint of that split
    images: int | None = None                   # only the first so many; None: all
    prepare: dict[str, Any]                     # the protocol's rounding, range, crop
    metric: ComponentSpec                       # with the protocol's keywords
    networks: dict[str, str] = {}               # hash of each pretrained file it uses

    @property
    def value_id(self) -> str:
        return identity(self)


class LoopSettings(Spec):
    """How a run is carried out: moves only the last digits or the bill, so it is in no identity."""

    log_every: Positive = 100                   # steps between two rows of the curves
    watch_every: Positive | None = None         # steps between two arrays files (per-code counts, norms, gradients)
    eval_every: Positive | None = None          # steps between two validations on test images
    eval_images: Positive = 512                 # of which so many, the first of the test split
    checkpoint_every: Positive = 10_000         # steps
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 600.0   # and at least so often
    compile: bool | Literal["auto"] = "auto"    # auto: on CUDA
    channels_last: bool = True
    fused: bool | Literal["auto"] = "auto"      # fused optimizer where the device has one
    tf32: bool = False                          # CUDA matrix products in TF32
    workers: Annotated[int, Field(ge=0)] = 4    # decoding processes, only for data sets too large for the cache
    data_on_device: bool | Literal["auto"] = "auto"     # auto: where the decoded set fits into a quarter of it
    cache_gib: Annotated[float, Field(gt=0)] = 64.0     # decoded sets above this are streamed


def identity(spec: Spec) -> str:
    """12 hex of the sha256 of a spec's content: key order and YAML formatting do not matter, values do."""

    def plain(v: Any) -> Any:
        match v:
            case None | str() | int() | float():            # first: most are, and asking pydantic's classes is slow
                return v
            case dict():
                return {k: plain(x) for k, x in v.items()}
            case list() | tuple():
                return [plain(x) for x in v]
            case ComponentSpec():
                return plain(v.content())
            case Grown():
                return plain(v.kept(dict(v)))
            case BaseModel():
                return {k: plain(x) for k, x in v}
        return v

    text = json.dumps(plain(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# -- binding what was written to what a constructor takes -----------------------------------------------------------

Path = tuple[str, ...]
Fail = Callable[[Path, Any, str], Exception]
MISSING = object()


def bind(kind: str, value: Any, path: Path, fail: Fail) -> ComponentSpec:
    """A mapping with a `name` becomes a component whose keywords are checked, typed and complete.

    `fail(path, value, sentence)` makes the exception: only the caller knows files and lines.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise fail(path, value, f"expected a {kind}: a mapping with a name, for example {{name: ...}}")
    name = value["name"]
    try:
        sig = signature(kind, name)
    except BadInput as error:
        raise fail((*path, "name"), name, str(error)) from None
    given = {k: v for k, v in value.items() if k != "name"}
    for key, item in given.items():
        if key not in sig.keywords:
            raise fail((*path, key), item, f"{name} has no such key{did_you_mean(key, sig.keywords)}")
    kwargs: dict[str, Any] = {}
    for key, keyword in sig.keywords.items():
        if key in given:
            kwargs[key] = bind_value(keyword.annotation, keyword.text, given[key], (*path, key), fail)
        elif keyword.default is REQUIRED:
            raise fail((*path, key), MISSING, f"{name} needs this key ({keyword.text})")
        elif isinstance(keyword.default, str | dict) and _has_part(keyword.annotation):
            kwargs[key] = bind_value(keyword.annotation, keyword.text, keyword.default, (*path, key), fail)
        else:
            kwargs[key] = keyword.default
    return ComponentSpec(kind=kind, name=name, revision=sig.revision, kwargs=kwargs)


def bind_value(annotation: Any, text: str, value: Any, path: Path, fail: Fail) -> Any:
    """One keyword's value, checked against its annotation; nested components are bound in turn."""
    if not _has_part(annotation):
        try:
            return _adapter(annotation).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise fail(path, value, f"expected {text}{_hint(annotation, value, error)}") from None
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return bind(annotation.kind, value, path, fail)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        part = next(a for a in arguments if _has_part(a))
        return bind_value(part, text, value, path, fail)
    if origin is dict and isinstance(value, dict):
        return {k: bind_value(arguments[1], text, v, (*path, k), fail) for k, v in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        return tuple(bind_value(arguments[0], text, v, (*path, str(i)), fail) for i, v in enumerate(value))
    raise fail(path, value, f"expected {text}")


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _has_part(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return True
    return any(_has_part(a) for a in typing.get_args(annotation))


def _hint(annotation: Any, value: Any, error: ValidationError) -> str:
    if typing.get_origin(annotation) is Literal and isinstance(value, str):
        return did_you_mean(value, [str(a) for a in typing.get_args(annotation)])
    return hint(value, error.errors()[0]["type"])


def hint(value: Any, kind: str) -> str:
    """What was probably meant, for a value that pydantic refuses with an error of this type."""
    if isinstance(value, str) and kind.startswith("bool"):
        return "; write true or false"
    if isinstance(value, str) and kind.startswith(("float", "int")) and re.fullmatch(r"[-+.\de]+", value):
        return "; a number in quotes is text"
    return ""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> scalar, of nested mappings, specs and lists; what tables group by."""
    match value:
        case None | str() | int() | float():                # first: most are
            return {prefix: value}
        case ComponentSpec():
            value = {"name": value.name, **value.kwargs}
        case Grown():
            value = value.kept(dict(value))
        case BaseModel():
            value = dict(value)
    if isinstance(value, Mapping):
        row: dict[str, Any] = {}
        for key, item in value.items():
            row |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return row
    if isinstance(value, list | tuple) and any(isinstance(v, list | tuple | dict | BaseModel) for v in value):
        return flatten({str(i): v for i, v in enumerate(value)}, prefix)
    return {prefix: list(value) if isinstance(value, tuple) else value}
