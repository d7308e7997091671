"""The evaluation pass: each image once, 8-bit pixels once, any batches and processes, no made-up numbers."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench import distributed
from bench.errors import BadInput, Incompatible
from bench.evaluate import Measured, measure, share, write_grid
from bench.interfaces import Metric, Quantizer, Tokenizer
from bench.metrics.perplexity import Perplexity
from bench.metrics.psnr import PSNR
from bench.metrics.ssim import SSIM
from bench.metrics.usage import Usage
from bench.prepare import to_8bit
from bench.types import QuantizerOutput, TokenizerOutput, TokenLayout

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


class Rounding(Quantizer):
    """Each of 3 dimensions to the nearest of 8 levels: 3 parallel codes per position."""

    input_dim = output_dim = 3

    def __init__(self, continuous: bool) -> None:
        super().__init__()
        self.continuous = continuous
        self.layout = TokenLayout(16, () if continuous else (8, 8, 8), ((4, 4),))

    def forward(self, latents: Tensor) -> QuantizerOutput:
        if self.continuous:
            return QuantizerOutput(latents, None)
        codes = ((latents + 1) * 3.5).round().clamp(0, 7).long()
        return QuantizerOutput(codes / 3.5 - 1, codes)


class Toy(Tokenizer):
    """Means of 4x4 patches, rounded; a dropout that must be off while measuring."""

    def __init__(self, *, continuous: bool = False, poison: int | None = None) -> None:
        super().__init__()
        self.quantizer = Rounding(continuous)
        self.gain = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.seen = 0
        self.poison = poison
        torch.nn.init.eye_(self.gain.weight[:, :, 0, 0].data)
        with torch.no_grad():
            self.gain.weight.copy_(0.9 * torch.eye(3)[:, :, None, None])
            self.gain.bias.fill_(0.05)

    def encode(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32 and not torch.is_grad_enabled()
        self.seen += len(images)
        return nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)

    def decode(self, quantized: Tensor) -> Tensor:
        h = quantized.transpose(1, 2).unflatten(2, (4, 4)).repeat_interleave(4, 2).repeat_interleave(4, 3)
        h = self.frozen(self.dropout(self.gain(h))) * 1.3                   # beyond [-1, 1] here and there
        if self.poison is not None and self.seen > self.poison:
            h[0, 0, 0, 0] = float("nan")
        return h

    @property
    def last_layer(self) -> nn.Parameter:
        return self.gain.weight


class Identity(Toy):
    def decode(self, quantized: Tensor) -> Tensor:
        return self.images

    def encode(self, images: Tensor) -> Tensor:
        self.images = images
        return super().encode(images)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    return (coarse + rng.integers(-20, 21, coarse.shape)).clip(0, 255).astype(np.uint8)


def metrics() -> dict[str, Metric]:
    return {"psnr": PSNR(), "ssim": SSIM(), "usage": Usage(), "usage_window": Usage(window=100),
            "perplexity": Perplexity(), "perplexity_window": Perplexity(window=100)}


def run(tokenizer: Tokenizer, images: np.ndarray | Tensor, **given) -> dict[str, Measured]:
    return measure(tokenizer, images, given.pop("metrics", metrics()), device=CPU,
                   batch_size=given.pop("batch_size", 8), **given)


def test_numbers_equal_those_of_plain_formulas() -> None:
    images = pictures(21)
    toy = Toy().eval()
    with torch.no_grad():
        x = torch.from_numpy(images).float() / 127.5 - 1
        out = toy(x)
    rounded = np.floor(out.reconstruction.numpy().clip(-1, 1) * 127.5 + 127.5 + 0.5)
    mse = np.square(rounded.astype(np.float64) - images).mean((1, 2, 3))
    found = run(Toy(), images)
    np.testing.assert_allclose(found["psnr"].per_image, 10 * np.log10(255**2 / mse), atol=1e-9)
    assert found["psnr"].number == pytest.approx((10 * np.log10(255**2 / mse)).mean(), abs=1e-9)
    codes = out.codes.numpy().reshape(-1, 3)
    assert found["usage"].number == np.mean([len(np.unique(codes[:, i])) / 8 for i in range(3)])
    last = codes[-100:]
    assert found["usage_window"].number == np.mean([len(np.unique(last[:, i])) / 8 for i in range(3)])
    assert found["usage_window"].details["fill"] == 1 and found["usage"].details["codes"] == 21 * 16
    assert found["usage"].per_image is None
    assert all(m.images == 21 and m.reason is None for m in found.values())


@pytest.mark.parametrize("kind", ["memory map", "tensor"])
@pytest.mark.parametrize("batch_size", [1, 4, 21, 100])
def test_batches_and_storage_do_not_matter(kind: str, batch_size: int, tmp_path: Path) -> None:
    images = pictures(21)
    wanted = run(Toy(), images)
    if kind == "memory map":
        np.save(tmp_path / "images.npy", images)
        given = np.load(tmp_path / "images.npy", mmap_mode="r")
    else:
        given = torch.from_numpy(images)
    toy = Toy()
    calls: list[tuple[int, int]] = []
    found = run(toy, given, batch_size=batch_size, progress=lambda *done: calls.append(done))
    assert toy.seen == 21                       # each image once
    assert calls[-1] == (21, 21) and len(calls) == -(-21 // batch_size)
    for name in wanted:
        assert found[name].number == pytest.approx(wanted[name].number, rel=1e-6)
        assert found[name].details == wanted[name].details
    np.testing.assert_allclose(found["ssim"].per_image, wanted["ssim"].per_image, atol=1e-6)


def test_an_exact_reconstruction_is_exact_in_8_bits() -> None:
    images = np.arange(3 * 16 * 16 * 4, dtype=np.uint32).reshape(4, 3, 16, 16).astype(np.uint8)
    found = run(Identity(), images)
    assert found["psnr"].per_image.tolist() == [100.0] * 4
    assert found["ssim"].number == pytest.approx(1)


def test_8_bit_rounding_is_that_of_torchvision() -> None:
    from torchvision.utils import save_image

    x = torch.linspace(-1.2, 1.2, 3 * 64 * 64).view(1, 3, 64, 64)
    file = io.BytesIO()
    save_image(x, file, "png", normalize=True, value_range=(-1, 1), padding=0)
    written = np.array(Image.open(file)).transpose(2, 0, 1)
    assert np.abs(to_8bit(x)[0].numpy().astype(int) - written).max() == 0
    assert to_8bit(torch.tensor([-9.0, -1, 0, 1, 9], dtype=torch.bfloat16)).tolist() == [0, 0, 128, 255, 255]


def test_training_modes_come_back_and_dropout_is_off() -> None:
    toy = Toy().train()
    toy.frozen.eval()
    numbers = [run(toy, pictures(5))["psnr"].number for _ in range(2)]
    assert numbers[0] == numbers[1]
    assert toy.training and toy.dropout.training and not toy.frozen.training
    with pytest.raises(RuntimeError):           # also after a failure
        run(toy, pictures(5)[:, :, :15, :15])
    assert toy.training and toy.dropout.training and not toy.frozen.training


def test_random_state_and_gradients_are_left_alone() -> None:
    toy = Toy()
    state = torch.random.get_rng_state()
    run(toy, pictures(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled() and all(p.grad is None for p in toy.parameters())


def test_no_number_is_made_up_from_a_reconstruction_that_is_not_finite() -> None:
    found = run(Toy(poison=9), pictures(12), batch_size=4)
    for value in found.values():
        assert value.number is None and value.per_image is None
        assert value.reason == "1 of 12 reconstructions hold values that are not finite"
        assert value.images == 12


def test_a_continuous_tokenizer_has_no_usage_but_a_psnr() -> None:
    found = run(Toy(continuous=True), pictures(6))
    assert found["usage"] == Measured(None, "a continuous tokenizer has no codes to count", images=6)
    assert found["perplexity_window"].number is None and found["psnr"].number > 10


class Refusing(Metric):
    title, unit, direction = "Refusing", "", "none"

    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None:
        raise Incompatible("it cannot be")

    def sums(self) -> dict[str, Tensor]:
        return {"total": torch.zeros(())}

    def compute(self, sums) -> float:
        return 0 / 0


class Endless(Refusing):
    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> None: ...

    def compute(self, sums) -> float:
        return float("inf")


def test_a_metric_that_refuses_does_not_stop_the_others() -> None:
    found = run(Toy(), pictures(3), metrics={"refusing": Refusing(), "endless": Endless(), "psnr": PSNR()})
    assert found["refusing"].reason == "it cannot be" and found["refusing"].number is None
    assert found["endless"].reason == "the result was not finite (inf)" and found["endless"].number is None
    assert found["psnr"].number > 10
    assert list(found) == ["refusing", "endless", "psnr"]


def test_an_empty_split_is_bad_input() -> None:
    with pytest.raises(BadInput, match="empty"):
        run(Toy(), pictures(3)[:0])


@pytest.mark.parametrize("count", [1, 3, 4, 11, 40])
def test_the_grid_shows_originals_beside_reconstructions(count: int, tmp_path: Path) -> None:
    images = pictures(count)
    run(Identity(), images, grid=partial(write_grid, tmp_path / "grid.png"), batch_size=7)
    shown = min(count, 32)
    grid = np.array(Image.open(tmp_path / "grid.png"))
    columns = min(8, 2 * shown)
    assert grid.shape == (-(-2 * shown // columns) * 18 + 2, columns * 18 + 2, 3)
    for i in range(2 * shown):                  # original, reconstruction, original, ...
        top, left = i // columns * 18 + 2, i % columns * 18 + 2
        assert (grid[top : top + 16, left : left + 16] == images[i // 2].transpose(1, 2, 0)).all()
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_a_grey_grid_is_grey(tmp_path: Path) -> None:
    write_grid(tmp_path / "g.png", torch.zeros(2, 1, 5, 5, dtype=torch.uint8), torch.ones(2, 1, 5, 5).byte())
    assert Image.open(tmp_path / "g.png").mode == "L"


@pytest.mark.parametrize("count", [0, 1, 5, 64, 705])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_each_image_once(count: int, world: int) -> None:
    shares = [share(count, rank, world) for rank in range(world)]
    assert [i for a, b in shares for i in range(a, b)] == list(range(count))
    assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


@pytest.mark.parametrize("count", [21, 1])      # with one image, one process has none
def test_two_processes_equal_one(count: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(count), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                              "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    wanted = run(Toy(), pictures(count), grid=partial(write_grid, tmp_path / "one.png"))
    for rank in range(2):                       # not the exit code: gloo may abort after its work is done
        path = tmp_path / f"{rank}.json"
        assert path.is_file(), said[rank]
        found = json.loads(path.read_text())
        for name, value in wanted.items():
            number, per_image, details = found[name]
            assert number == pytest.approx(value.number, rel=1e-6)
            assert details == value.details     # from counts: equal
            if value.per_image is not None:
                np.testing.assert_allclose(per_image, value.per_image, rtol=1e-6)
        assert found["dark"] == [None, "one image is too dark", {}]         # one process alone has seen it
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()


class TooDark(PSNR):
    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> Tensor:
        if 0 in indices:
            raise Incompatible("one image is too dark")
        return super().update(images, output, indices)


def _one_of_two(count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.start()
    toy = Toy()
    found = run(toy, pictures(count), grid=partial(write_grid, folder / "two.png"))
    first, last = share(count, distributed.rank(), 2)
    assert toy.seen == last - first
    found |= run(toy, pictures(count), metrics={"dark": TooDark()})
    assert found["dark"].reason
    text = json.dumps({name: [v.number, v.reason if v.per_image is None else v.per_image.tolist(), v.details]
                       for name, v in found.items()})
    (folder / f"{distributed.rank()}.json").write_text(text)
    distributed.stop()


if __name__ == "__main__":
    _one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
