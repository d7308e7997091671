"""YAML with line numbers: safe, YAML 1.2 scalars (`4e-4` is a number, `no` is text), no duplicate keys. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bench.errors import BadInput

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def load_yaml(text: str, file: str | Path) -> tuple[Any, dict[KeyPath, int]]:
    """Plain data and, for the path of every key and item, the line (from 1) it was written at.

    Raises BadInput with file and line for anything that is not plain data.
    """
    lines: dict[KeyPath, int] = {}
    above: list[yaml.Node] = []

    def plain(node: yaml.Node, path: KeyPath) -> Any:
        if any(node is outer for outer in above):
            raise BadInput(f"{file}:{node.start_mark.line + 1}: {_dotted(path)}: an alias inside what it stands for")
        above.append(node)
        try:
            return read(node, path)
        finally:
            above.pop()

    def read(node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        lines.setdefault(path, line)
        match node:
            case yaml.MappingNode():
                mapping: dict[str, Any] = {}
                for key_node, value_node in node.value:
                    where = f"{file}:{key_node.start_mark.line + 1}"
                    if not isinstance(key_node, yaml.ScalarNode):
                        raise BadInput(f"{where}: a key must be a word, not a list or a mapping")
                    key = key_node.value
                    if key in mapping:
                        raise BadInput(f"{where}: {_dotted((*path, key))}: the key is written twice "
                                       f"(first in line {lines[(*path, key)]}); keep one")
                    lines[(*path, key)] = key_node.start_mark.line + 1
                    mapping[key] = plain(value_node, (*path, key))
                return mapping
            case yaml.SequenceNode():
                return [plain(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag not in _PLAIN_TAGS:
            raise BadInput(f"{file}:{line}: the tag {node.tag} is not allowed in a suite")
        return node.value if node.style else scalar(node.value)

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{file}: not valid YAML: {error}") from error
    return (None if root is None else plain(root, ())), lines


def scalar(text: str) -> Any:
    """One unquoted YAML 1.2 core scalar; also how `key=value` on the command line is read."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


_PLAIN_TAGS = {f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")}


def _dotted(path: KeyPath) -> str:
    return ".".join(str(p) for p in path)
