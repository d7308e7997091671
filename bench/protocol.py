"""Protocols: which numbers are measured, and exactly how. Frozen data files, only ever added. Torch-free.

A protocol's name is in no identity, its content is: two protocols that agree on PSNR share the value.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from bench.errors import BadInput
from bench.registry import did_you_mean
from bench.spec import ComponentSpec, bind

FOLDER = Path(__file__).parent / "protocols"
SEPARATOR = "@"         # ssim@llamagen: the value `ssim` of the protocol `llamagen`


class Prepare(BaseModel):
    """What is done to originals and reconstructions before a metric sees them, on the scale 0..255."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    round: Literal["8bit", "truncate", "none"]      # to the nearest of 256 values, down to it, or not at all
    resize: int | None = None                       # pixels of either side; None: as the data set gives them
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False
    originals: Literal["rounded", "resized"] = "rounded"    # resized: after resizing they are neither rounded nor clamped

    def content(self) -> dict[str, Any]:
        """As it is hashed: without what a protocol that never resizes does not say."""
        said = {"round": self.round}
        return said if self.resize is None else self.model_dump()


class Origin(BaseModel):
    """What the protocol's published numbers were measured on, and by which code."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    code: str                                       # repository and file, or package
    data: str = ""                                  # split, number of images, crop and resize
    notes: tuple[str, ...] = ()

    @field_validator("notes", mode="before")
    @classmethod
    def _listed(cls, notes: Any) -> Any:
        return tuple(notes) if isinstance(notes, list) else notes


class Protocol(BaseModel):
    """One file of bench/protocols."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    version: int = 1
    description: str
    origin: Origin | None = None
    prepare: Prepare                                # of every value that says nothing else
    values: dict[str, dict[str, Any]]               # by column name: {metric, its keywords, prepare: changes}

    @field_validator("values")
    @classmethod
    def _each_names_its_metric(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, entry in values.items():
            if SEPARATOR in name:
                raise ValueError(f"{name}: a value's name holds no {SEPARATOR}")
            if not isinstance(entry.get("metric"), str):
                raise ValueError(f"{name}: write metric: <name of a metric>")
        return values

    @model_validator(mode="after")
    def _each_can_be_prepared(self) -> Protocol:
        for name in self.values:
            self.prepared(name)
        return self

    def prepared(self, value: str) -> dict[str, Any]:
        """How images are prepared for one of its values."""
        changes = self.values[value].get("prepare", {})
        return Prepare.model_validate({**self.prepare.model_dump(), **changes}).content()

    def metric(self, value: str) -> ComponentSpec:
        """One of its values: the metric with all its keywords. Raises BadInput where the file says too much."""
        entry = {k: v for k, v in self.values[value].items() if k not in ("metric", "prepare")}

        def fail(path: tuple[str, ...], found: Any, sentence: str) -> BadInput:
            return BadInput(f"{FOLDER / self.name}.yaml: values.{'.'.join(path)}: {sentence}")

        return bind("metric", {"name": self.values[value]["metric"], **entry}, (value,), fail)


class Wish(NamedTuple):
    """What a column asks for."""

    protocol: Protocol
    name: str                                       # of the value in that protocol
    metric: ComponentSpec                           # with all keywords
    prepare: dict[str, Any]

    @property
    def keywords(self) -> dict[str, Any]:
        """As a record's value holds them: without those at what they were before they existed."""
        return self.metric.content()["kwargs"]


def protocols() -> list[str]:
    """Names of all protocols that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def load_protocol(name: str) -> Protocol:
    """Read a protocol by name. Raises BadInput with the nearest name, or saying what is wrong in the file."""
    if name not in protocols():
        raise BadInput(f"there is no protocol {name!r}{did_you_mean(name, protocols())}")
    path = FOLDER / f"{name}.yaml"
    try:
        protocol = Protocol.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise BadInput(f"{path}: not a protocol ({error}); mend it or restore the shipped file") from error
    if protocol.name != name:
        raise BadInput(f"{path}: its name is {protocol.name!r}; a protocol is called like its file")
    return protocol


@functools.cache
def wanted(column: str, main: str) -> Wish:
    """What `ssim` means under the protocol `main`, or `ssim@llamagen` under any.

    Raises BadInput with the nearest name for an unknown protocol or value.
    """
    name, foreign, other = column.partition(SEPARATOR)
    protocol = load_protocol(other if foreign else main)
    if name not in protocol.values:
        raise BadInput(f"protocol {protocol.name} has no such value{did_you_mean(name, protocol.values)}")
    return Wish(protocol, name, protocol.metric(name), protocol.prepared(name))
