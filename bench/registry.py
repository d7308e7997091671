"""Kinds, names and signatures of components. Nothing is imported to list, bind or type-check; only to build.

One new thing is one new file: a component is a module in its kind's home package, named like its entry.
Signatures, defaults and class attributes are read from the source file with `ast` (0.1 ms a file).
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from bench.errors import BadInput

T = TypeVar("T", bound=Callable[..., Any])

HOMES = {
    "tokenizer": "implementations",
    "quantizer": "implementations.quantizers",
    # what a codebook is composed of
    "distance": "implementations.codebook.distances",
    "table": "implementations.codebook.tables",
    "update": "implementations.codebook.updates",
    "restart": "implementations.codebook.restarts",
    "gradient": "implementations.codebook.gradients",
    "init": "implementations.codebook.inits",
    "alignment": "implementations.codebook.alignments",
    "objective": "bench.objectives",
    "loss": "bench.losses",
    "discriminator": "bench.discriminators",
    "monitor": "bench.monitors",
    "metric": "bench.metrics",
    "dataset": "bench.datasets",
    "tracker": "bench.trackers",
    "baseline": "bench.baselines",
    "peer": "bench.peers",
    "format": "implementations.formats",
}
#: what class names in annotations mean: partial[Quantizer] wants a quantizer
KIND_OF_CLASS = {
    "Tokenizer": "tokenizer", "Quantizer": "quantizer", "Objective": "objective",
    "Loss": "loss", "Discriminator": "discriminator", "Monitor": "monitor", "Metric": "metric", "ImageDataset": "dataset",
    "Baseline": "baseline", "Distance": "distance", "Table": "table", "Update": "update", "Restart": "restart",
    "Gradient": "gradient", "Init": "init", "Alignment": "alignment",
}
PLURALS = {kind: "losses" if kind == "loss" else f"{kind}s" for kind in HOMES}
REQUIRED = object()

_entries: dict[tuple[str, str], Callable[..., Any]] = {}
_included: list[Path] = []
MOST_NAMED = 40             # names that one sentence lists


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class or function decorator: enter it under a kind and its published name (= its file's name)."""

    def decorate(entry: T) -> T:
        if _entries.setdefault((kind, name), entry) is not entry:
            raise ValueError(f"two {kind}s are called {name!r}")
        return entry

    return decorate


def include(folder: Path) -> None:
    """Append a folder shaped like `implementations/` to the homes: FOLDER/mine.py, FOLDER/quantizers/my_vq.py."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise BadInput(f"--include {folder}: no such folder")
    if folder not in _included:
        _included.append(folder)
        os.environ["BENCH_INCLUDE"] = os.pathsep.join(map(str, _included))      # for the processes we start
        _files.cache_clear()
        for kind in HOMES:
            package = importlib.import_module(HOMES[kind])
            if (extra := _extra_home(folder, kind)).is_dir() and str(extra) not in package.__path__:
                package.__path__.append(str(extra))


def included() -> list[Path]:
    """The folders of --include, in order."""
    return list(_included)


def include_from_environment() -> None:
    """Every folder of BENCH_INCLUDE: how the folders of --include reach the processes that a launcher starts."""
    for folder in os.environ.get("BENCH_INCLUDE", "").split(os.pathsep):
        if folder:
            include(Path(folder))


def _extra_home(folder: Path, kind: str) -> Path:
    return folder if kind == "tokenizer" else folder / HOMES[kind].rpartition(".")[2]


@functools.cache
def _files(kind: str) -> dict[str, Path]:
    home = Path(importlib.util.find_spec(HOMES[kind]).submodule_search_locations[0])
    found: dict[str, Path] = {}
    for folder in [home, *(_extra_home(f, kind) for f in _included)]:
        for path in sorted(folder.glob("*.py")) if folder.is_dir() else ():
            if path.stem.startswith("_"):
                continue
            if path.stem in found:
                raise BadInput(f"two {kind}s are called {path.stem}: {found[path.stem]} and {path}; rename one")
            found[path.stem] = path
    return found


def available(kind: str) -> list[str]:
    """File names in the homes of a kind, found without importing any of them."""
    return sorted(_files(kind))


def source_file(kind: str, name: str) -> Path:
    """The file that holds an entry. Raises BadInput with the nearest valid name."""
    if ":" in name:
        module = name.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise BadInput(f"no module {module!r} can be imported for the {kind} {name!r}")
        return Path(spec.origin)
    files = _files(kind)
    if name not in files:
        raise BadInput(f"there is no {kind} {name!r}{did_you_mean(name, files)}")
    return files[name]


def did_you_mean(word: str, among: Iterable[str]) -> str:
    """'; did you mean X?' or '; known: A, B, C', of many the first ones."""
    among = sorted(among)
    if near := difflib.get_close_matches(str(word), among, n=1):
        return f"; did you mean {near[0]}?"
    more = f" and {len(among) - MOST_NAMED} more" if len(among) > MOST_NAMED else ""
    return f"; known: {', '.join(among[:MOST_NAMED])}{more}" if among else ""


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """Import and return an entry; `module:Attribute` is taken as it is."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if (kind, name) not in _entries:
        source_file(kind, name)
        importlib.import_module(f"{HOMES[kind]}.{name}")
    return _entries[kind, name]


def component(kind: str, given: Any) -> Any:
    """A constructor with its keywords: a name, or a mapping as a suite writes it (parts of parts too), becomes a
    `functools.partial` of the entry; whatever else is given is one already and is returned. So a default that is
    written in a signature is the same for a suite and in Python."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        return given
    annotations = {key: keyword.annotation for key, keyword in signature(kind, given["name"]).keywords.items()}
    keywords = {key: component(annotations[key].kind, value) if is_part(annotations[key]) else value
                for key, value in given.items() if key != "name"}
    return functools.partial(resolve(kind, given["name"]), **keywords)


# -- signatures, read from source ---------------------------------------------------------------------------------


class Part:
    """Marks an annotation `partial[Kind]`: the value is a nested component of that kind."""

    kind: str


def is_part(annotation: Any) -> bool:
    """Whether a value of this annotation is one component."""
    return isinstance(annotation, type) and issubclass(annotation, Part)


@functools.cache
def _part(kind: str) -> type[Part]:
    return type(f"Part_{kind}", (Part,), {"kind": kind})


class _Partial:
    def __class_getitem__(cls, item: type[Part]) -> type[Part]:
        return item


_NAMES: dict[str, Any] = {
    "bool": bool, "int": int, "float": float, "str": str, "None": None, "Literal": Literal, "tuple": tuple,
    "list": list, "dict": dict, "partial": _Partial, **{c: _part(k) for c, k in KIND_OF_CLASS.items()},
}


@dataclass(frozen=True, slots=True)
class Keyword:
    """One keyword-only argument of a component."""

    annotation: Any                             # a type that pydantic understands, or one with Parts in it
    text: str                                   # the annotation as written
    default: Any = REQUIRED


@dataclass(frozen=True, slots=True)
class Signature:
    """All the harness knows of a component without importing it."""

    kind: str
    name: str
    file: Path
    keywords: dict[str, Keyword]
    attributes: dict[str, Any] = field(default_factory=dict)    # literal class attributes: revision, title, ...
    summary: str = ""                           # first line of the file's docstring
    text: str = ""                              # docstring of the entry itself
    outside: bool = False                       # not shipped with us: its file's hash is its revision

    @property
    def revision(self) -> int | str:
        """Of the arithmetic. Code from outside has no discipline of revisions: its bytes are its revision."""
        if self.outside:
            return hashlib.sha256(self.file.read_bytes()).hexdigest()[:12]
        return self.attributes.get("revision", 1)

    @property
    def neutral(self) -> dict[str, Any]:
        """Keyword values that reproduce the behaviour before the keyword existed; left out of identities."""
        return self.attributes.get("neutral", {})

    @property
    def title(self) -> str:
        return self.attributes.get("title", self.name)


@functools.cache
def signature(kind: str, name: str) -> Signature:
    """Read an entry's keyword-only arguments, literal defaults and literal class attributes from its source."""
    file = source_file(kind, name)
    tree = ast.parse(file.read_text(), str(file))
    wanted = name.partition(":")[2] or None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (
            node.name == wanted if wanted else _registered_as(node) == (kind, name)
        ):
            break
    else:
        raise BadInput(f"{file}: nothing in it is registered as {kind} {name!r}")
    inside = any(Path(importlib.util.find_spec(p).submodule_search_locations[0]) in file.parents
                 for p in ("bench", "implementations"))
    attributes: dict[str, Any] = {}
    function: ast.FunctionDef | None = node if isinstance(node, ast.FunctionDef) else None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            function = item
        targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
        value = getattr(item, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                try:
                    attributes[target.id] = ast.literal_eval(value)
                except ValueError:
                    pass                        # not a literal: of no interest here
    keywords: dict[str, Keyword] = {}
    if function is not None:
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            if argument.annotation is None:
                raise BadInput(f"{file}:{argument.lineno}: keyword {argument.arg} of {name} has no annotation")
            text = ast.unparse(argument.annotation)
            try:
                annotation = eval(text, {"__builtins__": {}}, _NAMES)  # names of _NAMES only
                value = REQUIRED if default is None else ast.literal_eval(default)
            except Exception as error:
                raise BadInput(f"{file}:{argument.lineno}: keyword {argument.arg}: {text} is no annotation that a suite "
                               f"can be checked against, or its default no literal ({error})") from error
            keywords[argument.arg] = Keyword(annotation, text, value)
    summary = (ast.get_docstring(tree) or ast.get_docstring(node) or "").split("\n")[0]
    return Signature(kind, name, file, keywords, attributes, summary, ast.get_docstring(node) or "", outside=not inside)


def _registered_as(node: ast.ClassDef | ast.FunctionDef) -> tuple[str, str] | None:
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="register"), args=[ast.Constant(value=kind), ast.Constant(value=name)]):
                return kind, name
    return None


@functools.cache
def _imports(file: Path) -> frozenset[Path]:
    """Files of this project that a file imports, read from its source."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        for name in names:
            if name.partition(".")[0] in ("bench", "implementations"):
                path = _root().joinpath(*name.split("."))
                found |= {p for p in (path.with_suffix(".py"),) if p.is_file()}
    return frozenset(found)


@functools.cache
def _root() -> Path:
    """The folder that holds the packages `bench` and `implementations`."""
    return Path(__file__).resolve().parent.parent


#: files whose arithmetic every run goes through
HARNESS_FILES = ("bench/train.py", "bench/optim.py", "bench/data.py")


def source_closure(files: Iterable[Path]) -> list[Path]:
    """These files (relative to the repository), the training loop, and what they import from `implementations`,
    losses and searches; contracts and file handling are left out, since they change no number."""
    todo = [_root() / f for f in (*HARNESS_FILES, *map(str, files))]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        todo.append(file.with_suffix(".c"))             # a compiled kernel lies beside the module that uses it
        if file.suffix == ".py":
            todo += [f for f in _imports(file) if f.parent.name in ("losses", "objectives", "discriminators")
                     or "implementations" in f.parts]
    return sorted(seen)
