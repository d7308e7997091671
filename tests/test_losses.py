"""Losses: values against independent formulas, gradients to the reconstruction alone, networks offline and frozen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_metrics import random_weights, weights  # noqa: F401
from tiny import new_state, train_spec
from torch import Tensor, nn

from bench.build import check_runs
from bench.errors import BadInput
from bench.interfaces import Loss
from bench.losses.classifier_logits import ClassifierLogits
from bench.losses.logit_laplace import LogitLaplace
from bench.losses.lpips import LPIPSLoss
from bench.losses.mixed_pixel import MixedPixel
from bench.losses.pixel import Pixel
from bench.places import Places
from bench.preflight import preflight
from bench.pretrained import classifier
from bench.registry import signature
from bench.spec import bind
from bench.suite import Suite
from bench.types import Batch, TokenizerOutput
from bench.weights import FILES, needed


def pictures(count: int, side: int, seed: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def output(reconstruction: Tensor, log_scale: Tensor | None = None) -> TokenizerOutput:
    nothing = torch.zeros(0)
    return TokenizerOutput(reconstruction, nothing, nothing, None, log_scale=log_scale)


def value(loss: Loss, x: Tensor, y: Tensor, log_scale: Tensor | None = None) -> Tensor:
    return loss(Batch(x), output(y, log_scale))


# -- pixels --------------------------------------------------------------------------------------------------------


def test_mixed_pixels_are_the_weighted_sum_of_both_norms() -> None:
    x, y = pictures(2, 8, 0), pictures(2, 8, 1)
    wanted = 0.5 * value(Pixel(norm="l1"), x, y) + 3 * value(Pixel(norm="l2"), x, y)
    torch.testing.assert_close(value(MixedPixel(l1=0.5, l2=3.0), x, y), wanted)
    torch.testing.assert_close(value(MixedPixel(), x, y), (x - y).abs().mean() + (x - y).square().mean())


@pytest.mark.parametrize("mu, log_scale", [(0.0, 0.0), (1.3, -1.0), (-2.0, 0.5)])
def test_the_logit_laplace_density_integrates_to_one(mu: float, log_scale: float) -> None:
    """exp(-loss) of single pixels, over y in (0, 1): pixels outside of [-1, 1] stand for y near 0 and 1."""
    loss = LogitLaplace()
    y = torch.linspace(0, 1, 40_003, dtype=torch.float64)[1:-1]
    pixels = ((y - 0.1) / 0.8 * 2 - 1).view(-1, 1, 1, 1)
    median = ((torch.sigmoid(torch.tensor(mu, dtype=torch.float64)) - 0.1) / 0.8 * 2 - 1).view(1, 1, 1, 1)
    density = torch.stack([value(loss, p[None], median, torch.tensor(log_scale)).neg().exp() for p in pixels[::20]])
    assert torch.trapezoid(density.double(), y[::20]).item() == pytest.approx(1, abs=0.02)


def test_logit_laplace_is_the_published_formula() -> None:
    """DALL-E, equation of Appendix A.3, in NumPy's order of terms and float64."""
    x, y, log_scale = pictures(2, 4, 0), pictures(2, 4, 1), pictures(2, 4, 2)
    p, q = (0.8 * (x.double() + 1) / 2 + 0.1), (0.8 * (y.double() + 1) / 2 + 0.1)
    mu, b = torch.log(q / (1 - q)), log_scale.double().exp()
    density = torch.exp(-(torch.log(p / (1 - p)) - mu).abs() / b) / (2 * b * p * (1 - p))
    torch.testing.assert_close(value(LogitLaplace(), x, y, log_scale).double(), -density.log().mean(), rtol=1e-5, atol=1e-6)
    constant = value(LogitLaplace(log_scale=0.7), x, y)
    torch.testing.assert_close(constant, value(LogitLaplace(), x, y, torch.full_like(x, 0.7)))


def test_logit_laplace_gives_the_gradient_of_a_decoder_of_medians() -> None:
    """d loss / d mu = -sign(logit y - mu) / (b n), through the pixels and back; and ln b learns."""
    mu = torch.tensor([1.5, -0.5, 0.2]).view(1, 3, 1, 1).requires_grad_()
    log_scale = torch.full((1, 3, 1, 1), 0.3).requires_grad_()
    x = pictures(1, 1, 3)
    reconstruction = (torch.sigmoid(mu) - 0.1) / 0.8 * 2 - 1
    value(LogitLaplace(), x, reconstruction, log_scale).backward()
    away = torch.logit(0.4 * (x + 1) + 0.1) - mu.detach()
    torch.testing.assert_close(mu.grad, -away.sign() / 3 / math.exp(0.3), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(log_scale.grad, (1 - away.abs() / math.exp(0.3)) / 3, rtol=1e-3, atol=1e-5)
    far = torch.full((1, 3, 1, 1), 3.0).requires_grad_()
    loss = value(LogitLaplace(), x, far)
    loss.backward()
    assert loss.isfinite() and not far.grad.any()
    with pytest.raises(ValueError, match="margin"):
        LogitLaplace(margin=0.5)


# -- networks ------------------------------------------------------------------------------------------------------


def lpips_by_hand(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """arXiv:1801.03924, Eq. 1, from the trunk's features and the heads' weights."""
    total = torch.zeros(len(x))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    for a, b, head in zip(net.net((x - shift) / scale), net.net((y - shift) / scale), net.lins, strict=True):
        a, b = a / (a.norm(dim=1, keepdim=True) + 1e-10), b / (b.norm(dim=1, keepdim=True) + 1e-10)
        weight = head.model[-1].weight.flatten()
        total = total + ((a - b).square() * weight[:, None, None]).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("net", ["squeeze", "vgg"])
def test_lpips_is_the_formula_and_moves_the_reconstruction_alone(net: str, weights: Path) -> None:  # noqa: F811
    loss = LPIPSLoss(net=net)
    x, y = pictures(2, 32, 0), pictures(2, 32, 1).requires_grad_()
    found = value(loss, x, y)
    torch.testing.assert_close(found, lpips_by_hand(loss.network.network, x, y).mean(), rtol=1e-4, atol=1e-6)
    found.backward()
    assert y.grad.any() and y.grad.isfinite().all()
    assert not list(loss.parameters()) and not loss.state_dict()
    loss.train()                                # a module that is set to train must not wake the heads' dropout
    assert not any(m.training for m in loss.network.network.modules())
    assert torch.equal(value(loss, x, y), value(loss, x, y)) and value(loss, x, x) == 0
    with pytest.raises(ValueError, match="image_size"):
        value(loss, x[..., :8, :8], y[..., :8, :8])


def test_classifier_logits_are_resized_and_normalised_as_published() -> None:
    loss = ClassifierLogits(net="random")
    x, y = pictures(2, 40, 0), pictures(2, 40, 1).requires_grad_()
    found = value(loss, x, y)

    def logits(images: Tensor) -> Tensor:
        unit = F.interpolate((images + 1) / 2, size=224, mode="bilinear", align_corners=False, antialias=True)
        unit = (unit - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return classifier("random")(unit)

    assert logits(x).shape == (2, 1000)
    torch.testing.assert_close(found, (logits(x) - logits(y)).square().mean(), rtol=1e-4, atol=1e-7)
    found.backward()
    assert y.grad.any() and not list(loss.parameters()) and not loss.state_dict()


def test_a_random_classifier_is_the_same_whatever_was_drawn_before_and_draws_nothing() -> None:
    classifier.__globals__["_classifier"].cache_clear()
    torch.manual_seed(1)
    first = classifier("random").state_dict()
    drawn = torch.rand(1)
    classifier.__globals__["_classifier"].cache_clear()
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(v, first[k]) for k, v in classifier("random").state_dict().items())


def test_published_classifiers_load_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import resnet50

    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match=r"resnet50-0676ba61\.pth"):
        ClassifierLogits()
    with torch.device("meta"):
        network = resnet50(weights=None)
    state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}
    torch.save({**state, "fc.bias": torch.arange(1000.0)}, tmp_path / FILES["resnet50"].file)
    assert torch.equal(classifier("resnet50")(pictures(1, 224, 0))[0], torch.arange(1000.0))
    del state["fc.bias"]
    torch.save(state, tmp_path / FILES["convnext_small"].file)
    with pytest.raises(BadInput, match="do not fit the network"):
        classifier("convnext_small")


# -- in a run ------------------------------------------------------------------------------------------------------


SUITE = """\
name: perceived
question: What is seen?
base:
  dataset: {name: photos, image_size: 16, train_images: 64, test_images: 32}
  tokenizer: {name: vqvae, hidden: 8, quantizer: {name: vq, codebook_size: 16, codebook_dim: 4}}
  objective:
    name: reconstruction
    losses: {pixel: {name: pixel, norm: l1}, perceptual: {name: lpips}, logits: {name: classifier_logits, net: random}}
    weights: {perceptual: 0.5}
  optimizers: {tokenizer: {name: adam, lr: 4e-4}}
  train: {steps: 10, batch_size: 8}
  measure: {values: [psnr]}
"""


def fail(path: tuple, value: object, sentence: str) -> Exception:
    return AssertionError(sentence)


def test_the_files_a_run_trains_with_are_named_hashed_and_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    here = Places(results=tmp_path / "results", reports=tmp_path / "reports", runs=tmp_path / "runs",
                  cache=tmp_path / "cache", data=tmp_path / "data", weights=tmp_path / "weights")
    path = tmp_path / "perceived.yaml"
    path.write_text(SUITE)
    (run,) = Suite.load(path).expand(here)
    assert run.train.networks == {"lpips_vgg": FILES["lpips_vgg"].prefix}
    assert run.train.model_copy(update={"networks": {"lpips_vgg": "another"}}).train_id != run.train_id
    (checked,) = check_runs([run]).values()
    assert checked.problem is None and checked.skip is None         # shapes are checked without the file
    with pytest.raises(BadInput, match=r"vgg16-397923af\.pth .* train with losses and discriminators that need none"):
        preflight([run], here)


def test_needs_are_literal_and_a_random_network_needs_no_file() -> None:
    for name, keywords, wanted in (("lpips", {"net": "alex"}, ["lpips_alex"]), ("classifier_logits", {"net": "random"}, []),
                                   ("classifier_logits", {"net": "resnet50"}, ["resnet50"])):
        assert needed(signature("loss", name).attributes, keywords) == wanted


def test_perceptual_losses_take_part_in_the_sum_with_their_weight(weights: Path) -> None:  # noqa: F811
    given = {"name": "reconstruction", "losses": {"pixel": {"name": "pixel"}, "perceptual": {"name": "lpips", "net": "squeeze"}},
             "weights": {"perceptual": 0.5}}
    spec = train_spec(objective=bind("objective", given, ("objective",), fail),
                      dataset=bind("dataset", {"name": "photos", "image_size": 32}, ("dataset",), fail))
    state = new_state(spec)
    (update,) = state.objective.updates(state.model, Batch(pictures(2, 32, 0)), 0)
    terms = update.terms
    assert terms["perceptual"] > 0
    rest = terms["pixel"] + 0.25 * terms["commitment"] + terms["codebook"]
    torch.testing.assert_close(update.loss, rest + 0.5 * terms["perceptual"])
