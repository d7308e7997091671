"""Pretrained networks of metrics and losses: from files on this machine, frozen, one copy per process.

Nothing is downloaded here. A missing file raises BadInput with the sentence of bench/weights.py.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench import weights
from bench.catalogue import Found
from bench.errors import BadInput
from bench.load import open_checkpoint
from bench.networks import FoldedInception, MobileNetV2
from bench.places import Places

AGAIN = "remove it and run `bench prepare`"
#: smallest side that leaves every trunk of LPIPS one pixel at its last layer
LPIPS_SMALLEST = {"alex": 31, "squeeze": 17, "vgg": 16}


class Frozen(nn.Module):
    """Holds a network that is used and never trained.

    It follows `.to()`, stays in eval, and has neither parameters nor entries in a state dict.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "network", network.eval().requires_grad_(False))   # not a submodule

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.network._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.network(*inputs, **keywords)


def lpips_network(net: str, places: Places | None = None) -> nn.Module:
    """lpips.LPIPS v0.1 (arXiv:1801.03924): two float [B, 3, H, W] in [-1, 1] -> [B, 1, 1, 1].

    net: the trunk, "alex", "vgg" or "squeeze". Its weights are torchvision's file, the linear heads the lpips
    package's. Frozen, channels-last, the same object at every call; `places` defaults to Places.find().
    Raises BadInput where the file is missing or damaged.
    """
    return _lpips(net, _file(f"lpips_{net}", places))


def inception(places: Places | None = None) -> nn.Module:
    """FID's InceptionV3 of 2015-12-05: float [B, 3, 299, 299] in [-1, 1] -> (pooled [B, 2048], spatial [B, 2023],
    logits without bias [B, 1008]); see bench/networks.py.

    torch-fidelity's network with its batch norms folded into the convolutions. bench/features.py resizes for it.
    Frozen, channels-last, the same object at every call; `places` defaults to Places.find(). Raises BadInput where
    the file is missing or damaged.
    """
    return _inception(_file("inception", places))


def trunk(name: str, places: Places | None = None) -> nn.Module:
    """A network that is *not* FID's: float [B, 3, S, S] -> features [B, D] float32, means over positions.

    name: "inception_mixed_7a" (D = 1280) and "inception_mixed_6e" (768): ImageNet's InceptionV3 of Keras up to that
    layer, 299 pixels in [-1, 1]. "mobilenet_v2_035" (1280): MobileNetV2 of width 0.35, 224 pixels in [-1, 1].
    "squeezenet" (512): torchvision's SqueezeNet 1.1 features, 224 pixels, normalised by ImageNet's mean and
    deviation. Frozen, channels-last, the same object at every call. Raises BadInput where the file is missing or
    damaged.
    """
    return _trunk(name, _file(f"frechet_{name}", places))


def classifier(name: str, places: Places | None = None) -> nn.Module:
    """ImageNet's logits: float [B, 3, 224, 224], normalised by ImageNet's mean and deviation -> [B, 1000].

    name: "resnet50" or "convnext_small", torchvision's of 2016 and 2022 (IMAGENET1K_V1); "random" is a residual network
    of four blocks with random weights, always the same ones. Frozen, channels-last, the same object at every call.
    Raises BadInput where the file is missing or damaged.
    """
    return _classifier(name, None if name == "random" else _file(name, places))


def tokenizer(name: str, format: str, places: Places | None = None) -> nn.Module:
    """A published tokenizer of 256 pixels, read as that format: images [B, 3, H, W] in [-1, 1] -> TokenizerOutput.

    Frozen, the same object at every call. Raises BadInput where the file is missing or is no such tokenizer.
    """
    places = places or Places.find()
    return _tokenizer(_file(name, places), format, places)


def tensors(name: str, places: Places | None = None) -> dict[str, Tensor]:
    """The state dict in a file of bench/weights.py. Raises BadInput where the file is missing or damaged."""
    return _state(_file(name, places))


def _file(name: str, places: Places | None) -> Path:
    places = places or Places.find()
    path = weights.find(name, places)
    if path is None:
        raise BadInput(weights.sentence([name], places))
    return path


def _state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file. Raises BadInput where it is none."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                  # torch.load raises a dozen kinds for a file that is cut short
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path}: no readable weight file ({reason}); {AGAIN}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{path}: no state dict of tensors; {AGAIN}")
    return state


@functools.cache
@torch.inference_mode(False)                    # its weights must serve a loss too
def _lpips(net: str, path: Path) -> nn.Module:
    import lpips

    state = _state(path)
    # On the meta device nothing is initialised: no time for VGG's 138 M weights, no random numbers drawn.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", module="torchvision")     # the package uses an old keyword
        network = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()                    # constants, real ones
    # Layers in a slice keep their names in torchvision's `features`: slice2.3.weight is features.3.weight.
    trunk = {key: "features." + key.partition(".")[2] for key in network.net.state_dict()}
    given = {key for key in state if key.startswith("features.")}
    if given != set(trunk.values()):
        odd = sorted(given ^ set(trunk.values()))
        raise BadInput(f"{path}: not the trunk of LPIPS {net}: {odd[0]} and {len(odd) - 1} other tensors are "
                       f"missing or not expected; {AGAIN}")
    heads = _state(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth")
    heads |= {re.sub(r"^lin(\d)", r"lins.\1", key): value for key, value in heads.items()}    # has both
    whole = {f"net.{key}": state[name] for key, name in trunk.items()} | heads
    whole |= {f"scaling_layer.{key}": value for key, value in network.scaling_layer.state_dict().items()}
    try:
        network.load_state_dict(whole, strict=True, assign=True)
    except RuntimeError as error:
        raise _not_this_network(path, error) from error
    return _frozen(network)


@functools.cache
@torch.inference_mode(False)
def _classifier(name: str, path: Path | None) -> nn.Module:
    from torchvision import models

    if path is None:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            return _frozen(models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]))
    with torch.device("meta"):
        network = {"resnet50": models.resnet50, "convnext_small": models.convnext_small}[name](weights=None)
    try:
        network.load_state_dict(_state(path), strict=True, assign=True)
    except RuntimeError as error:
        raise _not_this_network(path, error) from error
    return _frozen(network)


@functools.cache
@torch.inference_mode(False)
def _tokenizer(path: Path, format: str, places: Places) -> nn.Module:
    with torch.device("cpu"):
        return _frozen(open_checkpoint(Found(path.stem, path), places, format=format).tokenizer)


@functools.cache
@torch.inference_mode(False)
def _inception(path: Path) -> nn.Module:
    try:
        return _frozen(FoldedInception(_fidelity_network(_state(path), "fc")))
    except RuntimeError as error:
        raise _not_this_network(path, error) from error


def _fidelity_network(state: dict[str, Tensor], last: str) -> nn.Module:
    """torch-fidelity's network with these weights, complete up to the layer `last`.

    Raises RuntimeError where they do not fit. Its constructor unpickles with weights_only=False, so it gets an empty
    file, and here the tensors that were read safely. Built on the meta device nothing is initialised: no time for
    24 M random numbers, and none drawn.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Filled(FeatureExtractorInceptionV3):
        def load_state_dict(self, nothing: dict[str, Tensor]) -> None:      # called by the constructor
            found = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
            missing, unexpected = super().load_state_dict(found, strict=False, assign=True)
            names = [name for name, _ in self.named_children()]
            used = names[: names.index(last) + 1]
            lacking = [key for key in missing if key.partition(".")[0] in used and "num_batches" not in key]
            if lacking or unexpected:
                raise RuntimeError(f"missing {lacking[:3]}, not expected {unexpected[:3]}")

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        return Filled("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)


@functools.cache
@torch.inference_mode(False)
def _trunk(name: str, path: Path) -> nn.Module:
    try:
        match name:
            case "inception_mixed_6e" | "inception_mixed_7a":
                last = name.removeprefix("inception_").capitalize()             # Mixed_7a
                # Keras's weights fit torch-fidelity's layers, whose average pools are Keras's; torchvision's are not
                network: nn.Module = Pooled(FoldedInception(_fidelity_network(_state(path), last), last))
            case "mobilenet_v2_035":
                network = MobileNetV2(_arrays(path))
            case "squeezenet":
                import torchvision

                with torch.device("meta"):
                    features = torchvision.models.squeezenet1_1(weights=None).features
                state = {key.removeprefix("features."): value for key, value in _state(path).items()
                         if key.startswith("features.")}
                features.load_state_dict(state, strict=True, assign=True)
                network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            case _:
                raise BadInput(f"there is no network {name!r} for a Fréchet distance")
    except (RuntimeError, KeyError) as error:
        raise _not_this_network(path, error) from error
    return _frozen(network)


class Pooled(nn.Module):
    """The pooled features of a FoldedInception alone."""

    def __init__(self, network: FoldedInception) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)[0]


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file. Raises BadInput where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except Exception as error:                  # numpy and zipfile raise half a dozen kinds
        raise BadInput(f"{path}: no readable npz file ({error}); {AGAIN}") from error


def _frozen(network: nn.Module) -> nn.Module:
    return network.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _not_this_network(path: Path, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())
    return BadInput(f"{path}: its tensors do not fit the network ({reason[:200]}); {AGAIN}")
