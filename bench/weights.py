"""Files of pretrained networks: which there are, where they are, which bytes they hold. Torch-free.

A metric says what it needs in its class attribute `needs`, a literal tuple of names of this file in which a
keyword of the metric may stand in braces: `needs = ("lpips_{net}",)` with net="alex" needs "lpips_alex".

Nothing is downloaded at run time. A file comes from the folder BENCH_WEIGHTS, from the usual torch cache, or
from `bench prepare`, which calls `download`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.download import fetch
from bench.errors import BadInput
from bench.places import Places
from bench.registry import did_you_mean

TORCHVISION = "https://download.pytorch.org/models"
HUB = "https://huggingface.co"
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A published file. `prefix` is the start of its sha256, which torch hub puts into file names."""

    file: str
    url: str                                    # "": it cannot be downloaded, somebody has to put it there
    prefix: str                                 # "": nobody published it
    megabytes: int
    license: str


FILES = {
    "lpips_alex": WeightFile(
        "alexnet-owt-7be5be79.pth", f"{TORCHVISION}/alexnet-owt-7be5be79.pth", "7be5be79", 233,
        "torchvision, BSD-3-Clause; trained on ImageNet. LPIPS heads: the lpips package, BSD-2-Clause"),
    "lpips_vgg": WeightFile(
        "vgg16-397923af.pth", f"{TORCHVISION}/vgg16-397923af.pth", "397923af", 528,
        "torchvision, BSD-3-Clause; trained on ImageNet. LPIPS heads: the lpips package, BSD-2-Clause"),
    "lpips_squeeze": WeightFile(
        "squeezenet1_1-b8a52dc0.pth", f"{TORCHVISION}/squeezenet1_1-b8a52dc0.pth", "b8a52dc0", 5,
        "torchvision, BSD-3-Clause; trained on ImageNet. LPIPS heads: the lpips package, BSD-2-Clause"),
    # classifiers whose logits a loss compares
    "resnet50": WeightFile(
        "resnet50-0676ba61.pth", f"{TORCHVISION}/resnet50-0676ba61.pth", "0676ba61", 98,
        "torchvision, BSD-3-Clause; trained on ImageNet (IMAGENET1K_V1)"),
    "convnext_small": WeightFile(
        "convnext_small-0c510722.pth", f"{TORCHVISION}/convnext_small-0c510722.pth", "0c510722", 192,
        "torchvision, BSD-3-Clause; trained on ImageNet (IMAGENET1K_V1)"),
    # a tokenizer whose codes another one learns to predict; no revision of it is pinned here, so that
    # `bench prepare --checkpoint maskgit-vqgan` fetches it, and it is found there
    "maskgit_vqgan": WeightFile(
        "maskgit-vqgan-imagenet-f16-256.bin", "", "", 218,
        "MaskGIT's tokenizer for torch, Apache-2.0, huggingface.co/fun-research/TiTok; trained on ImageNet"),
    # the trunk of a discriminator; no sha256 of it is published, so it is not downloaded
    "dino_vits16": WeightFile(
        "dino_deitsmall16_pretrain.pth", "", "", 83,
        "DINO ViT-S/16, Apache-2.0, dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain; trained on ImageNet"),
    # teachers of a representation loss, in the folders that their repositories on the hub make
    "clip_vitl14": WeightFile(
        "clip-vit-large-patch14/model.safetensors",
        f"{HUB}/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/model.safetensors",
        "a2bf730a", 1711, "OpenAI's CLIP ViT-L/14, MIT; trained on images of the web"),
    "clip_vitb16": WeightFile(
        "clip-vit-base-patch16/pytorch_model.bin",
        f"{HUB}/openai/clip-vit-base-patch16/resolve/57c216476eefef5ab752ec549e440a49ae4ae5f3/pytorch_model.bin",
        "ec89c7b0", 599, "OpenAI's CLIP ViT-B/16, MIT; trained on images of the web"),
    "dinov2_vits14": WeightFile(
        "dinov2-small/model.safetensors",
        f"{HUB}/facebook/dinov2-small/resolve/ed25f3a31f01632728cabb09d1542f84ab7b0056/model.safetensors",
        "ae1e99fc", 88, "DINOv2 ViT-S/14, Apache-2.0; trained on LVD-142M"),
    "inception": WeightFile(
        "weights-inception-2015-12-05-6726825d.pth",
        f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
        "6726825d", 91, "converted by torch-fidelity from TensorFlow's, Apache-2.0; trained on ImageNet"),
    # for a Fréchet distance under its own name
    "frechet_inception_mixed_7a": WeightFile(
        "inception_v3_to_mixed7a_fp16.pth", "", "9c72758c", 21,
        "Keras applications' InceptionV3 up to Mixed_7a, torchvision's names, fp16, MIT; trained on ImageNet"),
    "frechet_inception_mixed_6e": WeightFile(
        "inception_v3_to_mixed7a_fp16.pth", "", "9c72758c", 21,
        "Keras applications' InceptionV3 up to Mixed_7a, torchvision's names, fp16, MIT; trained on ImageNet"),
    "frechet_mobilenet_v2_035": WeightFile(
        "mobilenet_v2_0.35_224_trunk.npz", "", "e9827a4b", 2,
        "Keras applications' MobileNetV2 of width 0.35, MIT; TensorFlow, Apache-2.0; trained on ImageNet"),
    "frechet_squeezenet": WeightFile(
        "squeezenet1_1-b8a52dc0.pth", f"{TORCHVISION}/squeezenet1_1-b8a52dc0.pth", "b8a52dc0", 5,
        "torchvision, BSD-3-Clause; trained on ImageNet"),
}


def needed(attributes: Mapping[str, Any], keywords: Mapping[str, Any]) -> list[str]:
    """Names of the files a component needs, from its literal class attributes and its bound keywords.

    A keyword that says `random` asks for a network without a file, one that is null for none.
    """
    named = [need.format(**keywords) for need in attributes.get("needs", ())]
    return [name for name in named if name not in ("random", "None")]


def find(name: str, places: Places) -> Path | None:
    """Where a file is on this machine: BENCH_WEIGHTS (places.weights) or a folder in it, then the torch hub cache."""
    known = _known(name)
    published = places.cache / "checkpoints"            # what `bench prepare --checkpoint` has fetched
    for folder in (*_folders(places), published):
        within = sorted(folder.glob(f"*/{known.file}")) if folder in (places.weights, published) else []
        for path in (folder / known.file, *within):
            if path.is_file():
                return path
    return None


def identity(name: str, places: Places) -> str:
    """What goes into a value's id: the official prefix, or 12 digits of the sha256 of another file here.

    A file that is not here counts as the official one, so that planning on a laptop gives the cluster's ids; one
    whose hash nobody published is "unknown" where it is not.
    """
    known, path = _known(name), find(name, places)
    if path is None:
        return known.prefix or "unknown"
    digest = sha256(path, places.cache)
    return known.prefix if known.prefix and digest.startswith(known.prefix) else digest[:12]


def missing(names: Iterable[str], places: Places) -> list[str]:
    """Those of the names whose file is not on this machine, each once, in order."""
    return [name for name in dict.fromkeys(names) if find(name, places) is None]


def sentence(names: Iterable[str], places: Places, values: Iterable[str] = ()) -> str:
    """One sentence on missing files: what is missing, where it was looked for, and what to do.

    values: the measured values that need them, as named in the suite's measure.values.
    """
    names, values = list(names), list(values)
    without = f"take {', '.join(values)} out of" if values else "take what needs it out of"
    them = "it" if len(names) == 1 else "them"
    return (f"{_lacking(names, places)}, or measure without {them} "
            f"({without} measure.values, in the suite or as measure.values=[...] on the command line)")


def trained_without(names: Iterable[str], places: Places) -> str:
    """One sentence on missing files that a loss or a discriminator trains with."""
    return f"{_lacking(list(names), places)}, or train with losses and discriminators that need none"


def _lacking(names: list[str], places: Places) -> str:
    files = " and ".join(f"{_known(name).file} ({name}, {_known(name).megabytes} MB)" for name in names)
    looked = " or ".join(str(folder) for folder in _folders(places))
    what, them = ("network", "it") if len(names) == 1 else ("networks", "them")
    online = ", or run `bench prepare` while online" if all(_known(name).url for name in names) else ""
    return (f"the pretrained {what} {files} cannot be found in {looked}: put {them} there, or point BENCH_WEIGHTS at a "
            f"folder that holds {them}{online}")


def download(name: str, places: Places, progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a file into places.weights, else into the torch hub cache; found files are kept. Checks the hash.

    progress(bytes, of bytes) is called as it goes. Raises BadInput where the file cannot be had, is not the
    official one, or cannot be written.
    """
    if (path := find(name, places)) is not None:
        return path
    known = _known(name)
    if not known.url:
        raise BadInput(f"{known.file} ({name}) is published nowhere that we can fetch it from: put it into "
                       f"{_folders(places)[0]} yourself, or point BENCH_WEIGHTS at a folder that holds it")
    target = _folders(places)[0] / known.file
    try:
        fetch(known.url, target, sha256=known.prefix, progress=progress)
    except BadInput as error:
        raise BadInput(f"{error}, or into the folder BENCH_WEIGHTS") from error
    return target


def sha256(path: Path, cache: Path) -> str:
    """Hex digest of a file, kept in `cache` by path, size and time of change: 0.5 GB are read once."""
    stat = path.stat()
    key = hashlib.sha256(f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache / "sha256" / key
    try:
        if len(text := kept.read_text().strip()) == 64:
            return text
    except (OSError, UnicodeDecodeError):
        pass
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    aside = kept.parent / f".{key}.{secrets.token_hex(4)}"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(digest)
        os.replace(aside, kept)
    except OSError as error:                    # a cache: without it the file is read again
        log.debug("sha256 of %s is not kept: %s", path, error)
    return digest


def _known(name: str) -> WeightFile:
    if name not in FILES:
        raise BadInput(f"there is no pretrained network {name!r}{did_you_mean(name, FILES)}")
    return FILES[name]


def _folders(places: Places) -> list[Path]:
    """Where files may be, in order; the first is where a download goes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub" / "checkpoints"
    return [hub] if places.weights is None else [places.weights, hub]
