"""Dialects of measuring: what is prepared how, what a column means, several protocols in one pass, and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import suite
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.errors import BadInput
from bench.evaluate import measure
from bench.interfaces import Metric, Quantizer, Tokenizer
from bench.metrics.psnr import PSNR
from bench.metrics.ssim import SSIM
from bench.places import Places
from bench.prepare import Prepared, to_model
from bench.protocol import Prepare, Protocol, load_protocol, protocols, wanted
from bench.suite import Suite
from bench.types import QuantizerOutput, TokenizerOutput, TokenLayout

CPU = torch.device("cpu")


class Same(Quantizer):
    input_dim = output_dim = 3
    layout = TokenLayout(64, (), ())

    def forward(self, latents: Tensor) -> QuantizerOutput:
        return QuantizerOutput(latents, None)


class Dimmed(Tokenizer):
    """Every image a little darker; or all one picture."""

    def __init__(self, gain: float = 0.9) -> None:
        super().__init__()
        self.quantizer = Same()
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode(self, images: Tensor) -> Tensor:
        self.size = images.shape[-2:]
        return images.flatten(2).transpose(1, 2)

    def decode(self, quantized: Tensor) -> Tensor:
        return self.gain * quantized.transpose(1, 2).unflatten(2, self.size)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.gain


def pictures(n: int = 7, size: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, size, size), dtype=np.uint8)


# -- preparing -----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.1, 3.0))
def test_rounding_is_what_the_published_code_does(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    original = torch.randint(0, 256, (2, 3, 5, 4), generator=generator, dtype=torch.uint8)
    output = scale * torch.randn(2, 3, 5, 4, generator=generator)
    prepared = Prepared(original, output)
    clamped = np.clip(output.numpy(), np.float32(-1), np.float32(1))

    images, rounded = prepared({"round": "8bit"})                   # torchvision.utils.save_image on [0, 1]
    assert torch.equal(images, original)
    saved = torch.from_numpy(clamped).add(1).div(2).mul(255).add(0.5).clamp(0, 255).to(torch.uint8)
    assert (rounded.int() - saved.int()).abs().max() <= 1 and (rounded != saved).float().mean() < 0.01
    assert torch.equal(rounded, (127.5 * torch.from_numpy(clamped) + 128).clamp(0, 255).to(torch.uint8))    # LlamaGen

    images, floats = prepared({"round": "none"})
    assert torch.equal(images, original) and floats.dtype == torch.float32
    np.testing.assert_allclose(floats.numpy(), (clamped.astype(np.float64) + 1) * 127.5, atol=2e-5)

    images, truncated = prepared({"round": "truncate"})             # SEED-Voken's evaluation_image.py, in NumPy
    loaded = (original.numpy() / 127.5 - 1.0).astype(np.float32)
    assert np.array_equal(images.numpy(), (255 * ((loaded + 1) / 2)).astype(np.uint8))
    assert np.array_equal(truncated.numpy(), (255 * ((clamped + 1) / 2)).astype(np.uint8))
    assert prepared({"round": "truncate"})[1] is truncated          # once for all metrics


def test_truncation_takes_one_from_95_of_256_values() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images, _ = Prepared(values, to_model(values))({"round": "truncate"})
    difference = values.int() - images.int()
    assert set(difference.unique().tolist()) == {0, 1} and int(difference.sum()) == 95


def test_resizing_is_that_of_llamagen() -> None:
    original = torch.from_numpy(pictures(2, 24))
    output = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    images, rounded = Prepared(original, output)(load_protocol("llamagen-256").prepared("psnr") | {"resize": 16})

    def resized(x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(16, 16), mode="bicubic")

    truth = (resized(original.double() / 127.5 - 1) + 1) / 2 * 255          # neither rounded nor clamped
    torch.testing.assert_close(images.double(), truth, atol=1e-3, rtol=0)
    expected = torch.clamp(127.5 * resized(output) + 128.0, 0, 255).to(torch.uint8)
    assert (rounded.int() - expected.int()).abs().max() <= 1 and (rounded != expected).float().mean() < 0.01
    same, _ = Prepared(original, output)({"round": "8bit", "resize": 24, "filter": "bicubic", "antialias": False,
                                          "originals": "resized"})
    assert torch.equal(same, original)                                       # nothing to resize: nothing is touched


# -- protocols -----------------------------------------------------------------------------------------------


def asking(folder: Path, *values: str) -> Suite:
    """A suite that asks for these values under ours-1."""
    content = suite(name="asks")
    content["base"]["measure"]["values"] = list(values)
    (folder / "asks.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Suite.load(str(folder / "asks.yaml"))


def test_a_column_names_a_value_of_the_main_protocol_or_of_another() -> None:
    plain, other = wanted("ssim", "ours-1"), wanted("ssim@llamagen", "ours-1")
    assert plain.protocol.name == "ours-1" and plain.metric.kwargs["window"] == "gaussian"
    assert other.protocol.name == "llamagen" and other.metric.kwargs["data_range"] == 510.0
    assert wanted("psnr@seed-voken", "ours-1").prepare == {"round": "truncate"}
    with pytest.raises(BadInput, match="protocol llamagen has no such value"):
        wanted("lpips@llamagen", "ours-1")
    with pytest.raises(BadInput, match="did you mean llamagen"):
        wanted("ssim@lamagen", "ours-1")
    with pytest.raises(BadInput, match="there is no protocol ''"):
        wanted("ssim@", "ours-1")


def test_dialects_that_agree_share_a_value_and_others_do_not(tmp_path: Path) -> None:
    """psnr of ours-1 and of llamagen are one number; the SSIMs are not. Names are in no identity."""
    run, *_ = asking(tmp_path, "psnr", "psnr@llamagen", "psnr@optvq", "ssim", "ssim@llamagen", "usage", "usage@seed-voken",
                     "usage_window@xyfjason-2024").expand(Places.find())
    assert [w.name for w in run.values] == ["psnr", "psnr@optvq", "ssim", "ssim@llamagen", "usage",
                                            "usage_window@xyfjason-2024"]
    assert [w.protocol for w in run.values] == ["ours-1", "optvq", "ours-1", "llamagen", "ours-1", "xyfjason-2024"]
    assert len({w.value_id for w in run.values}) == len(run.values)
    alone, *_ = asking(tmp_path, "psnr@llamagen").expand(Places.find())
    assert alone.values[0].value_id == run.values[0].value_id


def test_an_unknown_dialect_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"asks\.yaml:\d+: measure\.values\.1 = .*no protocol 'lamagen'; did you mean llamagen"):
        asking(tmp_path, "psnr", "ssim@lamagen").expand(Places.find())


@pytest.mark.parametrize("name", protocols())
def test_what_shipped_protocols_prepare_is_in_their_identity(name: str) -> None:
    """Only what is said: a field that is added to Prepare later moves no value that never resized."""
    protocol = load_protocol(name)
    for value in protocol.values:
        said = protocol.prepared(value)
        assert said["round"] in ("8bit", "truncate", "none") and (len(said) == 1) == ("resize" not in said)


def test_a_protocol_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="sharpen"):
        Prepare.model_validate({"round": "8bit", "sharpen": True})
    with pytest.raises(ValueError, match="round"):
        Protocol.model_validate({"name": "x", "description": "", "prepare": {"round": "8bit"},
                                 "values": {"psnr": {"metric": "psnr", "prepare": {"round": "half"}}}})
    with pytest.raises(ValueError, match="holds no @"):
        Protocol.model_validate({"name": "x", "description": "", "prepare": {"round": "8bit"},
                                 "values": {"psnr@y": {"metric": "psnr"}}})


# -- one pass ------------------------------------------------------------------------------------------------


def test_one_pass_gives_what_a_pass_for_each_gives() -> None:
    metrics = {"psnr": PSNR, "floats": PSNR, "ssim": SSIM, "truncated": SSIM}
    ways = {"floats": {"round": "none"}, "truncated": {"round": "truncate"}}
    images, tokenizer = pictures(), Dimmed()
    together = measure(tokenizer, images, {n: m() for n, m in metrics.items()}, prepare=ways, device=CPU, batch_size=3)
    for name, metric in metrics.items():
        alone = measure(tokenizer, images, {name: metric()}, prepare=ways, device=CPU, batch_size=7)[name]
        assert together[name].number == pytest.approx(alone.number, abs=1e-8)
    assert together["psnr"].number != together["floats"].number and together["ssim"].number != together["truncated"].number


def test_kept_reconstructions_are_those_that_are_measured() -> None:
    kept: dict[int, Tensor] = {}
    images = pictures()
    measure(Dimmed(), images, {"psnr": PSNR()}, device=CPU, batch_size=3, keep=lambda i, x: kept.update({i: x}))
    found = torch.cat([kept[i] for i in sorted(kept)])
    expected = (0.9 * to_model(torch.from_numpy(images))).mul(127.5).add(128).to(torch.uint8)
    assert sorted(kept) == [0, 3, 6] and torch.equal(found, expected)


@pytest.mark.parametrize(("gain", "constant"), [(0.0, True), (0.9, False)])
def test_one_picture_for_all_images_is_told(gain: float, constant: bool) -> None:
    found = measure(Dimmed(gain), pictures(), {"psnr": PSNR()}, device=CPU, batch_size=2)
    assert found["psnr"].details.get("constant") == (1.0 if constant else None)
    single = measure(Dimmed(gain), pictures(1), {"psnr": PSNR()}, device=CPU, batch_size=2)
    assert "constant" not in single["psnr"].details             # of one image, every output is one picture


# -- what is kept of the originals -----------------------------------------------------------------------------


class Brightness(Metric):
    """Difference of mean brightness; looks at the originals only when it must."""

    title, unit, direction = "Brightness", "", "none"
    originals = ("before",)

    def __init__(self, network: str | None = "eye") -> None:
        self.network = network
        self.looked = 0

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        self.known = False
        self.before = torch.zeros((), dtype=torch.float64)
        self.after = torch.zeros((), dtype=torch.float64)

    def reference(self) -> str | None:
        return self.network

    def take_originals(self, sums: Mapping[str, Tensor] | None) -> None:
        self.known = True
        if sums is not None:
            self.before = sums["before"]

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        if not self.known:
            self.looked += len(images)
            self.before += images.double().sum()
        self.after += output.reconstruction.double().sum()

    def sums(self) -> dict[str, Tensor]:
        return {"before": self.before, "after": self.after}

    def compute(self, sums: Mapping[str, Tensor]) -> float:
        return float(sums["after"] - sums["before"])


def test_sums_over_the_originals_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()

    def once(images: np.ndarray, gain: float = 0.9, network: str | None = "eye", rounding: str = "8bit",
             cache: Path | None = tmp_path) -> tuple[float, int]:
        metric = Brightness(network)
        found = measure(Dimmed(gain), images, {"x": metric}, prepare={"x": {"round": rounding}}, cache=cache, device=CPU,
                        batch_size=3)
        return found["x"].number, metric.looked

    first, looked = once(images)
    assert looked == 7
    assert once(images) == (first, 0)                                       # the same number without a look
    assert once(images.copy()) == (first, 0)                                # by content, not by file
    without = once(images, gain=0.5, cache=None)
    assert once(images, gain=0.5) == (without[0], 0)                        # another tokenizer
    changed = images.copy()
    changed[3, 1, 2, 5] ^= 1
    assert once(changed)[1] == 7 and once(images[:5])[1] == 5               # other images
    assert once(images, network="ear")[1] == 7 and once(images, rounding="truncate")[1] == 7
    assert once(images, network=None)[1] == 7 and once(images, network=None)[1] == 7
    with monkeypatch.context() as patch:
        patch.setattr(Brightness, "revision", 2, raising=False)             # other arithmetic
        assert once(images)[1] == 7
    for file in (tmp_path / "originals").iterdir():
        file.write_bytes(file.read_bytes()[:100])                           # damaged: computed again
    assert once(images) == (first, 7) and once(images) == (first, 0)
