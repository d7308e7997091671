"""Published checkpoints as data, and where their files are on this machine. Torch-free.

    bench/checkpoints/<name>.yaml     what is known of one: URLs, hashes, format, licence, paper
    BENCH_WEIGHTS/<name>/<file>       where `bench prepare --checkpoint NAME` puts it; without BENCH_WEIGHTS below the cache

A checkpoint is also named by a file, a folder, an URL, hf:OWNER/NAME or hf:OWNER/NAME:FILE. What comes by URL or from the
hub is kept below the cache and not fetched again.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bench.download import TIMEOUT, fetch, unpack
from bench.errors import BadInput
from bench.places import Places
from bench.registry import available, did_you_mean, signature
from bench.weights import sha256

FOLDER = Path(__file__).parent / "checkpoints"
HUB = "https://huggingface.co"
WEIGHTS = "model.safetensors"           # of our own folders
SETTINGS = "tokenizer.json"
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl")

Progress = Callable[[int, int], None]
Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CheckpointFile(Frozen):
    """One file. Without an URL somebody has to put it there (the publication links to a page, not to a file)."""

    file: str                                       # its name here
    url: str = ""
    member: str = ""                                # what it is called in the zip archive that `url` is; "": no archive
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{8,64})?$")] = ""      # or how it begins; "": not known to us

    @model_validator(mode="after")
    def _of_an_archive(self) -> CheckpointFile:
        if self.member and not self.archive.endswith(".zip"):
            raise ValueError(f"{self.file} is a member of an archive, so its url must be that of a zip file")
        return self

    @property
    def archive(self) -> str:
        """What the file at `url` is called."""
        return unquote(Path(urlsplit(self.url).path).name)


class Checkpoint(Frozen):
    """One file of bench/checkpoints."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.\-]*$")]
    title: str                                      # in tables
    format: str
    tokenizer: dict[str, Any] = {}                  # keywords beyond those that the format reads off the tensors
    image_size: int                                 # pixels of a side that it was trained on
    files: Annotated[tuple[CheckpointFile, ...], Listed]
    page: str                                       # where a person finds it
    license: str
    paper: str = ""
    from_scratch: bool | None = True                # no part of it was initialised from, or is, another network; None: not stated
    pretrained: Annotated[tuple[str, ...], Listed] = ()     # those parts; and networks that its training took losses from
    trained_on: str = ""
    note: str = ""

    @property
    def link(self) -> str:
        """To the weights; to the page where they are several files, or none that a program can fetch."""
        return self.files[0].url if len(self.files) == 1 and self.files[0].url else self.page


class CheckpointEntry(Frozen):
    """What a suite's `checkpoints` says of one: a name alone is short for {checkpoint: name}."""

    checkpoint: str                                 # a name, a file, a folder, an URL, hf:OWNER/NAME[:FILE]
    format: str | None = None                       # where it does not say so itself
    label: str | None = None                        # in tables; default: its name
    tokenizer: dict[str, Any] = {}                  # keywords over those of the checkpoint

    @property
    def listed(self) -> Checkpoint | None:
        """What we know of it, where it is on our list."""
        return load_checkpoint(self.checkpoint) if self.checkpoint in checkpoints() else None


def checkpoints() -> list[str]:
    """Names of all published checkpoints that we know of."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def load_checkpoint(name: str) -> Checkpoint:
    """Read one by its name. Raises BadInput with the nearest name, or saying what is wrong in the file."""
    if name not in checkpoints():
        raise BadInput(f"there is no published checkpoint {name!r}{did_you_mean(name, checkpoints())}")
    path = FOLDER / f"{name}.yaml"
    try:
        found = Checkpoint.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise BadInput(f"{path}: not a published checkpoint ({error}); mend it or restore the shipped file") from error
    if found.name != name:
        raise BadInput(f"{path}: its name is {found.name!r}; a checkpoint is called like its file")
    format_name(found.format)
    return found


def format_name(given: str) -> str:
    """The registered name: explore-vqvae is explore_vqvae. Raises BadInput with the nearest name."""
    name = given.replace("-", "_")
    if name not in available("format"):
        raise BadInput(f"there is no checkpoint format {given!r}{did_you_mean(name, available('format'))}")
    return name


def called(entry: str | Mapping[str, Any]) -> str:
    """What a table calls a checkpoint of a suite, as far as that can be known without looking at it."""
    given = entry if isinstance(entry, str) else str(entry.get("label") or entry.get("checkpoint"))
    if given in checkpoints() or given != (entry if isinstance(entry, str) else entry.get("checkpoint")):
        return given
    if given.startswith("hf:"):
        return given.removeprefix("hf:").partition(":")[0]
    return Path(unquote(urlsplit(given).path)).stem


# -- where files are -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint on this machine."""

    label: str                                      # what a table calls it
    path: Path                                      # the file, or the folder that holds its files
    entry: Checkpoint | None = None                 # where it is a published one of the list
    link: str = ""                                  # to the weights, where they are from the network


class Absent(BadInput):
    """A checkpoint of the list is not on this machine; a table says so and goes on."""


def homes(name: str, places: Places) -> list[Path]:
    """Folders in which the files of a listed checkpoint may be; the first is where they are put."""
    own = places.cache / "checkpoints" / name
    return [own] if places.weights is None else [places.weights / name, own]


def find_checkpoint(entry: Checkpoint, places: Places) -> Path | None:
    """The file, or the folder of its files; None where one of them is not here.

    A file of the same name with another hash than the published one is not it.
    """
    for home in homes(entry.name, places):
        paths = [home / one.file for one in entry.files]
        if all(path.is_file() for path in paths):
            for path, one in zip(paths, entry.files, strict=True):
                if not (digest := sha256(path, places.cache)).startswith(one.sha256):
                    raise BadInput(f"{path}: not the published file of {entry.name} (sha256 {digest[:12]}, expected "
                                   f"{one.sha256[:12]}); remove it and run `bench prepare --checkpoint {entry.name}`")
            return paths[0] if len(paths) == 1 else home
    return None


def prepare(name: str, places: Places, progress: Progress | None = None) -> Path:
    """Fetch what is missing of a listed checkpoint; the file, or the folder of its files.

    Raises BadInput where a file cannot be had, is not the published one, or has to be fetched by hand.
    """
    entry = load_checkpoint(name)
    if (path := find_checkpoint(entry, places)) is not None:
        return path
    home = homes(name, places)[0]
    for one in entry.files:
        if (home / one.file).is_file():
            continue
        if not one.url:
            raise BadInput(f"{one.file} of {name} cannot be fetched by a program: get it from {entry.page} and put it "
                           f"into {home}")
        if one.member:
            _fetch_member(one, home, progress)
        else:
            fetch(one.url, home / one.file, sha256=one.sha256, progress=progress)
    found = find_checkpoint(entry, places)
    assert found is not None
    return found


def _fetch_member(one: CheckpointFile, home: Path, progress: Progress | None) -> None:
    """Out of its archive, which is fetched and removed again, or lies there already, put by a person."""
    archive = home / one.archive
    fetched = not archive.is_file()
    try:
        if fetched:
            fetch(one.url, archive, progress=progress)
        unpack(archive, one.member, home / one.file, sha256=one.sha256)
    finally:
        if fetched:
            archive.unlink(missing_ok=True)


def locate(given: str, places: Places, progress: Progress | None = None) -> Found:
    """What FILE, FOLDER, NAME, an URL, hf:OWNER/NAME or hf:OWNER/NAME:FILE means, fetched where it is on the network.

    A file that has the bytes of a listed one is that one, wherever it came from. A NAME is not fetched here. Raises Absent
    where its files are not on this machine, else BadInput with one sentence.
    """
    if given in checkpoints() and not Path(given).exists():
        return _listed(load_checkpoint(given), places)
    found = _anywhere(given, places, progress)
    entry = _recognised(found.path, places)
    return found if entry is None else Found(entry.name, found.path, entry, found.link or entry.link)


def _anywhere(given: str, places: Places, progress: Progress | None) -> Found:
    path = Path(given).expanduser()
    if path.exists():
        return Found(path.stem if path.is_file() else path.name, path.absolute())
    if given.startswith("hf:"):
        return _from_hub(given, places, progress)
    if re.match(r"(https?|file)://", given):
        name = unquote(Path(urlsplit(given).path).name) or "weights"
        target = places.cache / "checkpoints" / "url" / hashlib.sha256(given.encode()).hexdigest()[:12] / name
        if not target.is_file():
            fetch(given, target, progress=progress)
        return Found(target.stem, target, link="" if given.startswith("file:") else given)
    looks = "/" in given or Path(given).suffix in SUFFIXES
    raise BadInput(f"{given}: there is no such file" if looks else
                   f"{given!r} is no file, and no published checkpoint{did_you_mean(given, checkpoints())}")


def _recognised(path: Path, places: Places) -> Checkpoint | None:
    """The listed checkpoint whose file this is, or whose files lie in this folder, by their hashes."""
    for name in checkpoints():
        files = (entry := load_checkpoint(name)).files
        here = [path] if path.is_file() else [path / one.file for one in files]
        if len(here) == len(files) and all(one.sha256 and at.is_file() for one, at in zip(files, here, strict=True)) and all(
                sha256(at, places.cache).startswith(one.sha256) for one, at in zip(files, here, strict=True)):
            return entry
    return None


def _listed(entry: Checkpoint, places: Places) -> Found:
    if (found := find_checkpoint(entry, places)) is None:
        raise Absent(f"the weights of {entry.name} are not on this machine; `bench prepare --checkpoint {entry.name}` "
                     f"{'fetches them' if all(f.url for f in entry.files) else 'says where to get them'}")
    return Found(entry.name, found, entry, entry.link)


def here(given: str, places: Places) -> bool:
    """Whether a checkpoint could be measured now, without fetching anything that is listed."""
    return given not in checkpoints() or find_checkpoint(load_checkpoint(given), places) is not None


def listing(places: Places) -> list[dict[str, Any]]:
    """What `bench ls checkpoints` says of each; `here`: yes, no, by hand (no, and no program can fetch it), or another
    file (of its name, with another hash)."""
    found = []
    for entry in map(load_checkpoint, checkpoints()):
        try:
            absent = "no" if all(one.url for one in entry.files) else "by hand"
            here = absent if find_checkpoint(entry, places) is None else "yes"
        except BadInput:
            here = "another file"
        found.append({"name": entry.name, "summary": entry.title, "format": entry.format, "image_size": entry.image_size,
                      "license": entry.license, "here": here})
    return found


def parts(path: Path, patterns: Mapping[str, str]) -> list[tuple[Path, str]]:
    """(file, prefix of its keys) of a checkpoint: one file, or one for each pattern in a folder.

    Raises BadInput where a pattern fits no file, or several.
    """
    if path.is_file() and not patterns:
        return [(path, "")]
    folder = path if path.is_dir() else path.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES)
    if not patterns:
        patterns = {"*": ""}
    found = []
    for pattern, prefix in patterns.items():
        fitting = [name for name in names if fnmatch.fnmatch(name, pattern)]
        if len(fitting) != 1:
            raise BadInput(f"{folder}: {'no weight file' if not fitting else ', '.join(fitting)} "
                           f"{'is' if len(fitting) < 2 else 'are'} called {pattern}, but one must be; name the file itself"
                           if patterns == {"*": ""} else
                           f"{folder}: {len(fitting)} weight files are called {pattern}, but this format has one of them; "
                           f"give a folder that holds exactly the checkpoint's files")
        found.append((folder / fitting[0], prefix))
    return found


def run_folder(path: Path) -> Path | None:
    """The folder of one of our runs that `path` is, or lies in."""
    candidates = [path] if path.is_dir() else [path.parent.parent]
    return next((folder for folder in candidates if (folder / "spec.json").is_file()), None)


def weight_files(found: Found, format: str | None) -> list[Path]:
    """Those that hold the weights of a checkpoint. Raises BadInput where nothing says what it is."""
    path, name = found.path, format or (None if found.entry is None else format_name(found.entry.format))
    if name is not None:
        return [file for file, _ in parts(path, described(name).get("files", {}))]
    if path.is_dir() and (path / SETTINGS).is_file():
        return [path / WEIGHTS]
    if run_folder(path) is not None:
        return [path / "checkpoints" / "final.pt" if path.is_dir() else path]
    raise BadInput(f"{path}: whose checkpoint is it? Say so with --format (format= in Python, format: in a suite): "
                   f"{', '.join(available('format'))}")


def digest(given: str, format: str | None, places: Places) -> str:
    """sha256 of a checkpoint's file; of the sha256s of its files where it has several. Raises as `locate` does."""
    files = weight_files(locate(given, places), format)
    if absent := [file for file in files if not file.is_file()]:
        raise BadInput(f"{absent[0]}: there is no such file")
    found = hashes(files, places)
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def hashes(files: list[Path], places: Places) -> tuple[str, ...]:
    """sha256 of each."""
    return tuple(sha256(path, places.cache) for path in files)


def described(format: str) -> Mapping[str, Any]:
    """A format's literal class attributes, without importing it."""
    return signature("format", format_name(format)).attributes


# -- the hub -------------------------------------------------------------------------------------------------------------


def _from_hub(given: str, places: Places, progress: Progress | None) -> Found:
    """hf:OWNER/NAME:FILE, or hf:OWNER/NAME for a folder that `save_pretrained` wrote, or for its one weight file."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::(.+))?", given)
    if match is None:
        raise BadInput(f"{given}: write hf:OWNER/NAME, or hf:OWNER/NAME:FILE")
    repository, file = match.groups()
    home = places.cache / "checkpoints" / "hf" / repository
    page = f"{HUB}/{repository}"
    if file is None and not all((home / name).is_file() for name in (WEIGHTS, SETTINGS)):
        listed = _hub_files(repository)
        weights = [name for name in listed if name.endswith(SUFFIXES)]
        if {WEIGHTS, SETTINGS} <= set(listed):
            for name in (SETTINGS, WEIGHTS):
                _hub_file(repository, name, home, progress)
        elif len(weights) == 1:
            file = weights[0]
        else:
            raise BadInput(f"{given}: it holds {len(weights)} weight files, so say which one: "
                           f"{', '.join(f'hf:{repository}:{name}' for name in weights[:3])}" if weights else
                           f"{given}: there is no weight file in it")
    if file is None:
        return Found(repository, home, link=page)
    return Found(repository, _hub_file(repository, file, home, progress), link=_hub_url(repository, file))


def _hub_url(repository: str, file: str) -> str:
    return f"{os.environ.get('HF_ENDPOINT') or HUB}/{repository}/resolve/main/{quote(file)}"


def _hub_file(repository: str, file: str, home: Path, progress: Progress | None) -> Path:
    """From our cache, from that of the hub's own client, else from the network."""
    if (target := home / file).is_file():
        return target
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser() / "hub"
    kept = sorted((hub / f"models--{repository.replace('/', '--')}" / "snapshots").glob(f"*/{file}"))
    if kept:
        return kept[-1]
    fetch(_hub_url(repository, file), target, progress=progress)
    return target


def _hub_files(repository: str) -> list[str]:
    url = f"{os.environ.get('HF_ENDPOINT') or HUB}/api/models/{repository}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return [one["rfilename"] for one in json.load(answer)["siblings"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"hf:{repository}: the hub does not say which files it holds ({error}); name one as "
                       f"hf:{repository}:FILE, or give a file") from error
