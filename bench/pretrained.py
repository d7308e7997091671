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

import torch
from torch import Tensor, nn

from bench import weights
from bench.errors import BadInput
from bench.places import Places

AGAIN = "remove it and run `bench prepare`"


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
    """torch-fidelity's InceptionV3 of 2015-12-05, FID's network: uint8 [B, 3, H, W] -> ([B, 2048],) float32.

    It resizes to 299 pixels as TensorFlow 1 did. Frozen, channels-last, the same object at every call;
    `places` defaults to Places.find(). Raises BadInput where the file is missing or damaged.
    """
    return _inception(_file("inception", places))


def _file(name: str, places: Places | None) -> Path:
    places = places or Places.find()
    path = weights.find(name, places)
    if path is None:
        raise BadInput(weights.sentence([name], places))
    return path


def _state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file. Raises BadInput where it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
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
    return network.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)


@functools.cache
@torch.inference_mode(False)
def _inception(path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The constructor unpickles with weights_only=False. So it never gets the file, but the tensors that were
    # read from it safely, written again by us.
    checked = io.BytesIO()
    torch.save(_state(path), checked)
    checked.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):                     # the layers draw initial weights first
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=checked)
    except RuntimeError as error:
        raise _not_this_network(path, error) from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _not_this_network(path: Path, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())
    return BadInput(f"{path}: its tensors do not fit the network ({reason[:200]}); {AGAIN}")
