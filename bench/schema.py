"""The JSON Schema of suite files: completion and checks in editors. Torch-free.

Made from the same models and signatures that `bench check` uses; docs/suite.schema.json is this, and a test compares.
"""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import TypeAdapter

from bench.binder import MeasureSection, OptimizerSection, TrainSection
from bench.protocol import protocols
from bench.registry import REQUIRED, Part, available, signature
from bench.suite import SuiteFrame

KINDS = ("dataset", "tokenizer", "quantizer", "objective", "loss", "discriminator", "monitor", "baseline")


def suite_schema() -> dict[str, Any]:
    """Draft 2020-12 schema of a suite file."""
    frame = SuiteFrame.model_json_schema(ref_template="#/$defs/{model}")
    definitions = frame.setdefault("$defs", {})
    for kind in KINDS:
        definitions[kind] = {"oneOf": [_component(kind, name) for name in available(kind)]}
    sections: dict[str, Any] = {
        "dataset": {"$ref": "#/$defs/dataset"},
        "tokenizer": {"$ref": "#/$defs/tokenizer"},
        "objective": {"$ref": "#/$defs/objective"},
        "optimizers": {"type": "object", "additionalProperties": _inlined(OptimizerSection, definitions)},
        "train": _inlined(TrainSection, definitions),
        "measure": _inlined(MeasureSection, definitions),
        "monitors": {"type": "array", "items": {"$ref": "#/$defs/monitor"}},
    }
    sections["measure"]["properties"]["protocol"]["enum"] = protocols()
    for section in sections.values():
        _relax(section)                         # axes, zip and overrides may give what a section leaves out
    frame["properties"]["sanity"]["items"] = {"$ref": "#/$defs/baseline"}
    frame["properties"]["base"] |= {"properties": sections, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **frame, "title": "A suite of tokenizer-bench"}


def _inlined(model: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    return schema


def _relax(schema: dict[str, Any]) -> None:
    schema.pop("required", None)


def _component(kind: str, name: str) -> dict[str, Any]:
    sig = signature(kind, name)
    properties: dict[str, Any] = {"name": {"const": name}}
    for key, keyword in sig.keywords.items():
        properties[key] = _annotation(keyword.annotation)
        if keyword.default is not REQUIRED:
            properties[key] = {**properties[key], "default": keyword.default}
    mapping = {"type": "object", "description": sig.summary, "properties": properties, "additionalProperties": False}
    plain = all(k.default is not REQUIRED for k in sig.keywords.values())
    return {"anyOf": [mapping, {"const": name}]} if plain else mapping


def _annotation(annotation: Any) -> dict[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return {"$ref": f"#/$defs/{annotation.kind}"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_annotation(a) for a in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _annotation(arguments[1])}
    if origin in (list, tuple) and any(isinstance(a, type) and issubclass(a, Part) for a in arguments):
        return {"type": "array", "items": _annotation(arguments[0])}
    return TypeAdapter(annotation).json_schema()
