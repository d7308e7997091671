"""What a number means: a metric's definition and its traps, and what each protocol makes of it. Torch-free."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.errors import BadInput
from bench.protocol import SEPARATOR, Protocol, load_protocol, protocols
from bench.registry import available, did_you_mean, signature
from bench.report.grouping import plain
from bench.weights import FILES, needed

BETTER = {"higher": "higher is better", "lower": "lower is better", "none": "neither higher nor lower is better"}


def explain(word: str) -> dict[str, Any]:
    """A metric (`ssim`), a metric as one protocol measures it (`ssim@llamagen`), or a protocol (`llamagen`), as data.

    Raises BadInput with the nearest name.
    """
    name, foreign, protocol = word.partition(SEPARATOR)
    if foreign:
        said = load_protocol(protocol)
        if name not in said.values:
            raise BadInput(f"protocol {protocol} has no such value{did_you_mean(name, said.values)}")
        return _metric(said.values[name]["metric"], only=(protocol, name))
    if name in available("metric"):
        return _metric(name)
    if name in protocols():
        return _protocol(load_protocol(name))
    columns = {value: entry["metric"] for p in protocols() for value, entry in load_protocol(p).values.items()}
    if name in columns:                                         # usage_window is a column, its metric is usage
        return _metric(columns[name])
    raise BadInput(f"there is no metric or protocol {word!r}{did_you_mean(name, [*available('metric'), *protocols()])}")


def _metric(name: str, only: tuple[str, str] | None = None) -> dict[str, Any]:
    sig = signature("metric", name)
    return {
        "metric": name, "title": sig.title, "unit": sig.attributes.get("unit", ""),
        "direction": sig.attributes.get("direction", "none"), "definition": inspect.cleandoc(sig.text),
        "caveats": list(sig.attributes.get("caveats", ())), "source": "/".join(sig.file.parts[-3:]),
        "protocols": [use for use in _uses(name) if only in (None, (use["protocol"], use["value"]))],
    }


def _uses(name: str) -> Iterator[dict[str, Any]]:
    """How each protocol measures it."""
    for protocol in map(load_protocol, protocols()):
        for value, entry in protocol.values.items():
            if entry["metric"] == name:
                bound = protocol.metric(value)
                yield {"protocol": protocol.name, "value": value, "prepare": protocol.prepared(value),
                       "keywords": bound.content()["kwargs"],
                       "networks": [FILES[n].file for n in needed(signature("metric", name).attributes, bound.kwargs)]}


def _protocol(protocol: Protocol) -> dict[str, Any]:
    values = {}
    for value in protocol.values:
        bound = protocol.metric(value)
        values[value] = {"metric": bound.name, "prepare": protocol.prepared(value), "keywords": bound.content()["kwargs"]}
    origin = protocol.origin
    return {"protocol": protocol.name, "version": protocol.version, "description": protocol.description, "values": values,
            "code": origin.code if origin else "", "data": origin.data if origin else "",
            "caveats": list(origin.notes) if origin else []}


def shown(said: dict[str, Any]) -> RenderableType:
    """The same for a terminal."""
    if "metric" not in said:
        parts: list[RenderableType] = [Text(said["protocol"], style="bold"), _indented(said["description"])]
        parts += [_indented(f"{what}: {said[what]}") for what in ("code", "data") if said[what]]
        rows = [(value, v["metric"], _settings(v["prepare"], v["keywords"])) for value, v in said["values"].items()]
        return Group(*parts, _caveats(said["caveats"]), _grid(("value", "metric", "how"), rows))
    unit = {"": "no unit", "share": "a share, shown as per cent"}.get(said["unit"], said["unit"])
    head = Text(f"{said['title']}", style="bold").append(f"  {unit}; {BETTER[said['direction']]}; {said['source']}", style="not bold")
    rows = [(f"{use['value']}{SEPARATOR}{use['protocol']}", _settings(use["prepare"], use["keywords"]),
             ", ".join(use["networks"])) for use in said["protocols"]]
    return Group(head, _indented(said["definition"]), _caveats(said["caveats"]), _grid(("column", "how", "network"), rows))


def _settings(prepare: dict[str, Any], keywords: dict[str, Any]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {plain(v)}" for k, v in {**prepare, **keywords}.items())


def _indented(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 1, 2))


def _caveats(sentences: list[str]) -> RenderableType:
    if not sentences:
        return Text("")
    lines = [Padding(Text(f"- {sentence}"), (0, 0, 0, 2)) for sentence in sentences]
    return Group(Text("Beware"), *lines, Text(""))


def _grid(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> RenderableType:
    if not rows:
        return Text("No protocol that ships measures it.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
