"""Every registered tokenizer, small: resumed bit-equal in the middle of adversarial training, its quantizer in fp32 under
bf16, and two processes with the gradients and the table of one."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_every_tokenizer import TOKENIZERS, picture_batches, pictures, spec_of
from tiny import CPU, MONITORS, images, new_state, same
from torch import Tensor

from bench import distributed
from bench.build import build_model
from bench.data import to_model_range
from bench.train import TrainState, train
from bench.types import Batch, QuantizerOutput

ROOT = Path(__file__).resolve().parents[1]
#: draws noise of its own for every latent, so that two processes draw other than one
NOISY = {"ldm", "dvae"}
every = pytest.mark.parametrize("name", TOKENIZERS)


@every
def test_resumed_in_the_middle_it_ends_bit_equal(name: str) -> None:
    spec = spec_of(name, None, "adversarial", steps=4)
    batches = picture_batches(spec)
    whole, first, second = (new_state(spec, MONITORS) for _ in range(3))
    train(whole, batches, spec, lambda state: False)
    wanted = whole.state_dict()

    def stop(state: TrainState) -> bool:
        return state.step == 2

    torch.manual_seed(1)
    first = new_state(spec, MONITORS)
    train(first, batches, spec, stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    second.load_state_dict(torch.load(file, weights_only=True), CPU)
    assert second.step == 2
    train(second, batches, spec, lambda state: False)
    found = second.state_dict()
    for part in ("step", "model", "objective", "optimizers", "monitors"):
        assert not same(found[part], wanted[part], part)


@every
def test_under_bf16_the_quantizer_computes_in_fp32(name: str) -> None:
    model, _ = build_model(spec_of(name, None))
    model.train()
    # VQ-VAE-2 calls the quantizers of its two grids, one after the other
    used = [model.quantizer] if name != "vqvae2" else list(model.quantizer.parts)
    before = copy.deepcopy(used)
    seen: list[tuple[Tensor, QuantizerOutput]] = []
    for quantizer in used:
        quantizer.register_forward_pre_hook(lambda module, inputs: [None, torch.manual_seed(3)][0])
        quantizer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(pictures()).reconstruction.isfinite().all()
    for quantizer, (latents, out) in zip(before, seen, strict=True):
        torch.manual_seed(3)
        plain = quantizer(latents.float())
        assert not same(out.codes, plain.codes)
        assert out.losses.keys() == plain.losses.keys()
        for key, loss in out.losses.items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, plain.losses[key], rtol=1e-5, atol=1e-7)


# -- processes -----------------------------------------------------------------------------------------------------------


def one_step(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Gradients of one step on a batch of 4 images, of which this process has its share, and the tables after it."""
    model, objective = build_model(spec_of(name, None))
    model.train()
    pixels = torch.from_numpy(images(4, 32))[rank * 4 // world : (rank + 1) * 4 // world]
    batch = Batch(to_model_range(pixels, torch.zeros(len(pixels), dtype=torch.bool), channels_last=False))
    model.before_step(0)
    for update in objective.updates(model, batch, 0):
        update.loss.backward()
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    distributed.average_gradients(list(learned.values()))
    model.after_step(0)
    books = {f"codes {i}": book.detach() for i, book in enumerate(model.quantizer.codebooks())}
    return {n: p.grad for n, p in learned.items() if p.grad is not None} | books


def test_two_processes_have_the_gradients_and_the_tables_of_one(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    names = [name for name in TOKENIZERS if name not in NOISY]
    wanted = {name: one_step(name, 0, 1) for name in names}
    assert [process.wait(900) for process in running] == [0, 0]
    apart = []
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in names:
            assert found[name].keys() == wanted[name].keys() and wanted[name]
            largest = max(float(value.abs().max()) for value in wanted[name].values())
            for key, value in wanted[name].items():
                scale = max(float(value.abs().max()), 1e-3 * largest)       # a bias before a norm has rounding alone
                if (most := float((found[name][key] - value).abs().max()) / scale) > 1e-3:
                    apart.append(f"{name}: {key}: {most:.1e} of {scale:.1e}")
    assert not apart, apart


def work(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: one_step(name, rank, 2) for name in TOKENIZERS if name not in NOISY}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
