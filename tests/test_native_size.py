"""Checkpoints measured on pictures of several sizes, each in its own: the numbers of the pictures one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, Bench, suite
from PIL import Image
from tiny import CPU, small

from bench.evaluate import measure
from bench.metrics.psnr import PSNR
from bench.metrics.usage import Usage
from bench.registry import resolve

EXPLORE = ROOT.parent / "shared" / "data" / "models" / "vqvae-explore" / "vqvae.pt"
SIZES = [(64, 48), (48, 64), (64, 48), (48, 64), (48, 64)]             # width, height


def pictures(folder: Path) -> list[np.ndarray]:
    from skimage import data

    folder.mkdir(parents=True)
    found = []
    for i, (width, height) in enumerate(SIZES):
        picture = Image.fromarray(data.astronaut()).crop((i * 60, 40, i * 60 + 4 * width, 40 + 4 * height)).resize((width, height))
        picture.save(folder / f"{i}.png")
        found.append(np.asarray(picture).transpose(2, 0, 1))
    return found


@pytest.mark.parametrize("name", ["vqgan", "vqvae_explore", "taesd"])
def test_a_network_of_convolutions_takes_what_is_not_square(name: str) -> None:
    torch.manual_seed(0)
    square, wide = (small("tokenizer", name).partial()(size).eval() for size in (32, (32, 48)))
    wide.load_state_dict(square.state_dict())
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        assert wide(images).reconstruction.shape == images.shape
        codes = wide.tokenize(images)
        if codes is not None:
            torch.testing.assert_close(wide.detokenize(codes), wide(images).reconstruction)


def test_parts_of_other_sizes_are_measured_as_one_split() -> None:
    torch.manual_seed(0)
    a, b = (small("tokenizer", "vqvae_explore").partial()(size) for size in ((32, 48), (48, 32)))
    b.load_state_dict(a.state_dict())
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 256, (3, 3, 32, 48), np.uint8), generator.integers(0, 256, (2, 3, 48, 32), np.uint8)

    def measured(tokenizer: torch.nn.Module, images: np.ndarray, **others: object) -> dict:
        return measure(tokenizer, images, {"psnr": PSNR(), "usage": Usage()}, device=CPU, batch_size=2, **others)

    whole, of_a, of_b = measured(a, first, others=[(b, second)]), measured(a, first), measured(b, second)
    assert whole["psnr"].images == 5
    assert whole["psnr"].number == pytest.approx((3 * of_a["psnr"].number + 2 * of_b["psnr"].number) / 5, rel=1e-12)
    assert np.allclose(whole["psnr"].per_image, [*of_a["psnr"].per_image, *of_b["psnr"].per_image])
    assert max(of_a["usage"].number, of_b["usage"].number) <= whole["usage"].number <= 1
    assert not whole["psnr"].details.get("constant")


@pytest.mark.skipif(not EXPLORE.is_file(), reason="the shared weights are not here")
def test_a_checkpoint_is_measured_on_pictures_in_their_own_sizes(tmp_path: Path) -> None:
    found = pictures(tmp_path / "data" / "pets" / "test")
    bench = Bench(tmp_path, tmp_path / "cache", {"CUDA_VISIBLE_DEVICES": ""}, stub=False)
    words = ("eval", "--checkpoint", str(EXPLORE), "--format", "explore-vqvae", "dataset.name=image_folder", "dataset.folder=pets",
             "dataset.native=true", "measure.values=[psnr]", "--name", "own", "--data", str(tmp_path / "data"))
    bench(*words, seconds=300)
    record, = (json.loads(line) for line in (tmp_path / "results" / "own" / "records.jsonl").read_text().splitlines())
    assert record["fields"]["dataset.image_size"] == "native"
    value, = record["values"].values()
    from bench.load import load_tokenizer

    wanted = []
    for picture in found:
        tokenizer = load_tokenizer(EXPLORE, format="explore-vqvae", image_size=picture.shape[-2:])
        with torch.no_grad():
            made = tokenizer(torch.from_numpy(picture[None].astype(np.float32)) / 127.5 - 1).reconstruction
        seen = ((made.clamp(-1, 1) + 1) * 127.5).round().double()
        wanted.append(float(10 * torch.log10(255**2 / (seen - torch.from_numpy(picture.astype(np.float64))).square().mean())))
    assert value["images"] == 5 and value["number"] == pytest.approx(np.mean(wanted), abs=1e-4)


def test_what_cannot_be_in_its_own_size_says_so(tmp_path: Path) -> None:
    pictures(tmp_path / "data" / "pets" / "test")
    pictures(tmp_path / "data" / "pets" / "train")
    bench = Bench(tmp_path, tmp_path / "cache", {"CUDA_VISIBLE_DEVICES": ""}, stub=False)
    content = suite(seeds=[0])
    content["base"]["dataset"] = {"name": "image_folder", "folder": "pets", "native": True}
    said = bench("run", str(bench.write(content)), "--launcher", "debug", "--data", str(tmp_path / "data"), code=2, seconds=300)
    assert "are for `bench eval --checkpoint` alone" in said
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        resolve("tokenizer", "vqvae_explore")((64, 50))
