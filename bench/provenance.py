"""Which code made a number: commit, changes to it, versions; and what a tokenizer starts from. No paths and no host names.
Torch-free."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.files import write_atomic
from bench.registry import signature
from bench.spec import ComponentSpec, TrainSpec
from bench.weights import needed

ROOT = Path(__file__).resolve().parents[1]
CODE = ("bench", "implementations", "pyproject.toml")      # results and reports change with every run
PACKAGES = (
    "tokenizer-bench", "torch", "torchvision", "numpy", "scipy", "scikit-image", "pillow", "einops", "lpips",
    "torch-fidelity", "submitit", "pydantic", "PyYAML", "pyarrow",
)

#: how files of bench/weights.py are called in a record; a network without an entry by its name there
TITLES = {
    "lpips_alex": "LPIPS-AlexNet", "lpips_vgg": "LPIPS-VGG", "lpips_squeeze": "LPIPS-SqueezeNet", "resnet50": "ResNet-50",
    "convnext_small": "ConvNeXt-S", "dino_vits16": "DINO ViT-S/16", "clip_vitl14": "CLIP ViT-L/14",
    "clip_vitb16": "CLIP ViT-B/16", "dinov2_vits14": "DINOv2 ViT-S/14", "maskgit_vqgan": "MaskGIT's VQGAN",
}


def provenance(places: object = None, *, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """commit, dirty, diff (a digest of what is not committed), versions, python, platform; for a record.

    `places` is not looked at, since records name no place.
    commit, dirty and diff are None where the code is not in its own git repository (installed from a wheel).
    """
    commit, changes = git_state()
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "diff": hashlib.sha256(changes).hexdigest()[:16] if changes else None,
        "versions": versions(packages),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name, from metadata; what is not installed is left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_digest(files: Iterable[Path]) -> str:
    """12 hex digits of what source files compute: comments, docstrings, imports and layout do not move it.

    Independent of their order and of where the repository lies. Raises BadInput for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(set(files), key=_name):
        try:
            if file.suffix == ".c":
                digest.update(f"{_name(file)}\0".encode() + file.read_bytes() + b"\0")
                continue
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError) as error:
            raise BadInput(f"{file}: cannot be read as source code ({error}); restore it") from error
        digest.update(f"{_name(file)}\0{ast.dump(_Bare().visit(tree))}\0".encode())
    return digest.hexdigest()[:12]


class _Bare(ast.NodeTransformer):
    """Takes out what computes nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name


@functools.cache
def git_state(root: Path = ROOT) -> tuple[str | None, bytes]:
    """(commit, the code that is not committed, as a patch with untracked files), as first seen."""
    own = root / "bench" / "__init__.py"
    if _git(root, "ls-files", "--error-unmatch", "--", str(own)) is None:
        return None, b""            # no git, no repository, or somebody else's that we were installed inside
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, b""
    code = [name for name in CODE if (root / name).exists()]
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    changes = _git(root, "diff", *plain, "HEAD", "--", *code)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *code)
    patch = changes or b""
    for name in sorted((untracked or b"").decode().split("\0")):
        if name and (root / name).is_file():
            patch += f"\n+++ untracked {name}\n".encode() + (root / name).read_bytes()
    return commit.decode().strip(), patch


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        found = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout if found.returncode == 0 else None


def changed(before: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """What of commit, diff, versions and python is no longer as it was, as it was; {} where the code is the same."""
    found = {key: before[key] for key in ("commit", "diff", "python") if key in before and before[key] != here[key]}
    old, new = before.get("versions") or {}, here["versions"]
    packages = {name: old.get(name) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)}
    return found | ({"versions": packages} if packages and "versions" in before else {})


def changes_told(before: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """'commit 1a2b3c4d is 5e6f7a8b now, torch 2.1.0 is 2.2.0 now'; '' where nothing differs."""
    was = changed(before, here)
    told = [f"commit {_short(was['commit'])} is {_short(here['commit'])} now"] if "commit" in was else []
    told += ["what is not committed is other"] if "diff" in was else []
    told += [f"Python {was['python']} is {here['python']} now"] if "python" in was else []
    told += [f"{name} {_short(old)} is {_short(here['versions'].get(name))} now"
             for name, old in was.get("versions", {}).items()]
    return ", ".join(told)


def _short(text: str | None) -> str:
    return "unknown" if text is None else text[:12]


def save_code(folder: Path) -> None:
    """Into a run's code/ whenever it begins: provenance.json and, where there are changes, changes.patch.

    What the first life wrote stays; a later one with other code writes provenance-1.json and changes-1.patch.
    """
    facts = provenance()
    lives = sorted(folder.glob("provenance*.json"))
    for life in lives:
        try:
            if not changed(json.loads(life.read_text()), facts):
                return
        except (OSError, ValueError, TypeError, KeyError):
            continue                                # torn by a crash: this life writes its own
    number = f"-{len(lives)}" if lives else ""
    if changes := git_state()[1]:
        write_atomic(folder / f"changes{number}.patch", changes)
    write_atomic(folder / f"provenance{number}.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")


# -- what a tokenizer starts from ---------------------------------------------------------------------------------------


def origins(train: TrainSpec, start: str | None = None) -> dict[str, Any]:
    """from_scratch and pretrained, for a record, as those of published checkpoints have them.

    from_scratch: no part of the tokenizer is another network, holds its features (a codebook from a file), or begins with
    other weights than drawn ones (`train.init_from`, whose label is `start`). What it only learns from, a loss or the trunk
    of a discriminator, is named in `pretrained` and changes nothing of that: OptVQ's table has VQGAN with LPIPS as from
    scratch, VQGAN-LC with CLIP's features as its table not.

    A component says in its literal class attribute `needs` which files it uses, and in `pretrained` what else of it comes
    from elsewhere, with keywords in braces.
    """
    inside = [named for part in _all(train.model) for named in _named(part)]
    if train.init_from is not None:
        label = start or "another run"
        inside.append(f"weights of {Path(label).name if label[0] in '/~.' else label} (start)")
    beside = [named for part in _all(train.objective) for named in _named(part)]
    return {"from_scratch": not inside, "pretrained": list(dict.fromkeys([*inside, *beside]))}


def _all(component: ComponentSpec) -> list[ComponentSpec]:
    return [component, *(below for _, below in component.nested())]


def _named(part: ComponentSpec) -> list[str]:
    attributes = signature(part.kind, part.name).attributes
    # a path says where a file is on one machine: only its last part is kept
    words = {key: Path(value).name if isinstance(value, str) else value for key, value in part.kwargs.items()}
    found = [TITLES.get(name, name) for name in needed(attributes, part.kwargs)]
    found += [text.format(**words) for text in attributes.get("pretrained", ())]
    return [f"{name} ({part.kind})" for name in found]
