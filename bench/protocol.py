"""Protocols: which numbers are measured, and exactly how. Frozen data files, only ever added. Torch-free.

A protocol's name is in no identity, its content is: two protocols that agree on PSNR share the value.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from bench.errors import BadInput
from bench.registry import did_you_mean

FOLDER = Path(__file__).parent / "protocols"


class Protocol(BaseModel):
    """One file of bench/protocols."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    description: str
    prepare: dict[str, Any]                     # what is done to images before any metric sees them
    values: dict[str, dict[str, Any]]           # by column name: {metric: its name, and its keywords}

    @field_validator("values")
    @classmethod
    def _each_names_its_metric(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, entry in values.items():
            if not isinstance(entry.get("metric"), str):
                raise ValueError(f"{name}: write metric: <name of a metric>")
        return values


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
