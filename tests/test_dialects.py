"""Each dialect protocol against the library that its repository calls, fed as that repository feeds it."""

from __future__ import annotations

import functools
import io
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from bench.interfaces import Metric
from bench.metrics.psnr import PSNR
from bench.metrics.ssim import SSIM, _luma
from bench.prepare import Prepared
from bench.protocol import load_protocol
from bench.registry import resolve
from bench.types import TokenizerOutput, TokenLayout
from bench.weights import FILES

lpips = pytest.importorskip("lpips")

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
Pair = tuple[Tensor, Tensor]
BUILD = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16,
         "squeeze": torchvision.models.squeezenet1_1}


# -- materials ---------------------------------------------------------------------------------------------------


def real_images(name: str, count: int, crop: int, size: int) -> Tensor:
    """uint8 [count, 3, size, size] of a shared set: centre crop (0: the largest square), resized."""
    path = Path(os.environ.get("BENCH_SHARED") or ROOT.parent / "shared") / "data" / name / "test-00.tar"
    if not path.is_file():
        pytest.skip("the shared folder of real images is not here (BENCH_SHARED or ../shared)")
    found = []
    with tarfile.open(path) as tar:
        while len(found) < count:
            member = tar.next()
            if not member.isfile():
                continue
            picture = Image.open(tar.extractfile(member)).convert("RGB")
            side = crop or min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            picture = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
            found.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(found)


def reconstructed(images: Tensor, quality: int) -> Tensor:
    """As a tokenizer's output: float32 in about [-1, 1], not clamped; JPEG, and values between the 256 levels."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return torch.stack(found).float() / 127.5 - 1 + 0.02 * noise


@pytest.fixture(scope="module", params=["synthetic", "celeba", "imagenet"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """(originals uint8 [B, 3, H, W], a tokenizer's output of them)."""
    if request.param == "celeba":
        images = real_images("celeba", 16, 140, 64)
        return images, torch.cat([reconstructed(images[:8], 10), reconstructed(images[8:], 80)])
    if request.param == "imagenet":
        images = real_images("imagenet-sample", 3, 0, 256)
        return images, reconstructed(images, 20)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(6, 3, 6, 6, generator=generator)
    images = nn.functional.interpolate(coarse, size=(57, 70), mode="bicubic").mul(255).clamp(0, 255).to(torch.uint8)
    images[4] = 255                             # flat and saturated, where variances vanish in rounding
    images[5, :, :, 30:] = 250
    return images, reconstructed(images, 50)


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENCH_WEIGHTS folder with seeded random trunks: a definition does not depend on the weights."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for net in ("alex", "vgg"):
            with torch.device("meta"):
                features = BUILD[net](weights=None).features
            features = features.to_empty(device="cpu")
            for parameter in features.parameters():
                nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
            state = {f"features.{key}": value for key, value in features.state_dict().items()}
            torch.save(state, folder / FILES[f"lpips_{net}"].file)
    return folder


@pytest.fixture
def weights(trunks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_WEIGHTS", str(trunks))
    return trunks


@pytest.fixture(scope="module")
def pyiqa() -> SimpleNamespace:
    """The library is slow to import: once, and only where it is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pyiqa")


def ours(protocol: str, value: str, pair: Pair) -> np.ndarray:
    """Per image, prepared and measured as the protocol's file says."""
    said = load_protocol(protocol)
    spec = said.metric(value)
    images, others = Prepared(*pair)(said.prepared(value))
    return measured(resolve("metric", spec.name)(**spec.kwargs), images, others)


@torch.inference_mode()
def measured(metric: Metric, images: Tensor, others: Tensor) -> np.ndarray:
    nothing = torch.empty(0)
    metric.begin(TokenLayout(4, (8,)), len(images), CPU)
    return metric.update(images, TokenizerOutput(others, nothing, nothing, None), torch.arange(len(images))).numpy()


def each(function: Callable[..., float], one: Tensor | np.ndarray, other: Tensor | np.ndarray, **keywords) -> np.ndarray:
    """A function of two channels-last arrays, image by image."""
    return np.array([function(np.asarray(a), np.asarray(b), **keywords) for a, b in zip(one, other, strict=True)])


def unit(images: Tensor) -> Tensor:
    """uint8 -> [0, 1] by way of [-1, 1], as every one of these repositories does."""
    return ((images.float() / 255 - 0.5) / 0.5 + 1) / 2


def channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


def double_window() -> Tensor:
    """The gaussian window of 11 pixels, sigma 1.5, from its formula and in float64: [3, 1, 11]."""
    weights = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    return torch.from_numpy(weights / weights.sum()).repeat(3, 1, 1)


# -- xyfJASON, 2024: piqa ----------------------------------------------------------------------------------------


def test_xyfjason_2024_psnr_and_ssim_are_piqas(pair: Pair) -> None:
    piqa = pytest.importorskip("piqa")
    x, y = unit(pair[0]).clamp(0, 1), ((pair[1].clamp(-1, 1) + 1) / 2).clamp(0, 1)
    # float32, and an image of 80 dB is held there by epsilon: 1e-5 dB is what a mean in float32 leaves
    np.testing.assert_allclose(ours("xyfjason-2024", "psnr", pair), piqa.PSNR(reduction="none")(y, x), atol=1e-5)
    found = ours("xyfjason-2024", "ssim", pair)
    # In [0, 1] and float32, E[x^2] - E[x]^2 errs by 1e-7 beside a C2 of 9e-4: piqa is off by 1e-4 where it is flat and bright.
    np.testing.assert_allclose(found, piqa.SSIM(reduction="none")(y, x), atol=1e-4)
    exact = piqa.ssim.ssim(y.double(), x.double(), kernel=double_window())[0]
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_xyfjason_2024_lpips_is_piqas(pair: Pair, weights: Path) -> None:
    piqa = pytest.importorskip("piqa")
    trunk = random_trunk("alex", weights)
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    flat = [heads[f"lin{level}.model.1.weight"].flatten() for level in range(5)]
    with mock.patch("torchvision.models.alexnet", lambda **_: trunk), mock.patch("piqa.lpips.get_weights", lambda **_: flat):
        library = piqa.LPIPS(network="alex", reduction="none")
    x, y = unit(pair[0]).clamp(0, 1), ((pair[1].clamp(-1, 1) + 1) / 2).clamp(0, 1)
    with torch.inference_mode():
        np.testing.assert_allclose(ours("xyfjason-2024", "lpips", pair), library(y, x), rtol=1e-4, atol=1e-6)


# -- xyfJASON, 2025: scikit-image on floats -----------------------------------------------------------------------


def test_xyfjason_2025_psnr_and_ssim_are_scikit_images_defaults(pair: Pair) -> None:
    x, y = channels_last(unit(pair[0])), channels_last((pair[1].clamp(-1, 1) + 1) / 2)
    # data_range is not given there: scikit-image takes 1 for floats without a negative one
    np.testing.assert_allclose(ours("xyfjason-2025", "psnr", pair), each(peak_signal_noise_ratio, y, x), atol=1e-5)
    found = ours("xyfjason-2025", "ssim", pair)
    # scikit-image stays in float32 when given it; the same images in float64 agree
    np.testing.assert_allclose(found, each(structural_similarity, y, x, data_range=1.0, channel_axis=-1), atol=1e-4)
    exact = each(structural_similarity, y.double(), x.double(), data_range=1.0, channel_axis=-1)
    np.testing.assert_allclose(found, exact, atol=1e-6)


# -- LlamaGen, SEED-Voken: scikit-image on 8 bits ------------------------------------------------------------------


def test_llamagen_psnr_and_ssim_with_twice_the_data_range(pair: Pair) -> None:
    restored = torch.clamp(127.5 * pair[1] + 128.0, 0, 255).to(torch.uint8)
    y = channels_last(restored).numpy().astype(np.float32) / 255
    x = (channels_last((pair[0].float() / 255 - 0.5) / 0.5).numpy() + 1.0) / 2.0
    np.testing.assert_allclose(ours("llamagen", "psnr", pair), each(peak_signal_noise_ratio, y, x), atol=1e-5)
    found = ours("llamagen", "ssim", pair)
    as_called = {"data_range": 2.0, "channel_axis": -1}
    np.testing.assert_allclose(found, each(structural_similarity, y, x, **as_called), atol=3e-5)        # in float32
    exact = each(structural_similarity, channels_last(restored).double() / 255, channels_last(pair[0]).double() / 255,
                 **as_called)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    right = each(structural_similarity, y, x, data_range=1.0, channel_axis=-1)
    assert found.mean() > right.mean() + 0.005          # that is what the doubling does


def test_llamagen_at_another_size_scores_the_resized_original_unrounded(pair: Pair) -> None:
    images, reconstruction = nn.functional.interpolate(pair[0], size=(96, 96)), nn.functional.interpolate(pair[1], size=(96, 96))
    said = load_protocol("llamagen-256")
    x, y = Prepared(images, reconstruction)({**said.prepared("psnr"), "resize": 64})
    resized = [nn.functional.interpolate(t, size=(64, 64), mode="bicubic") for t in (images.float() / 127.5 - 1, reconstruction)]
    x_there = (channels_last(resized[0]).numpy() + 1.0) / 2.0
    restored = channels_last(torch.clamp(127.5 * resized[1] + 128.0, 0, 255).to(torch.uint8))
    y_there = restored.numpy().astype(np.float32) / 255
    for value, function, keywords, limit in (
        ("psnr", peak_signal_noise_ratio, {}, 1e-5),
        ("ssim", structural_similarity, {"data_range": 2.0, "channel_axis": -1}, 3e-5),
    ):
        spec = said.metric(value)
        found = measured(resolve("metric", spec.name)(**spec.kwargs), x, y)
        np.testing.assert_allclose(found, each(function, y_there, x_there, **keywords), atol=limit)


def test_seed_voken_psnr_and_ssim_of_truncated_images(pair: Pair) -> None:
    original = torch.from_numpy((pair[0].numpy() / 127.5 - 1.0).astype(np.float32))
    x, y = ((channels_last(t.clamp(-1, 1) + 1) / 2 * 255.0).to(torch.uint8) for t in (original, pair[1]))
    assert not torch.equal(x, channels_last(pair[0]))   # truncation takes 1 from some originals
    one, other = y.numpy().astype(np.float32) / 255.0, x.numpy().astype(np.float32) / 255.0
    np.testing.assert_allclose(ours("seed-voken", "psnr", pair), each(peak_signal_noise_ratio, other, one), atol=1e-5)
    found = ours("seed-voken", "ssim", pair)
    np.testing.assert_allclose(found, each(structural_similarity, one, other, data_range=1.0, channel_axis=-1), atol=1e-4)
    exact = each(structural_similarity, y.double() / 255, x.double() / 255, data_range=1.0, channel_axis=-1)
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize(("protocol", "value", "net"), [
    ("xyfjason-2025", "lpips", "alex"), ("seed-voken", "lpips", "alex"), ("seed-voken", "lpips_vgg", "vgg"),
])
@torch.inference_mode()
def test_lpips_is_that_of_the_package_on_floats(protocol: str, value: str, net: str, pair: Pair, weights: Path) -> None:
    if net == "vgg":                            # it takes seconds, and shows nothing more on many or large images
        pair = pair[0][:2, :, :64, :64], pair[1][:2, :, :64, :64]
    package = lpips_package(net)
    take_trunk(package.net, weights, net)
    wanted = package(pair[0].float() / 127.5 - 1, pair[1].clamp(-1, 1)).flatten()
    np.testing.assert_allclose(ours(protocol, value, pair), wanted, rtol=1e-4, atol=1e-6)


# -- OptVQ: pyiqa --------------------------------------------------------------------------------------------------


def test_optvq_psnr_and_ssim_are_pyiqas(pair: Pair, pyiqa: SimpleNamespace) -> None:
    x, y = unit(pair[0]), ((pair[1] + 1) / 2).clamp(0, 1)
    luma = pyiqa.create_metric("psnr", test_y_channel=True, data_range=1.0, color_space="ycbcr", device="cpu")
    # luma near 0.5 in float32 has steps of 6e-8 beside errors of 0.01: 1e-4 dB where the error is smallest
    np.testing.assert_allclose(ours("optvq", "psnr", pair), luma(x, y).flatten(), atol=1e-4)
    # Luma is rounded to whole numbers: of the pixels that lie half-way in exact arithmetic (1 in 1000) a few fall on the
    # other side in float32, by way of [-1, 1] or not. That is worth up to 1e-5 of an image, and nothing else is.
    found = ours("optvq", "ssim", pair)
    np.testing.assert_allclose(found, pyiqa.create_metric("ssim", device="cpu")(x, y).flatten(), atol=2e-5)
    images, others = Prepared(*pair)({"round": "none"})
    one, other = _luma(images), _luma(others)
    there = pyiqa.archs.ssim_arch.to_y_channel(x, 255.0, "yiq")
    assert (one - there).abs().max() <= 1 and (one != there).double().mean() < 1e-3
    exact = pyiqa.archs.ssim_arch.ssim(one.double(), other.double(), data_range=255)
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_optvq_psnr_gains_at_least_the_studio_range(pair: Pair) -> None:
    """Luma in studio range spans 219 of 255 levels: of grey errors 20 log10(255 / 219) = 1.32 dB, and nothing else."""
    grey = pair[0][:, :1].expand(-1, 3, -1, -1).contiguous()
    other = (grey.int() + torch.randint(-9, 10, grey[:, :1].shape)).clamp(0, 255).to(torch.uint8)
    gain = measured(PSNR(channel="y"), grey, other) - measured(PSNR(), grey, other)
    np.testing.assert_allclose(gain, 20 * np.log10(255 / 219), atol=1e-4)


def test_optvq_lpips_is_pyiqas(pair: Pair, weights: Path, pyiqa: SimpleNamespace) -> None:
    heads = Path(lpips.__file__).parent / "weights/v0.1/alex.pth"
    trunk = random_trunk("alex", weights)
    with mock.patch("torchvision.models.alexnet", lambda **_: trunk):
        library = pyiqa.create_metric("lpips", color_space="ycbcr", device="cpu", pretrained_model_path=str(heads))
    x, y = unit(pair[0]), ((pair[1] + 1) / 2).clamp(0, 1)
    with torch.inference_mode():
        np.testing.assert_allclose(ours("optvq", "lpips", pair), library(x, y).flatten(), rtol=1e-4, atol=1e-6)


# -- other libraries that papers use -------------------------------------------------------------------------------


def test_ssim_is_pytorch_msssims(pair: Pair) -> None:
    library = pytest.importorskip("pytorch_msssim")
    x, y = Prepared(*pair)({"round": "8bit"})
    wanted = library.ssim(x.double(), y.double(), data_range=255, size_average=False, win=double_window()[:, None])
    np.testing.assert_allclose(measured(SSIM(), x, y), wanted, atol=1e-6)


def test_ssim_of_torchmetrics_counts_windows_outside_the_image(pair: Pair) -> None:
    """So no setting of ours equals it; the mean over the windows inside does."""
    library = pytest.importorskip("torchmetrics.functional.image")
    pair = pair[0][:3, :, :64, :64], pair[1][:3, :, :64, :64]
    x, y = Prepared(*pair)({"round": "8bit"})
    mean, full = library.structural_similarity_index_measure(
        y.double(), x.double(), data_range=255.0, reduction="none", return_full_image=True)
    found = measured(SSIM(), x, y)
    np.testing.assert_allclose(found, full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-6)
    assert np.abs(found - mean.numpy()).max() > 1e-4


@functools.cache
def lpips_package(net: str) -> nn.Module:
    """Its heads, and a trunk to be replaced."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()


def random_trunk(net: str, folder: Path) -> nn.Module:
    """torchvision's network with the random features of `trunks`."""
    with torch.device("meta"):
        network = BUILD[net](weights=None)
    state = torch.load(folder / FILES[f"lpips_{net}"].file, weights_only=True)
    network.features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
    return network


def take_trunk(trunk: nn.Module, folder: Path, net: str) -> None:
    """Features of `trunks` into the slices of the lpips package: slice2.3.weight is features.3.weight."""
    state = torch.load(folder / FILES[f"lpips_{net}"].file, weights_only=True)
    trunk.load_state_dict({key: state["features." + key.partition(".")[2]] for key in trunk.state_dict()})
