"""Metrics against references: scikit-image, the lpips and torch-fidelity packages, a queue, formulas."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import typing
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from unittest import mock

import lpips
import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_ssim
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from bench.errors import BadInput, Incompatible
from bench.metrics.l1 import L1
from bench.metrics.lpips import LPIPS
from bench.metrics.ms_ssim import MSSSIM
from bench.metrics.mse import MSE
from bench.metrics.perplexity import Perplexity
from bench.metrics.psnr import PSNR
from bench.metrics.rfid import RFID, frechet_distance
from bench.metrics.ssim import SSIM
from bench.metrics.usage import Usage
from bench.pretrained import LPIPS_SMALLEST, Frozen, inception, lpips_network
from bench.registry import REQUIRED, available, resolve, signature
from bench.similarity import Window, structural_similarity
from bench.threads import in_shares
from bench.types import TokenizerOutput, TokenLayout
from bench.weights import FILES, needed

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
LAYOUT = TokenLayout(4, (8, 8), ((2, 2),))
TRUNKS = {"alex": torchvision.models.alexnet, "squeeze": torchvision.models.squeezenet1_1,
          "vgg": torchvision.models.vgg16}
LAYERS = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12), "vgg": (3, 8, 15, 22, 29)}


# -- materials -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, where it is."""
    folder = Path(os.environ.get("BENCH_SHARED") or ROOT.parent / "shared")
    if not (folder / "data" / "unpack.py").is_file():
        pytest.skip("the shared folder of real images and weights is not here (BENCH_SHARED or ../shared)")
    return folder / "data"


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENCH_WEIGHTS folder with seeded random files for every network."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for net, build in TRUNKS.items():
            if net == "squeeze":                # complete, so that the lpips package itself can load it
                state = build(weights=None).state_dict()
            else:
                with torch.device("meta"):
                    features = build(weights=None).features
                features = features.to_empty(device="cpu")
                for parameter in features.parameters():
                    torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
                state = {f"features.{key}": value for key, value in features.state_dict().items()}
            torch.save(state, folder / FILES[f"lpips_{net}"].file)
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
            network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=nothing)
        for parameter in network.parameters():
            if parameter.dim() == 4:
                torch.nn.init.kaiming_normal_(parameter)
        torch.save(network.state_dict(), folder / FILES["inception"].file)
    return folder


@pytest.fixture
def weights(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_WEIGHTS", str(random_weights))
    return random_weights


def smooth(count: int, size: int, seed: int) -> Tensor:
    """uint8 [count, 3, size, size]: blurred noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, amount: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-amount, amount + 1, images.shape, generator=generator)
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


def random_images(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def output(reconstruction: Tensor, codes: Tensor | None = None) -> TokenizerOutput:
    nothing = torch.empty(0)
    return TokenizerOutput(reconstruction, nothing, nothing, codes)


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    flat = torch.tensor([0, 3, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 40, 40)
    return {
        "random": (random_images(6, 64, 0), random_images(6, 64, 1)),
        "smooth": (smooth(6, 64, 0), noisy(smooth(6, 64, 0), 12, 1)),
        "identical": (smooth(2, 48, 3), smooth(2, 48, 3)),
        "flat": (flat, flat.flip(0)),
        "odd": (smooth(3, 101, 4)[..., :67], noisy(smooth(3, 101, 4)[..., :67], 40, 5)),
        "large": (smooth(2, 256, 6), noisy(smooth(2, 256, 6), 4, 7)),
        "one window": (random_images(3, 11, 8), random_images(3, 11, 9)),
    }


def real_pairs(shared: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Kodak crops and their JPEG versions."""
    import tarfile

    originals, others = [], []
    with tarfile.open(shared / "kodak" / "test-00.tar") as tar:
        for member in [m for m in tar if m.isfile()][:6]:
            picture = Image.open(tar.extractfile(member)).convert("RGB").crop((100, 100, 356, 356))
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=20)
            for kept, image in ((originals, picture), (others, Image.open(file))):
                kept.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
    return {"kodak": (torch.stack(originals), torch.stack(others))}


def per_image(metric, images: Tensor, others: Tensor) -> np.ndarray:
    metric.begin(LAYOUT, len(images), CPU)
    values = metric.update(images, output(others), torch.arange(len(images)))
    assert values.dtype == torch.float64 and values.shape == (len(images),)
    assert metric.compute(metric.sums()) == pytest.approx(values.mean().item(), abs=1e-12)
    return values.numpy()


# -- PSNR and SSIM -------------------------------------------------------------------------------------------


def compare_psnr(images: Tensor, others: Tensor) -> None:
    found = per_image(PSNR(), images, others)
    with np.errstate(divide="ignore"):
        wanted = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255)
                  for a, b in zip(images, others, strict=True)]
    np.testing.assert_allclose(found, np.minimum(wanted, 100), atol=1e-9)


def compare_ssim(images: Tensor, others: Tensor) -> None:
    reference = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    default = SSIM(window="uniform", size=7, sample_covariance=True)
    for metric, keywords in ((SSIM(), reference), (default, {})):
        found = per_image(metric, images, others)
        wanted = [skimage_ssim(a.numpy(), b.numpy(), channel_axis=0, data_range=255, **keywords)
                  for a, b in zip(images, others, strict=True)]
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("case", pairs())
def test_psnr_equals_scikit_image_per_image(case: str) -> None:
    compare_psnr(*pairs()[case])


@pytest.mark.parametrize("case", pairs())
def test_ssim_equals_scikit_image_per_image(case: str) -> None:
    compare_ssim(*pairs()[case])


def test_psnr_and_ssim_equal_scikit_image_on_real_images(shared: Path) -> None:
    for images, others in real_pairs(shared).values():
        compare_psnr(images, others)
        compare_ssim(images, others)


def test_identical_images_count_100_db_and_ssim_one() -> None:
    images = smooth(3, 32, 0)
    assert per_image(PSNR(), images, images).tolist() == [100.0] * 3
    np.testing.assert_allclose(per_image(SSIM(), images, images), 1, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("window", [Window.gaussian(11, 1.5), Window.uniform(7)])
@torch.inference_mode()
def test_similarity_is_float64s_whatever_the_images_and_threads(window: Window, threads: int, monkeypatch) -> None:
    """Also where float32 would be off: flat planes far apart, noise on white, halves that swap."""
    white = 250 - noisy(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), 9, 2)
    halves = torch.full((1, 3, 40, 40), 100, dtype=torch.uint8)
    halves[..., 20:] = 200
    images = torch.cat([smooth(20, 40, 0), white, halves, torch.full_like(white, 20), white])
    others = torch.cat([noisy(smooth(20, 40, 0), 20, 1), white - 9, halves.flip(3), torch.full_like(white, 180), white])
    monkeypatch.setattr("bench.threads.LEAST", 1 << 14)                 # so that there are shares to join
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, contrast = in_shares(
            lambda x, y: torch.stack(structural_similarity(x.flatten(0, 1), y.flatten(0, 1), window, data_range=255.0)),
            images, others)
        assert torch.get_num_threads() == threads       # and in threads to come:
        assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    one, other = images.flatten(0, 1).double(), others.flatten(0, 1).double()
    kernel = torch.tensor(window.weights, dtype=torch.float64) / sum(window.weights)
    kernel = torch.outer(kernel, kernel)[None, None]

    def mean(maps: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(maps[:, None], kernel)[:, 0]

    a, b = mean(one), mean(other)
    c = (2 * (mean(one * other) - a * b) + 58.5225) / (mean(one**2) - a**2 + mean(other**2) - b**2 + 58.5225)
    wanted = (2 * a * b + 6.5025) / (a**2 + b**2 + 6.5025) * c
    np.testing.assert_allclose(found, wanted.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(contrast, c.mean((1, 2)), atol=1e-6)


def test_ssim_refuses_what_has_no_meaning() -> None:
    with pytest.raises(Incompatible, match="window of 11 does not fit into images of 8x8"):
        per_image(SSIM(), random_images(1, 8, 0), random_images(1, 8, 1))
    with pytest.raises(Incompatible, match="odd"):
        SSIM(size=10)


# -- MS-SSIM, L1, MSE ----------------------------------------------------------------------------------------


def ms_ssim_pair(size: int) -> tuple[Tensor, Tensor]:
    images = smooth(4, size, 11)
    images[2:] = random_images(2, size, 12)
    others = noisy(images, 35, 13)
    others[3] = 255 - others[3]                     # contrast-structure below 0
    return images, others


@pytest.mark.parametrize("size", [176, 256])
def test_ms_ssim_equals_piqa_pytorch_msssim_and_torchmetrics(size: int) -> None:
    piqa, msssim = pytest.importorskip("piqa"), pytest.importorskip("pytorch_msssim")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    images, others = ms_ssim_pair(size)
    found = per_image(MSSSIM(), images, others)
    assert found[0] > 0.5 and found[3] == 0         # a negative factor counts 0
    x, y = images.double(), others.double()
    kernel = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1)
    exponents = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], dtype=torch.float64)
    np.testing.assert_allclose(found, piqa.ssim.ms_ssim(x, y, kernel, exponents, value_range=255), atol=1e-6)
    wanted = msssim.ms_ssim(x, y, data_range=255, size_average=False, win=kernel[:, None], weights=exponents.tolist())
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    # One channel at a time, because torchmetrics takes the mean over channels before the product; its coarsest
    # factor counts windows that reach outside the image.
    channels = [torchmetrics.multiscale_structural_similarity_index_measure(
        x[:2, c : c + 1], y[:2, c : c + 1], data_range=255.0, reduction="none", normalize="relu") for c in range(3)]
    np.testing.assert_allclose(found[:2], torch.stack(channels).mean(0), atol=1e-4)


@pytest.mark.parametrize("size", [161, 201])
def test_ms_ssim_of_odd_sizes_repeats_the_last_row(size: int) -> None:
    piqa = pytest.importorskip("piqa")
    images, others = ms_ssim_pair(size)
    wanted = piqa.MS_SSIM(reduction="none", value_range=255.0).double()(images.double(), others.double())
    np.testing.assert_allclose(per_image(MSSSIM(), images, others), wanted, atol=1e-5)      # its window is float32


def test_ms_ssim_of_few_scales_and_of_small_images() -> None:
    images, others = smooth(2, 81, 0), noisy(smooth(2, 81, 0), 20, 1)
    one = SSIM()
    np.testing.assert_allclose(per_image(MSSSIM(scales=1), images, others), per_image(one, images, others), atol=1e-7)
    for scales, least in ((5, 161), (4, 81), (3, 41), (2, 21), (1, 11)):
        assert 0 < per_image(MSSSIM(scales=scales), smooth(1, least, 0), noisy(smooth(1, least, 0), 9, 1))[0] < 1
        with pytest.raises(Incompatible, match=f"with {scales} scales needs images of {least} pixels, got {least - 1}x"):
            per_image(MSSSIM(scales=scales), smooth(1, least - 1, 0), smooth(1, least - 1, 1))
    with pytest.raises(Incompatible, match="1 to 5 scales, got 6"):
        MSSSIM(scales=6)


@pytest.mark.parametrize("as_float", [False, True])
def test_errors_in_the_units_they_name(as_float: bool) -> None:
    images, others = smooth(3, 40, 0), noisy(smooth(3, 40, 0), 30, 1)
    if as_float:
        others = others + torch.rand(others.shape, generator=torch.Generator().manual_seed(0))
    difference = (images.double() - others.double()) / 255                      # of images in [0, 1]
    for scale in (1, 2, 255):
        np.testing.assert_allclose(per_image(L1(scale=scale), images, others),
                                   difference.abs().mean((1, 2, 3)) * scale, rtol=1e-6)
        np.testing.assert_allclose(per_image(MSE(scale=scale), images, others),
                                   difference.square().mean((1, 2, 3)) * scale**2, rtol=1e-6)
    assert per_image(L1(), torch.zeros_like(images), torch.full_like(images, 255))[0] == pytest.approx(2)   # [-1, 1]


@pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim", "l1", "mse", "lpips"])
@torch.inference_mode()
def test_metrics_take_bytes_and_floats_and_leave_them_as_they_were(name: str, weights: Path) -> None:
    """Several metrics of one protocol get the same tensors."""
    images, others = smooth(3, 40, 0), noisy(smooth(3, 40, 0), 20, 1)
    make = lambda: resolve("metric", name)(**{"lpips": {"net": "squeeze"}, "ms_ssim": {"scales": 2}}.get(name, {}))  # noqa: E731
    wanted = per_image(make(), images, others)
    for x in (images, images.float(), images.float().contiguous(memory_format=torch.channels_last)):
        for y in (others, others.float(), others.float().contiguous(memory_format=torch.channels_last)):
            x_before, y_before = x.clone(), y.clone()
            np.testing.assert_allclose(per_image(make(), x, y), wanted, rtol=1e-6)
            assert torch.equal(x, x_before) and torch.equal(y, y_before)


# -- LPIPS ---------------------------------------------------------------------------------------------------


def lpips_formula(net: str, state: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """Equation 1 of arXiv:1801.03924 from torchvision's trunk and the published heads; uint8 -> [B]."""
    with torch.device("meta"):
        trunk = TRUNKS[net](weights=None).features
    trunk.load_state_dict({key.removeprefix("features."): value for key, value in state.items()
                           if key.startswith("features.")}, assign=True)
    heads = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu",
                       weights_only=True)
    # ImageNet's mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225), in [-1, 1] and rounded
    shift = torch.tensor((-0.03, -0.088, -0.188)).view(1, 3, 1, 1)
    scale = torch.tensor((0.458, 0.448, 0.45)).view(1, 3, 1, 1)
    taps = []
    for images in (one, other):
        h = (images.float() / 127.5 - 1 - shift) / scale
        found = []
        for i, layer in enumerate(trunk):
            h = layer(h).clone()
            if i in LAYERS[net]:
                found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        taps.append(found)
    total = torch.zeros(len(one))
    for level, (a, b) in enumerate(zip(*taps, strict=True)):
        total += ((a - b).square() * heads[f"lin{level}.model.1.weight"]).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("net", TRUNKS)
@torch.no_grad()
def test_lpips_equals_the_formula_on_a_random_trunk(net: str, weights: Path) -> None:
    images = smooth(3, 64, 0)
    others = noisy(images, 30, 1)
    state = torch.load(weights / FILES[f"lpips_{net}"].file, weights_only=True)
    wanted = lpips_formula(net, state, images, others)
    np.testing.assert_allclose(per_image(LPIPS(net=net), images, others), wanted, rtol=2e-4, atol=1e-6)


@torch.no_grad()
def test_lpips_equals_the_package_on_a_random_trunk(weights: Path, tmp_path: Path, monkeypatch) -> None:
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / FILES["lpips_squeeze"].file).symlink_to(weights / FILES["lpips_squeeze"].file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = smooth(3, 64, 0)
    others = noisy(images, 30, 1)
    package = lpips.LPIPS(net="squeeze", verbose=False)
    wanted = package(images.float() / 127.5 - 1, others.float() / 127.5 - 1).flatten()
    np.testing.assert_allclose(per_image(LPIPS(net="squeeze"), images, others), wanted, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_lpips_squeeze_gives_the_published_distances(shared: Path, tmp_path: Path, monkeypatch) -> None:
    unpack = [sys.executable, shared / "unpack.py", tmp_path, "torch_home"]
    subprocess.run(unpack, check=True, capture_output=True)
    monkeypatch.delenv("BENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("BENCH_CONFIG", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    folder = shared / "models" / "lpips-squeeze"
    reference, one, other = (torch.from_numpy(np.array(Image.open(folder / f"ex_{name}.png").convert("RGB")))
                             .permute(2, 0, 1)[None].contiguous() for name in ("ref", "p0", "p1"))
    assert per_image(LPIPS(net="squeeze"), reference, one) == pytest.approx(0.71105, abs=1e-5)
    assert per_image(LPIPS(net="squeeze"), reference, other) == pytest.approx(0.14790, abs=1e-5)


@pytest.mark.parametrize("net", TRUNKS)
def test_lpips_says_which_images_are_too_small(net: str, weights: Path) -> None:
    least = LPIPS_SMALLEST[net]
    per_image(LPIPS(net=net), random_images(1, least, 0), random_images(1, least, 1))
    with pytest.raises(Incompatible, match=f"needs images of {least} pixels, got {least - 1}x{least - 1}"):
        per_image(LPIPS(net=net), random_images(1, least - 1, 0), random_images(1, least - 1, 1))


def test_networks_are_frozen_shared_and_draw_no_random_numbers(weights: Path) -> None:
    state = torch.random.get_rng_state()
    lpips_network.__globals__["_lpips"].cache_clear()
    inception.__globals__["_inception"].cache_clear()
    with torch.inference_mode():
        network = lpips_network("squeeze")
        inception()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert lpips_network("squeeze") is network and not network.training
    assert not any(p.requires_grad or p.is_inference() for p in network.parameters())
    image = torch.rand(1, 3, 32, 32, requires_grad=True)            # a loss may differentiate through it
    network(image, torch.rand(1, 3, 32, 32)).sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_frozen_holder_follows_and_owns_nothing(weights: Path) -> None:
    holder = Frozen(torch.nn.Linear(2, 2)).double().train()
    assert holder.network.weight.dtype == torch.float64
    assert not list(holder.parameters()) and not holder.state_dict()
    assert not holder.network.training and not holder(torch.ones(2, dtype=torch.float64)).requires_grad


@pytest.mark.parametrize("damage", ["truncated", "no weights", "other network", "code"])
@pytest.mark.parametrize("name", ["lpips_squeeze", "inception"])
def test_a_damaged_weight_file_is_named(name: str, damage: str, tmp_path, weights, monkeypatch) -> None:
    path = tmp_path / FILES[name].file
    match damage:
        case "truncated":
            path.write_bytes((weights / FILES["lpips_squeeze"].file).read_bytes()[:100_000])
        case "no weights":
            torch.save([1, 2], path)
        case "other network":
            torch.save({"features.0.weight": torch.zeros(3)}, path)
        case "code":                            # unpickling it would run something
            torch.save({"a": torch.nn.Linear(1, 1)}, path)
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    metric = LPIPS(net="squeeze") if name == "lpips_squeeze" else RFID()
    with pytest.raises(BadInput, match=str(path)):
        metric.begin(LAYOUT, 1, CPU)


def test_a_missing_weight_file_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for metric, file in ((LPIPS(net="vgg"), "vgg16-397923af.pth"), (RFID(), "weights-inception-2015-12-05")):
        with pytest.raises(BadInput, match=f"{file}.*bench prepare.*measure.values"):
            metric.begin(LAYOUT, 1, CPU)


# -- rFID ----------------------------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@torch.inference_mode()
def test_rfid_equals_torch_fidelity_on_a_random_network(weights: Path) -> None:
    images = smooth(20, 64, 0)
    others = noisy(images, 60, 1)
    metric = RFID()
    metric.begin(LAYOUT, 20, CPU)
    network, features = metric.network, []
    metric.network = lambda block: features.append(network(block)[0]) or (features[-1],)
    metric.update(images[:13], output(others[:13]), torch.arange(13))
    metric.update(images[13:], output(others[13:]), torch.arange(13, 20))

    # torch-fidelity would spend a minute on the eigenvalues of a 2048 x 2048 matrix of rank 19. The distance
    # does not change when its features are rotated into the 40 dimensions that they span.
    span = np.linalg.qr(torch.cat(features).double().T.numpy())[0]

    def statistics(found: Tensor) -> dict[str, np.ndarray]:
        return fid_features_to_statistics(torch.from_numpy(found.double().numpy() @ span))

    with mock.patch("torch_fidelity.metric_fid.fid_features_to_statistics", statistics):
        wanted = torch_fidelity.calculate_metrics(
            input1=Pictures(images), input2=Pictures(others), fid=True, cuda=False, cache=False,
            verbose=False, save_cpu_ram=True, batch_size=20,
            feature_extractor_weights_path=str(weights / FILES["inception"].file),
        )["frechet_inception_distance"]
    sums = metric.sums()
    spread = float((sums["original_outer"].trace() - sums["original_sum"].square().sum() / 20) / 19)
    assert spread > 1 and wanted > 0.01 * spread                    # else the comparison would mean nothing
    assert metric.compute(sums) == pytest.approx(wanted, rel=1e-4)
    same = (sums["original_sum"], sums["original_outer"], 20)
    assert frechet_distance(same, same) <= 1e-9 * spread


def moments(features: np.ndarray) -> tuple[Tensor, Tensor, int]:
    x = torch.from_numpy(features)
    return x.sum(0), x.T @ x, len(x)


@pytest.mark.parametrize("count", [2, 20, 64, 65, 500])
def test_frechet_distance_is_exact_for_singular_covariances_too(count: int) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(64, 64)) * np.geomspace(1, 1e-3, 64)
    one = rng.normal(size=(count, 64)) @ mixing + 5
    other = one + rng.normal(size=(count, 64)) * 0.1
    x, y = ((z - z.mean(0)) / (count - 1) ** 0.5 for z in (one, other))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()        # in the space of images: of full rank
    wanted = np.square(one.mean(0) - other.mean(0)).sum() + (x * x).sum() + (y * y).sum() - 2 * overlap
    found = frechet_distance(moments(one), moments(other))
    assert found == pytest.approx(wanted, abs=1e-8 * (x * x).sum())
    assert frechet_distance(moments(one), moments(one)) == pytest.approx(0, abs=1e-10 * (x * x).sum())
    statistics = [{"mu": z.mean(0), "sigma": np.cov(z, rowvar=False)} for z in (one, other)]
    published = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(published, rel=1e-3)


def test_frechet_distance_without_any_variance_is_that_of_the_means() -> None:
    one, other = np.full((3, 8), 2.0), np.full((3, 8), 2.5)
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(2.0)


def test_frechet_distance_of_one_dimension_is_the_textbook_one() -> None:
    one, other = np.array([[0.0], [2.0]]), np.array([[5.0], [9.0]])         # deviations sqrt 2, sqrt 8
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(36 + (2**0.5 - 8**0.5) ** 2)


def test_rfid_of_one_image_has_no_covariance(weights: Path) -> None:
    metric = RFID()
    metric.begin(LAYOUT, 1, CPU)
    with torch.inference_mode():
        metric.update(smooth(1, 32, 0), output(smooth(1, 32, 1)), torch.arange(1))
    with pytest.raises(Incompatible, match="at least 2 images, got 1"):
        metric.compute(metric.sums())


# -- usage and perplexity ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_usage_and_perplexity_equal_a_naive_queue(data: st.DataObject) -> None:
    """For any layout, window, batches, order of batches and number of processes."""
    images, tokens = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 7))
    vocab = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    window = data.draw(st.none() | st.integers(1, images * tokens + 5))
    processes = data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, k, (images, tokens)) for k in vocab], -1)         # [n, N, L]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, images - 1)), max_size=4)) | {0, images})
    batches = [range(a, b) for a, b in pairwise(cuts)]

    queues = [deque(codes[..., level].ravel().tolist(), maxlen=window) for level in range(len(vocab))]
    counters = [Counter(queue) for queue in queues]
    shares = [len(counter) / k for counter, k in zip(counters, vocab, strict=True)]
    entropies = [-sum(n / len(q) * np.log(n / len(q)) for n in c.values())
                 for c, q in zip(counters, queues, strict=True)]

    for kind, wanted in ((Usage, np.mean(shares)), (Perplexity, np.mean(np.exp(entropies)))):
        parts = [kind(window=window) for _ in range(processes)]
        for part in parts:
            part.begin(TokenLayout(tokens, vocab), images, CPU)
        for i in rng.permutation(len(batches)):
            indices = torch.tensor(list(batches[i]))
            batch = output(torch.empty(0), torch.from_numpy(codes)[indices])
            parts[i % processes].update(None, batch, indices)
        sums = {"counts": torch.stack([part.sums()["counts"] for part in parts]).sum(0)}
        assert sums["counts"].dtype == torch.int64
        assert parts[0].compute(sums) == pytest.approx(wanted, rel=1e-12)
        details = parts[0].details(sums)
        drawn = len(queues[0])
        assert details["codes"] == drawn
        assert details["used"] == np.mean([len(counter) for counter in counters])
        assert details["ceiling"] == pytest.approx(np.mean([1 - (1 - 1 / k) ** drawn for k in vocab]))
        assert details.get("fill") == (None if window is None else drawn / window)


@pytest.mark.parametrize("kind", [Usage, Perplexity])
def test_a_continuous_tokenizer_has_no_codes_to_count(kind: type) -> None:
    with pytest.raises(Incompatible, match="no codes"):
        kind().begin(TokenLayout(4, ()), 1, CPU)


# -- all metrics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", available("metric"))
@torch.inference_mode()
def test_split_in_two_and_summed_equals_the_whole(name: str, weights: Path) -> None:
    images, others = smooth(5, 40, 0), noisy(smooth(5, 40, 0), 20, 1)
    codes = torch.randint(0, 8, (5, 4, 2), generator=torch.Generator().manual_seed(0))
    keywords = {"lpips": {"net": "squeeze"}, "usage": {"window": 7}, "ms_ssim": {"scales": 2},
                "frechet_distance": {"network": "squeezenet"}}.get(name, {})
    whole, first, second = (resolve("metric", name)(**keywords) for _ in range(3))
    values = []
    for metric, part in ((whole, slice(0, 5)), (first, slice(0, 2)), (second, slice(2, 5))):
        metric.begin(LAYOUT, 5, CPU)
        values.append(metric.update(images[part], output(others[part], codes[part]), torch.arange(5)[part]))
    parts = {key: value + second.sums()[key] for key, value in first.sums().items()}
    for key, value in whole.sums().items():
        # a table that each process fills in its own rows of adds without rounding
        assert value.dtype in (torch.float64, torch.int64) or key.endswith("_features")
        torch.testing.assert_close(parts[key], value, rtol=1e-6, atol=1e-8)
    assert whole.compute(parts) == pytest.approx(whole.compute(whole.sums()), rel=1e-6)
    if values[0] is not None:
        torch.testing.assert_close(torch.cat(values[1:]), values[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", available("metric"))
def test_what_is_read_from_the_source_is_what_the_class_says(name: str) -> None:
    sig, entry = signature("metric", name), resolve("metric", name)
    for attribute in ("title", "unit", "direction", "decimals", "needs", "revision"):
        if attribute in sig.attributes:
            assert getattr(entry, attribute) == sig.attributes[attribute]
    assert {"title", "unit", "direction", "decimals", "revision"} <= set(sig.attributes)
    assert sig.attributes["direction"] in ("higher", "lower", "none")
    bound = {key: typing.get_args(k.annotation)[0] if k.default is REQUIRED else k.default
             for key, k in sig.keywords.items()}
    assert set(needed(sig.attributes, bound)) <= set(FILES)
