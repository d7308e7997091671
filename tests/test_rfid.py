"""Features and the distances between sets of images, against torch-fidelity, pytorch-fid, SciPy and NumPy."""

from __future__ import annotations

import gc
import os
import tarfile
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from inception_file import SmallNetwork, write_random_inception
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_kid import kid_features_to_metric

import bench.feature_sets as feature_sets
from bench.errors import BadInput, Incompatible
from bench.feature_sets import coverage, kernel_distance
from bench.features import InceptionFeatures, TrunkFeatures, once, tensorflow_resize
from bench.frechet import Gaussian, Moments, frechet_distance
from bench.metrics.frechet_distance import FrechetDistance
from bench.metrics.inception_score import InceptionScore
from bench.metrics.kid import KID
from bench.metrics.precision import Precision
from bench.metrics.recall import Recall
from bench.metrics.rfid import RFID
from bench.metrics.sfid import SFID
from bench.places import Places
from bench.types import TokenizerOutput, TokenLayout
from bench.weights import FILES, download, find, sentence

CPU = torch.device("cpu")
LAYOUT = TokenLayout(4, (8,), ())


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_inception(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def weights(random_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a seeded random network; bench finds it."""
    monkeypatch.setenv("BENCH_WEIGHTS", str(random_file.parent))
    return random_file


@pytest.fixture
def small(weights: Path, monkeypatch: pytest.MonkeyPatch) -> SmallNetwork:
    network = SmallNetwork()
    monkeypatch.setattr("bench.features.inception", lambda places=None: network)
    return network


def smooth(count: int, size: int, seed: int) -> Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, amount: int, seed: int) -> Tensor:
    noise = torch.randint(-amount, amount + 1, images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


def output(reconstruction: Tensor) -> TokenizerOutput:
    return TokenizerOutput(reconstruction, torch.empty(0), torch.empty(0), None)


def measured(metric, images: Tensor, others: Tensor, batch: int = 4) -> float:
    metric.begin(LAYOUT, len(images), CPU)
    for start, stop in pairwise([*range(0, len(images), batch), len(images)]):
        metric.update(images[start:stop], output(others[start:stop]), torch.arange(start, stop))
    return metric.compute(metric.sums())


# -- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (101, 67)], ids=str)
@torch.inference_mode()
def test_features_equal_torch_fidelity(shape: tuple[int, int], weights: Path) -> None:
    images = smooth(2, 101, 0)[..., : shape[0], : shape[1]]
    reference = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    seen = []
    reference.Mixed_6d.branch1x1.register_forward_hook(lambda *of: seen.append(of[2].clone()))
    pooled, logits = reference(images)
    found = InceptionFeatures()(images)
    # the ADM evaluator's: [n, 17, 17, 192] of TensorFlow, [..., :7], flattened
    spatial = seen[0].permute(0, 2, 3, 1)[..., :7].reshape(2, 2023)
    for ours, theirs in zip(found, (pooled, spatial, logits), strict=True):
        assert theirs.std() > 0.05 and ours.shape == theirs.shape and ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 1e-4
    assert (InceptionFeatures()(images.float()).pooled - found.pooled).abs().max() < 1e-6     # floats in 0..255


@torch.inference_mode()
def test_features_with_the_other_resize_equal_pytorch_fid(weights: Path) -> None:
    published = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(weights, weights_only=True)
    with mock.patch.object(published, "load_state_dict_from_url", lambda *_, **__: state):
        reference = published.InceptionV3([3]).eval()
    images = smooth(2, 80, 0).float().add_(torch.rand(2, 3, 80, 80)).clamp_(0, 255)           # not rounded
    wanted = reference(images / 255)[0].flatten(1)
    found = InceptionFeatures(resize="torch")(images).pooled
    assert (found - wanted).abs().max() < 1e-4
    assert (InceptionFeatures()(images).pooled - wanted).abs().max() > 1e-2         # the resize is no detail


@pytest.mark.parametrize("shape", [(1, 2), (17, 31), (64, 64), (256, 100), (299, 299), (300, 298), (512, 700)], ids=str)
def test_resize_equals_tensorflows(shape: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *shape), generator=torch.Generator().manual_seed(0)).float()
    wanted = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    np.testing.assert_allclose(tensorflow_resize(images, 299) / 128, wanted / 128, atol=1e-5)


@torch.inference_mode()
def test_all_metrics_of_a_pass_share_one_run_of_the_network(small: SmallNetwork) -> None:
    metrics = [RFID(), SFID(), KID(), Precision(), Recall(), InceptionScore()]
    for metric in metrics:
        metric.begin(LAYOUT, 8, CPU)
    for start in (0, 4):
        images, others = smooth(4, 16, start), output(smooth(4, 16, start + 1))
        for metric in metrics:
            metric.update(images, others, torch.arange(start, start + 4))
    assert small.runs == 4                                                  # two batches of two sides
    other = RFID(resize="torch")
    other.begin(LAYOUT, 4, CPU)
    other.update(images, others, torch.arange(4))
    assert small.runs == 6


def test_features_are_of_the_tensor_that_is_given() -> None:
    network, runs = torch.nn.Identity(), []

    def look(pictures: Tensor) -> Tensor:
        runs.append(1)
        return pictures.sum()

    pictures = torch.ones(2, 3, 4, 4)
    assert once(pictures, network, "a", look) == once(pictures, network, "a", look) == 96 and len(runs) == 1
    once(pictures.clone(), network, "a", look)
    once(pictures, network, "b", look)
    once(pictures, torch.nn.Identity(), "a", look)
    assert len(runs) == 4
    pictures.mul_(2)                                                        # written to: another tensor
    assert once(pictures, network, "a", look) == 192
    for i in range(40):                 # tensors that come and go may live at the same address
        assert once(torch.full((1,), float(i)), network, "a", look) == i
    gc.collect()
    import bench.features

    assert len(bench.features._recent) <= 16


# -- Fréchet distance ------------------------------------------------------------------------------------------------


def by_root(one: np.ndarray, other: np.ndarray) -> float:
    """The formula with SciPy's matrix square root."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    return float(np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first + second - 2 * root.real))


def sets(count: int, other: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.geomspace(1, 0.05, width)
    one = rng.normal(size=(count, width)) @ mixing + 3
    return one, rng.normal(size=(other, width)) @ mixing * 1.1 + 3.2


def test_frechet_distance_equals_the_matrix_root() -> None:
    one, other = sets(300, 200, 40)
    moments = [Moments(40, CPU) for _ in range(2)]
    for of, features in zip(moments, (one, other), strict=True):
        for block in torch.from_numpy(features).split(64):                  # streamed
            of.add(block)
    found = frechet_distance(*((of.total, of.outer, int(of.count)) for of in moments))
    assert found == pytest.approx(by_root(one, other), rel=1e-9)
    stored = [(x.mean(0), np.cov(x, rowvar=False)) for x in (one, other)]
    assert Gaussian.of_statistics(*stored[0]).distance(Gaussian.of_statistics(*stored[1])) == pytest.approx(found, rel=1e-9)
    rounded = Gaussian.of_statistics(*(x.astype(np.float32) for x in stored[0]))
    assert rounded.distance(Gaussian.of_statistics(*stored[1])) == pytest.approx(found, rel=1e-4)
    mixed = Gaussian.of_sums(moments[0].total, moments[0].outer, 300).distance(Gaussian.of_statistics(*stored[1]))
    assert mixed == pytest.approx(found, rel=1e-9)


def test_stored_statistics_of_few_images_are_exact_too() -> None:
    one, other = sets(10, 12, 60)
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (one, other))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    wanted = np.square(one.mean(0) - other.mean(0)).sum() + (x * x).sum() + (y * y).sum() - 2 * overlap
    stored = [Gaussian.of_statistics(z.mean(0), np.cov(z, rowvar=False)) for z in (one, other)]
    assert stored[0].root.shape == (60, 9) and stored[0].distance(stored[1]) == pytest.approx(wanted, rel=1e-8)
    assert stored[0].distance(stored[0]) < 1e-9 * wanted


@torch.inference_mode()
def test_rfid_equals_pytorch_fid_end_to_end(weights: Path, tmp_path: Path) -> None:
    """PNG folders through the package's command; in 4 of 2048 dimensions, since its matrix root needs n > D."""
    published = pytest.importorskip("pytorch_fid.inception")
    from pytorch_fid import fid_score

    images = smooth(7, 48, 0)
    others = noisy(images, 90, 1)
    for name, pictures in (("a", images), ("b", others)):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i}.png")
    span = torch.linalg.qr(torch.randn(2048, 4, generator=torch.Generator().manual_seed(0)))[0]
    state = torch.load(weights, weights_only=True)
    activations = fid_score.get_activations

    def root(product: np.ndarray, disp: bool = True):                       # SciPy has dropped the keyword `disp`
        return (scipy.linalg.sqrtm(product), 0.0) if not disp else scipy.linalg.sqrtm(product)

    with (mock.patch.object(published, "load_state_dict_from_url", lambda *_, **__: state),
          mock.patch.object(fid_score, "get_activations", lambda *a: activations(*a) @ span.double().numpy()),
          mock.patch.object(fid_score, "linalg", mock.Mock(sqrtm=root))):
        wanted = fid_score.calculate_fid_given_paths([str(tmp_path / n) for n in "ab"], 7, "cpu", 2048, 0)
    metric = RFID(resize="torch")
    metric.width = 4
    features = metric.features
    metric.features = lambda pictures: features(pictures) @ span
    assert measured(metric, images, others) == pytest.approx(wanted, rel=1e-3)


@torch.inference_mode()
def test_known_originals_are_not_looked_at_again(small: SmallNetwork) -> None:
    images, others = smooth(9, 16, 0), smooth(9, 16, 1)
    for kind in (RFID, SFID, KID, Precision, Recall):
        first = kind()
        wanted = measured(first, images, others)
        kept = {name: first.sums()[name].clone() for name in first.originals}
        assert kept and first.reference()
        parts = [kind(), kind()]                # two processes; the second does not hold what is kept
        for part, given, where in zip(parts, (kept, None), (slice(0, 4), slice(4, 9)), strict=True):
            part.begin(LAYOUT, 9, CPU)
            part.take_originals(given)
            part.update(None, output(others[where]), torch.arange(9)[where])
        sums = {name: value + parts[1].sums()[name] for name, value in parts[0].sums().items()}
        assert first.compute(sums) == pytest.approx(wanted, rel=1e-5)       # other batches round differently
    metrics = [RFID(), RFID(resize="torch"), SFID(), KID(), Precision(), Recall()]
    for metric in metrics:
        metric.begin(LAYOUT, 1, CPU)
    said = [metric.reference() for metric in metrics]
    assert len(set(said)) == 4 and said[3] == said[4] == said[5]            # one table serves three metrics


# -- kernel distance, precision, recall, Inception score -------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@torch.inference_mode()
def test_kid_precision_recall_and_score_equal_torch_fidelity_end_to_end(weights: Path) -> None:
    images = smooth(9, 40, 0)
    others = torch.cat([noisy(images[:6], 40, 1), smooth(3, 40, 9)])
    wanted = torch_fidelity.calculate_metrics(
        input1=Pictures(others), input2=Pictures(images), kid=True, prc=True, isc=True, kid_subset_size=6, isc_splits=3,
        kid_subsets=7, samples_shuffle=False, cuda=False, cache=False, verbose=False, save_cpu_ram=True, batch_size=9,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights))
    kid = KID(subsets=7, subset_size=6)
    assert measured(kid, images, others) == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-3)
    assert kid.details(kid.sums())["deviation"] == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-3)
    assert measured(Precision(), images, others) == pytest.approx(wanted["precision"])
    assert measured(Recall(), images, others) == pytest.approx(wanted["recall"])
    assert 0 < wanted["recall"] < 1 or 0 < wanted["precision"] < 1          # else they would say little
    score = InceptionScore(split_size=3)
    assert measured(score, images, others) == pytest.approx(wanted["inception_score_mean"], rel=1e-4)
    assert score.details(score.sums())["deviation"] == pytest.approx(wanted["inception_score_std"], abs=1e-4)


def test_kernel_distance_equals_torch_fidelity_and_the_formula() -> None:
    one, other = (torch.from_numpy(x).float() for x in sets(90, 70, 32))
    wanted = kid_features_to_metric(one, other, kid_subsets=20, kid_subset_size=40, rng_seed=7, verbose=False)
    found = kernel_distance(one, other, subsets=20, subset_size=40, seed=7)
    assert found == pytest.approx((wanted["kernel_inception_distance_mean"], wanted["kernel_inception_distance_std"]), rel=1e-4)
    x, y = one[:70].double().numpy(), other.double().numpy()
    k = [(a @ b.T / 32 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    formula = sum((m.sum() - np.trace(m)) / (70 * 69) for m in k[:2]) - 2 * k[2].mean()
    assert kernel_distance(one[:70], other, subsets=1, subset_size=70, seed=0)[0] == pytest.approx(formula, rel=1e-9)
    with pytest.raises(Incompatible, match="subsets of 80 images needs 80, got 70"):
        kernel_distance(one, other, subsets=1, subset_size=80, seed=0)


def test_kid_of_a_small_split_takes_it_whole(small: SmallNetwork) -> None:
    images, others = smooth(6, 16, 0), smooth(6, 16, 5)
    metric = KID()
    found = measured(metric, images, others)
    assert metric.details(metric.sums()) == {"deviation": 0.0, "subset_size": 6.0}
    assert found == pytest.approx(measured(KID(subset_size=6, subsets=3, seed=1), images, others), rel=1e-9)


@pytest.mark.parametrize("tile", [7, 2048])
def test_coverage_equals_the_definition(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sets, "TILE", tile)
    one, other = sets(60, 50, 8)
    reach = np.sort(cdist(one, one), axis=1)[:, 3]                          # the fourth smallest, itself included
    wanted = (cdist(other, one) <= reach).any(1).mean()
    assert 0.2 < wanted < 0.95
    assert coverage(torch.from_numpy(other).float(), torch.from_numpy(one).float(), 3) == pytest.approx(wanted)
    with pytest.raises(Incompatible, match="more than 3 images, got 3"):
        coverage(torch.from_numpy(other), torch.from_numpy(one[:3]), 3)


def test_coverage_by_copies_is_of_the_copied_alone() -> None:
    """Centres that are all the same have balls of no size: rounding must not give them one, nor take the copies out."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(1, 2048, generator=generator) * 5
    points = torch.cat([centre.repeat(3, 1), centre + 1e-2])
    assert coverage(points, centre.repeat(9, 1), 3) == 0.75
    assert coverage(centre.repeat(9, 1), torch.rand(20, 2048, generator=generator), 3) == 0


def test_inception_score_of_sure_and_unsure_predictions() -> None:
    """Sure of one class each, all different: the number of images; the same for each: 1."""
    sums = feature_sets.ScoreSums(7, 4, CPU)
    logits = torch.zeros(7, 1008)
    logits[torch.arange(7), torch.arange(7)] = 100
    sums.add(logits[4:], torch.arange(4, 7))    # in any order
    sums.add(logits[:4], torch.arange(4))
    assert feature_sets.inception_score(sums.sums()) == pytest.approx([4, 3])
    same = feature_sets.ScoreSums(3, 4, CPU)
    same.add(torch.randn(1, 1008).expand(3, -1), torch.arange(3))
    assert feature_sets.inception_score(same.sums()) == pytest.approx([1])


# -- other networks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Path:
    folder = Path(os.environ.get("BENCH_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data"
    if not (folder / "unpack.py").is_file():
        pytest.skip("the shared folder of real images and weights is not here (BENCH_SHARED or ../shared)")
    return folder


#: means over the features of the first four images of imagenet-sample/test-00.tar, from the note beside the weights
MEANS = {
    "inception_mixed_6e": (0.09980, 0.06228, 0.10106, 0.08251), "inception_mixed_7a": (0.24822, 0.19234, 0.25649, 0.22239),
    "mobilenet_v2_035": (0.24244, 0.34151, 0.27046, 0.33396), "squeezenet": (2.30643, 2.15217, 2.08310, 2.48489),
}


@pytest.mark.parametrize("name", MEANS)
@torch.inference_mode()
def test_other_networks_give_the_noted_features(name: str, shared: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_CONFIG", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("BENCH_WEIGHTS", str(shared / "models"))             # one folder further down counts too
    if name == "squeezenet":                    # its file is torchvision's: the trunk, with torchvision's names
        state = torch.load(shared / "models/lpips-squeeze/squeezenet1_1_features.pth", weights_only=True)
        torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / FILES["lpips_squeeze"].file)
        monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    side = 299 if "inception" in name else 224
    with tarfile.open(shared / "imagenet-sample" / "test-00.tar") as tar:
        files = [member for member in tar if member.isfile()][:4]
        pictures = [Image.open(tar.extractfile(member)).convert("RGB") for member in files]
    resized = torch.stack([torch.from_numpy(np.array(p.resize((side, side), Image.Resampling.BICUBIC))).permute(2, 0, 1)
                           for p in pictures])
    found = TrunkFeatures(name)(resized)
    np.testing.assert_allclose(found.mean(1), MEANS[name], rtol=1e-4)
    whole = torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)[None]  # resized by us instead
    assert (TrunkFeatures(name)(whole) - found[:1]).abs().mean() < 0.03 * found[:1].std()
    metric = FrechetDistance(network=name)
    assert measured(metric, resized, resized.roll(1, 0), batch=2) < 1e-3    # the same set
    x, y = (f.double().numpy() for f in (found, TrunkFeatures(name)(255 - resized)))
    wanted = np.square(x.mean(0) - y.mean(0)).sum()
    x, y = ((z - z.mean(0)) / 3**0.5 for z in (x, y))
    wanted += (x * x).sum() + (y * y).sum() - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert measured(metric, resized, 255 - resized, batch=2) == pytest.approx(wanted, rel=1e-4)


def test_a_file_that_nobody_publishes_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    places = Places.find(weights=tmp_path, cache=tmp_path / "cache")
    name, file = "frechet_mobilenet_v2_035", "mobilenet_v2_0.35_224_trunk.npz"
    assert find(name, places) is None
    said = sentence([name], places)
    assert file in said and "BENCH_WEIGHTS" in said and "bench prepare" not in said
    with pytest.raises(BadInput, match=f"{file}.*put it into"):
        download(name, places)
    (tmp_path / "below").mkdir()
    np.savez(tmp_path / "below" / "x.npz", a=np.zeros(1))
    (tmp_path / "below" / "x.npz").rename(tmp_path / "below" / file)
    assert find(name, places) == tmp_path / "below" / file
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match=f"{file}: its tensors do not fit"):
        TrunkFeatures("mobilenet_v2_035")
