"""From a checkpoint of anybody to a ready tokenizer: opened safely, converted strictly, saved as safetensors and JSON.

    tokenizer = load_tokenizer("hf:OWNER/NAME")             # or a file, a folder, an URL, a name of `bench ls checkpoints`
    codes = tokenizer.tokenize(images)                      # images [B, 3, H, W] in [-1, 1] -> int64 [B, N, L]
    tokenizer.detokenize(codes), tokenizer.decode(tokenizer.encode(images))
    tokenizer.save_pretrained("folder")
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.catalogue import SETTINGS, WEIGHTS, Found, format_name, hashes, locate, parts, run_folder, weight_files
from bench.errors import BadInput
from bench.files import replace_file
from bench.format import Format, named
from bench.interfaces import Tokenizer
from bench.places import Places
from bench.registry import include_from_environment, signature
from bench.spec import ComponentSpec, bind
from bench.types import TokenizerOutput, TokenLayout, sides

log = logging.getLogger(__name__)

IMAGE_SIZE = 256                # where neither the checkpoint nor the user says one
ZIP, PICKLE = b"PK\x03\x04", b"\x80"      # how torch's files begin, since 1.6 and before
EXTRA = "_extra_state"          # ends the keys of what is no tensor in a state dict
LAYOUT = 1                      # of our folders


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint as one of our tokenizers."""

    tokenizer: Tokenizer                        # in eval mode, on the CPU, in float32, nothing in it learns
    model: ComponentSpec
    image_size: int | tuple[int, int]           # (height, width) where it is not for square ones
    format: ComponentSpec | None                # None: our own
    files: tuple[str, ...]                      # sha256 of each


class PretrainedTokenizer(nn.Module):
    """A trained tokenizer for use outside the harness. Images are float [B, 3, H, W] in [-1, 1]; H = W = `image_size`, or
    (H, W) = `image_size`."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.tokenizer, self.model, self.image_size = opened.tokenizer, opened.model, opened.image_size
        self.eval()

    @property
    def layout(self) -> TokenLayout:
        return self.tokenizer.layout

    def forward(self, images: Tensor) -> TokenizerOutput:
        return self.tokenizer(self._checked(images))

    def tokenize(self, images: Tensor) -> Tensor:
        """Codes, int64 [B, N, L]. Raises BadInput for a continuous tokenizer, which has none."""
        self._has_codes()
        codes = self.tokenizer.tokenize(self._checked(images))
        assert codes is not None
        return codes

    def detokenize(self, codes: Tensor) -> Tensor:
        """Reconstruction [B, 3, H, W], not clamped."""
        self._has_codes()
        return self.tokenizer.detokenize(codes)

    def encode(self, images: Tensor) -> Tensor:
        """What the decoder gets: quantized latents [B, P, D] (of a Gaussian posterior the mean)."""
        return self.tokenizer.quantizer(self.tokenizer.encode(self._checked(images))).quantized

    def decode(self, quantized: Tensor) -> Tensor:
        """Reconstruction [B, 3, H, W], not clamped."""
        return self.tokenizer.decode(quantized)

    def save_pretrained(self, folder: str | Path) -> Path:
        """FOLDER/model.safetensors and FOLDER/tokenizer.json, which `load_tokenizer` opens; returns the folder.

        Raises BadInput where it cannot be written."""
        from safetensors.torch import save

        folder = Path(folder)
        state = self.tokenizer.state_dict()
        tensors = {key: value.detach().cpu().contiguous().clone()
                   for key, value in state.items() if not key.endswith(EXTRA)}
        settings = {"layout": LAYOUT, "image_size": self.image_size, "tokenizer": json.loads(self.model.model_dump_json()),
                    "extra_state": {key: value for key, value in state.items() if key.endswith(EXTRA)}}
        replace_file(folder / WEIGHTS, save(tensors))
        replace_file(folder / SETTINGS, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        return folder

    def _checked(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, *sides(self.image_size)):
            raise BadInput(f"images of the shape {tuple(images.shape)} were given; this tokenizer was loaded for B x 3 x "
                           f"{' x '.join(map(str, sides(self.image_size)))} (load_tokenizer takes another image_size)")
        return images

    def _has_codes(self) -> None:
        if not self.layout.vocab_sizes:
            raise BadInput(f"{self.model.name} is a continuous tokenizer and has no codes; use encode and decode")


def load_tokenizer(
    given: str | Path, *, format: str | None = None, image_size: int | tuple[int, int] | None = None, places: Places | None = None,
    progress: Callable[[int, int], None] | None = None, weights: Literal["live", "average"] = "live", **tokenizer: Any,
) -> PretrainedTokenizer:
    """A ready tokenizer in eval mode, on the CPU.

    given: a file, a folder, a name of the list of published checkpoints, an URL, hf:OWNER/NAME or hf:OWNER/NAME:FILE; what
    `save_pretrained` and `bench convert` wrote; a run of ours (its folder, or its final.pt). format: whose state dict it is,
    where the checkpoint does not say so itself. weights: of a run of ours that was trained with `train.average`, which.
    Further keywords go to the tokenizer, over what the checkpoint says.
    Raises BadInput with one sentence for whatever cannot be found, opened or converted.
    """
    places = places or Places.find()
    return PretrainedTokenizer(open_checkpoint(
        locate(str(given), places, progress), places, format=format, image_size=image_size, keywords=tokenizer, weights=weights))


def open_checkpoint(
    found: Found, places: Places, *, format: str | None = None, image_size: int | tuple[int, int] | None = None,
    keywords: Mapping[str, Any] | None = None, weights: Literal["live", "average"] = "live",
) -> Opened:
    """Read, convert and build. The file says what it is, or `format` does; `keywords` are as a suite writes them, `weights`
    is for runs of ours (of a published file its format says which count).

    Raises BadInput, or the constructor's ValueError for a tokenizer that cannot be for this image size.
    """
    include_from_environment()
    path, entry, keywords = found.path, found.entry, keywords or {}
    own = format is None and entry is None
    run = run_folder(path) if own and not (path / SETTINGS).is_file() else None
    if run is None and weights == "average":
        raise BadInput(f"{path}: averaged weights are asked for, which only runs of ours hold beside the live ones")
    if own:
        if path.is_dir() and (path / SETTINGS).is_file():
            return _ours(path, places, image_size, keywords)
        if run is not None:
            return _run(run, path, places, image_size, keywords, weights)
        weight_files(found, None)                       # says what is wrong
    name = format_name(format or entry.format)          # type: ignore[union-attr]
    spec = ComponentSpec(kind="format", name=name, revision=signature("format", name).revision, kwargs={})
    reader: Format = spec.partial()()
    files = parts(path, reader.files)
    state: dict[str, Tensor] = {}
    for file, prefix in files:
        state |= {prefix + key: value for key, value in _state_dict(_read(file), reader.inside, file).items()}
    try:
        said = reader.tokenizer(state)
        ours = reader.convert(state)
    except KeyError as error:
        raise BadInput(f"{path}: there is no tensor {error} in it, so this is no checkpoint of {reader.title}; "
                       f"choose another --format") from error
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    model = _bound(_merged(_merged(said, {} if entry is None else entry.tokenizer), keywords))
    size = image_size or (IMAGE_SIZE if entry is None else entry.image_size)
    return _opened(model, size, ours, path, spec, hashes([file for file, _ in files], places))


# -- our own files -------------------------------------------------------------------------------------------------------


def _ours(folder: Path, places: Places, image_size: int | tuple[int, int] | None, keywords: Mapping[str, Any]) -> Opened:
    """A folder that `save_pretrained` wrote."""
    try:
        said = json.loads((folder / SETTINGS).read_text())
        spec, size, extra = ComponentSpec(**said["tokenizer"]), _size(said["image_size"]), dict(said["extra_state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / SETTINGS}: not written by `save_pretrained` or `bench convert` ({error})") from error
    state = _read(folder / WEIGHTS) | extra
    model, files = _again(spec, keywords, folder), hashes([folder / WEIGHTS], places)
    return _opened(model, image_size or size, state, folder, None, files)


def _run(folder: Path, path: Path, places: Places, image_size: int | tuple[int, int] | None, keywords: Mapping[str, Any], weights: str) -> Opened:
    file = folder / "checkpoints" / "final.pt" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{folder}: this run has no final.pt, because it has not ended or its weights were removed; name one "
                       f"of its checkpoints")
    try:
        said = json.loads((folder / "spec.json").read_text())
        spec, size = ComponentSpec(**said["model"]), int(said["dataset"]["kwargs"]["image_size"])
        trained = _read(file)["train"]
        state = dict(trained["model"])
        if weights == "average":
            if trained.get("average") is None:
                raise BadInput(f"{folder}: this run was trained without train.average, so it has no averaged weights")
            state |= trained["average"]
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: no checkpoint of a run of ours ({error})") from error
    return _opened(_again(spec, keywords, folder), image_size or size, state, file, None, hashes([file], places))


def _size(said: Any) -> int | tuple[int, int]:
    return (int(said[0]), int(said[1])) if isinstance(said, list) else int(said)


def _again(spec: ComponentSpec, keywords: Mapping[str, Any], where: Path) -> ComponentSpec:
    """A stored component, bound to the code that is here."""
    bound = _bound(_merged(_written(spec), keywords))
    old = {path: one.revision for path, one in (("tokenizer", spec), *spec.nested())}
    for path, one in (("tokenizer", bound), *bound.nested()):
        if old.get(path, one.revision) != one.revision:
            log.warning("%s: %s was saved with revision %s of its arithmetic and is revision %s here: other numbers are to "
                        "be expected", where, one.name, old[path], one.revision)
    return bound


def _written(value: Any) -> Any:
    """A component as a suite would write it."""
    match value:
        case ComponentSpec():
            return {"name": value.name, **{k: _written(v) for k, v in value.kwargs.items()}}
        case list() | tuple():
            return [_written(v) for v in value]
        case dict():
            return {k: _written(v) for k, v in value.items()}
    return value


# -- building ------------------------------------------------------------------------------------------------------------


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping; a part of another name replaces the whole part."""
    made = dict(below)
    for key, value in above.items():
        here = made.get(key)
        both = isinstance(value, Mapping) and isinstance(here, Mapping)
        same = both and value.get("name", here.get("name")) == here.get("name")
        made[key] = _merged(here, value) if same else value
    return made


def _bound(said: Mapping[str, Any]) -> ComponentSpec:
    def fail(path: tuple[str, ...], value: Any, sentence: str) -> BadInput:
        return BadInput(f"{'.'.join(map(str, path))}: {sentence}")

    return bind("tokenizer", json.loads(json.dumps(said)), ("tokenizer",), fail)


def _opened(model: ComponentSpec, size: int | tuple[int, int], state: Mapping[str, Any], where: Path, format: ComponentSpec | None,
            files: tuple[str, ...]) -> Opened:
    with torch.random.fork_rng(devices=[]):             # what is drawn here is written over
        tokenizer: Tokenizer = model.partial()(size)
    fill(tokenizer, state, where)
    return Opened(tokenizer.eval().requires_grad_(False), model, size, format, files)


def fill(tokenizer: Tokenizer, state: Mapping[str, Any], where: Path) -> None:
    """Every tensor of the tokenizer from `state`, and nothing left over; what is no tensor may be missing and then says
    that training has begun. Shapes may differ in ones (a 1x1 convolution is a linear map). Raises BadInput."""
    own = tokenizer.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(EXTRA)]
    left = [key for key in state if key not in own]
    if missing or left:
        told = [f"{named(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
        told += [f"{named(left)} {'has' if len(left) == 1 else 'have'} no place"] if left else []
        raise BadInput(f"{where}: its tensors are not those of this {type(tokenizer).__name__}: {', and '.join(told)}; "
                       f"other keywords of the tokenizer, or another format, may fit")
    ready: dict[str, Any] = {}
    for key, mine in own.items():
        if key.endswith(EXTRA):
            ready[key] = state.get(key, {**mine, "started": True} if isinstance(mine, dict) and "started" in mine else mine)
            continue
        given = state[key]
        if not isinstance(given, Tensor):
            raise BadInput(f"{where}: {key} is no tensor but {type(given).__name__}")
        if given.shape != mine.shape:
            if [n for n in given.shape if n != 1] != [n for n in mine.shape if n != 1]:
                raise BadInput(f"{where}: {key} has the shape {' x '.join(map(str, given.shape))}; with these keywords and at "
                               f"this image size it is {' x '.join(map(str, mine.shape))}")
            given = given.reshape(mine.shape)
        ready[key] = given.to(mine.dtype)
    tokenizer.load_state_dict(ready, strict=True)


# -- reading -------------------------------------------------------------------------------------------------------------


class Inert:
    """Stands where a file names a class of another program (a trainer's callback, a config, a module): never run. Of a
    module its tensors can be had."""

    def __init__(self, *inputs: Any, **keywords: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Tensor]:
        """As the module's own, whatever hooks it had. Raises BadInput for what was no module."""
        state = getattr(self, "state", None)
        if not isinstance(state, Mapping) or "_parameters" not in state:
            raise BadInput("an object of another program instead of tensors")
        passing = state.get("_non_persistent_buffers_set", ())
        own = {**state["_parameters"], **{k: v for k, v in state["_buffers"].items() if k not in passing}}
        found = {name: tensor for name, tensor in own.items() if tensor is not None}
        for part, module in state["_modules"].items():
            found |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()} if module is not None else {}
        return found


def _read(path: Path) -> dict[str, Any]:
    """What is in a weight file: safetensors, or torch's with weights_only=True. Raises BadInput.

    Training frameworks leave objects of their own beside the tensors; weights_only refuses their classes, so each is
    replaced by one that does nothing. A whole pickled module is read as its tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        strangers = [(Inert, name) for name in _strangers(path)]
        with torch.serialization.safe_globals(strangers), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")       # and then it is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, Inert):
            content = content.state_dict()
    except FileNotFoundError as error:
        raise BadInput(f"{path}: there is no such file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except BadInput as error:
        raise BadInput(f"{path}: holds {error}; save its state_dict()") from error
    except Exception as error:                  # a dozen kinds, for files that are cut short or are something else
        raise BadInput(f"{path}: {_unreadable(path, error)}") from error
    if not isinstance(content, Mapping):
        raise BadInput(f"{path}: holds {type(content).__name__}, but a state dict is needed; save its state_dict()")
    return dict(content)


def _unreadable(path: Path, error: Exception) -> str:
    """Why torch or safetensors would not read a file, whose own words recommend to run what is in it."""
    with open(path, "rb") as file:
        start, size = file.read(4), file.seek(0, 2)
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and (asked or start == ZIP or start[:1] == PICKLE):
        return (f"refused, because it holds {asked[1] if asked else 'Python objects'} beside tensors, and nothing that a "
                f"weight file asks for is run here; get it as safetensors, or as a plain state dict "
                f"(torch.save(model.state_dict(), FILE))")
    return f"no weights can be read from it: it is cut short, or no weight file ({size:,} bytes); fetch it again"


def _strangers(path: Path) -> list[str]:
    """Names of classes in a file of torch.save that are not torch's own plain ones."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:                          # the format before torch 1.6, which cannot be asked
        return []


def _state_dict(content: Mapping[str, Any], inside: tuple[str, ...], where: Path) -> dict[str, Any]:
    """The tensors: at the top of a file, or under the first of these keys that it has."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    for key in inside:
        if isinstance(content.get(key), Mapping):
            return dict(content[key])
    raise BadInput(f"{where}: there is no state dict in it, neither at the top nor under {' or '.join(inside)}; it holds "
                   f"{', '.join(map(str, list(content)[:5])) or 'nothing'}")


def described(tokenizer: Tokenizer, image_size: int | tuple[int, int]) -> tuple[dict[str, Any], dict[str, int]]:
    """(layout, parameters) as records keep them."""
    layout, quantizer = tokenizer.layout, tokenizer.quantizer
    books = list(quantizer.codebooks())
    bits = layout.bits_per_image
    levels = len(layout.vocab_sizes)
    shape = [*(layout.grids[0] if len(layout.grids) == 1 else (layout.num_tokens,)), *([levels] if levels > 1 else [])]
    separate = _separate(books, quantizer.tables())
    sizes = [len(book) // layout.tables for book in separate for _ in range(layout.tables)] or layout.vocab_sizes
    found = {
        "num_tokens": layout.num_tokens, "vocab_sizes": list(layout.vocab_sizes), "dims": [book.shape[1] for book in books],
        "grids": [list(g) for g in layout.grids], "bits_per_image": bits,
        "bits_per_pixel": None if bits is None else bits / math.prod(sides(image_size)), "latent_size": " × ".join(map(str, shape)),
        "codebook_size": _sizes(sizes), "code_dim": _sizes(sorted({book.shape[1] for book in separate})) or quantizer.output_dim,
        "downsampling": sides(image_size)[0] / max(h for h, _ in layout.grids) if layout.grids else None,
    }
    total = sum(p.numel() for p in tokenizer.parameters()) + quantizer.fixed_codes()
    return found, {"total": total, "learned": total, "codebook": sum(book.numel() for book in books)}


def _separate(books: Sequence[Tensor], tables: Sequence[nn.Parameter | None]) -> list[Tensor]:
    """Those of the levels' codebooks that share no numbers with one before."""
    behind = [book.data_ptr() if table is None else id(table) for book, table in zip(books, tables, strict=False)]
    return list(dict(zip(reversed(behind), reversed(books), strict=True)).values())[::-1]


def _sizes(sizes: Sequence[int]) -> int | str | None:
    """16384; '16,384 × 2' for two alike; '512 + 1,024' for two that are not; None for none."""
    if len(sizes) < 2:
        return next(iter(sizes), None)
    return f"{sizes[0]:,} × {len(sizes)}" if len(set(sizes)) == 1 else " + ".join(f"{size:,}" for size in sizes)
