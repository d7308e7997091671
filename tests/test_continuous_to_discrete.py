"""SF-DiVeQ and GaussianQuant: against dense formulas in float64, and what the published code gave."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import same
from torch import Tensor
from torch.distributions import Normal

from bench.types import LatentShape
from implementations.quantizers import sf_diveq as sf_diveq_module
from implementations.quantizers.gaussian_quant import GaussianQuant, gaussian_points
from implementations.quantizers.grouped import Grouped
from implementations.quantizers.sf_diveq import SFDiVeQ, nearest_segments

SHAPE = LatentShape(positions=12, dim=6, grid=(3, 4))
ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "tests" / "parity"


def golden(file: str, case: str) -> dict[str, Tensor]:
    with np.load(PARITY / f"{file}.npz") as arrays:
        return {name.split("/")[1]: torch.from_numpy(arrays[name]) for name in arrays if name.split("/")[0] == case}


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), theirs, rtol=tolerance, atol=tolerance)


def latents(width: int = 6, batch: int = 3, seed: int = 1, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SHAPE.positions, width, generator=generator) * scale


# -- SF-DiVeQ ----------------------------------------------------------------------------------------------


def segment_distances(z: Tensor, e: Tensor) -> Tensor:
    """[N, K-1] in float64, by the nearest point of each segment."""
    z, a, b = z.double()[:, None], e.double()[None, :-1], e.double()[None, 1:]
    s = b - a
    t = (((z - a) * s).sum(-1) / s.square().sum(-1).clamp_min(1e-300)).clamp(0, 1)
    return (z - a - t[..., None] * s).square().sum(-1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 90), d=st.integers(1, 9), k=st.integers(2, 40), seed=st.integers(0, 2**16))
def test_the_nearest_segment_is_the_nearest_to_rounding(n: int, d: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, e = (torch.randn(rows, d, generator=generator) for rows in (n, k))
    before, sf_diveq_module.BLOCK_BYTES = sf_diveq_module.BLOCK_BYTES, 16 * 4 * k       # several blocks
    try:
        codes = nearest_segments(z, e)
    finally:
        sf_diveq_module.BLOCK_BYTES = before
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < k - 1
    distances = segment_distances(z, e)
    excess = distances.gather(1, codes[:, None])[:, 0] - distances.min(1).values
    assert (excess <= 1e-5 * (1 + z.double().square().sum(1) + e.double().square().sum(1).max())).all()


def test_at_a_corner_the_segment_with_the_nearer_middle_is_taken() -> None:
    e = torch.tensor([[-4.0, 0.0], [0.0, 0.0], [1.0, -1.0], [30.0, -40.0]])
    corner = torch.tensor([[0.0, 0.5], [0.1, 2.0], [0.0, 1.0]])         # nearest to code 1 from above
    distances = segment_distances(corner, e)
    assert torch.equal(distances[0, :1], distances[0, 1:2])             # so both of its segments are equally near
    assert nearest_segments(corner[:1], e).tolist() == [1]              # middles (-2, 0) and (0.5, -0.5)
    mirrored = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [4.0, 0.0]])
    assert nearest_segments(torch.tensor([[0.0, 0.5]]), mirrored).tolist() == [0]


def test_segments_do_not_depend_on_the_rest_of_the_batch_nor_break_on_repeated_codes() -> None:
    z, e = latents().flatten(0, 1), latents(seed=2).flatten(0, 1)[:9]
    e[4] = e[5]
    whole = nearest_segments(z, e)
    assert torch.equal(torch.cat([nearest_segments(row, e) for row in z.split(1)]), whole)
    assert not (whole == 4).all()


def test_sf_diveq_trains_by_the_published_formula() -> None:
    torch.manual_seed(0)
    quantizer = SFDiVeQ(SHAPE, codebook_size=9, noise_std=0.05, init="normal").train()
    given, mix = latents().requires_grad_(), latents(seed=3)
    torch.manual_seed(4)
    out = quantizer(given)
    ours = [out.quantized.detach(), *torch.autograd.grad((out.quantized * mix).sum(), (given, quantizer.codebook))]

    torch.manual_seed(4)
    share = torch.rand(8, 1)
    noise = [torch.randn(36, 6).double() * 0.05 for _ in range(2)]
    z = given.detach().double().flatten(0, 1).requires_grad_()
    e = quantizer.codebook.detach().double().requires_grad_()
    share = share.double()
    points = (1 - share) * e[:-1] + share * e[1:]
    codes = (z[:, None] - points[None]).square().sum(-1).argmin(1)
    q = z
    for end, weight, shift in ((codes, 1 - share[codes], noise[0]), (codes + 1, share[codes], noise[1])):
        towards = (e[end] - z).detach() + shift
        unit = towards / towards.norm(dim=1, keepdim=True)
        q = q + (e[end] - z).square().sum(1, keepdim=True).sqrt() * weight * unit
    plain = [q.detach().view(3, 12, 6), *torch.autograd.grad((q.view(3, 12, 6) * mix.double()).sum(), (z, e))]
    assert torch.equal(out.codes.flatten(), codes) and out.losses == {}
    plain[1] = plain[1].view(3, 12, 6)
    for mine, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)
    noiseless = SFDiVeQ(SHAPE, codebook_size=9, noise_std=0.0, init="normal").train()
    torch.manual_seed(4)
    on_curve = noiseless(latents()).quantized.flatten(0, 1)             # without noise exactly a point of the curve
    assert segment_distances(on_curve.detach(), noiseless.codebook.detach()).min(1).values.max() < 1e-10


def test_evaluation_hands_out_middles() -> None:
    quantizer = SFDiVeQ(SHAPE, codebook_size=9, init="normal").eval()
    out = quantizer(latents())
    e = quantizer.codebook.detach()
    middles = (e[:-1] + e[1:]) / 2
    assert quantizer.layout.vocab_sizes == (8,) and torch.equal(quantizer.codebooks()[0], middles)
    assert torch.equal(out.quantized, middles[out.codes[..., 0]])
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)


def skip(quantizer: SFDiVeQ, steps: range, micro_batches: int = 1) -> list[Tensor]:
    seen = []
    for step in steps:
        quantizer.before_step(step)
        given = latents(batch=4, seed=100 + step)
        for part in given.chunk(micro_batches):
            assert torch.equal(quantizer.train()(part).quantized, part)     # nothing is quantized
        quantizer.after_step(step)
        seen.append(given.flatten(0, 1))
    return seen


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_codes_begin_as_means_of_chunks_of_the_last_skipped_steps(micro_batches: int) -> None:
    quantizer = SFDiVeQ(SHAPE, codebook_size=10, skip_steps=7, average_steps=3)
    first = quantizer.codebook.detach().clone()
    assert first.min() >= 0 and first.max() <= 0.1                      # one-sided
    seen = skip(quantizer, range(6), micro_batches)
    assert torch.equal(quantizer.codebook, first)
    resumed = SFDiVeQ(SHAPE, codebook_size=10, skip_steps=7, average_steps=3)
    resumed.load_state_dict(quantizer.state_dict())
    for each in (quantizer, resumed):
        last = skip(each, range(6, 7), micro_batches)
    wanted = torch.cat(seen[4:] + last)[:140].view(10, 14, 6).mean(1)   # 144 latents, 14 a chunk, 4 left out
    torch.testing.assert_close(quantizer.codebook.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert not same(quantizer.state_dict(), resumed.state_dict())
    quantizer.before_step(7)
    given = latents(seed=50)
    assert not torch.equal(quantizer(given).quantized, given)           # from now on it quantizes


def test_codes_without_latents_stay_as_drawn() -> None:
    quantizer = SFDiVeQ(SHAPE, codebook_size=60, skip_steps=1)          # average_steps is more: all there are
    first = quantizer.codebook.detach().clone()
    seen, = skip(quantizer, range(1))
    assert torch.equal(quantizer.codebook[:48], seen) and torch.equal(quantizer.codebook[48:], first[48:])


def test_sf_diveq_gives_what_the_published_code_gives() -> None:
    wanted = golden("sf_diveq", "training")
    quantizer = SFDiVeQ(LatentShape(16, 8), codebook_size=16, noise_std=0.01).train()
    quantizer.codebook.data.copy_(wanted["table"])
    given = wanted["latents"].requires_grad_()
    torch.manual_seed(1000)
    out = quantizer(given)
    assert torch.equal(out.codes.flatten(), wanted["codes"].flatten().long())
    close(out.quantized, wanted["quantized"], 2e-6)
    gradients = torch.autograd.grad((out.quantized * wanted["toward"]).sum(), (given, quantizer.codebook))
    for mine, theirs in zip(gradients, (wanted["latents_grad"], wanted["table_grad"]), strict=True):
        close(mine, theirs, 1e-5)


def test_first_codes_are_those_of_the_published_code() -> None:
    wanted = golden("sf_diveq", "start")
    quantizer = SFDiVeQ(LatentShape(16, 8), codebook_size=15, skip_steps=6, average_steps=4).train()
    for step, z in enumerate(wanted["latents"]):
        quantizer.before_step(step)
        quantizer(z)
        quantizer.after_step(step)
    close(quantizer.codebook, wanted["table"], 2e-6)


@pytest.mark.parametrize("keywords, name", [
    ({"codebook_size": 1}, "codebook_size"), ({"noise_std": -1.0}, "noise_std"), ({"skip_steps": -1}, "skip_steps"),
    ({"average_steps": -1}, "average_steps"), ({"codebook_dim": 0}, "codebook_dim"),
])
def test_sf_diveq_refuses_values_out_of_range(keywords: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SFDiVeQ(SHAPE, **keywords)


# -- GaussianQuant -----------------------------------------------------------------------------------------


def dense_scores(given: Tensor, codes: Tensor, beta: float) -> Tensor:
    """[N, K] in float64, from densities."""
    mean, logvar = given.double().flatten(0, 1).chunk(2, 1)
    c = codes.double()
    posterior = Normal(mean[:, None], (0.5 * logvar).exp()[:, None]).log_prob(c[None])
    return (posterior - beta * Normal(0.0, 1.0).log_prob(c)[None]).sum(-1)


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 8), k=st.integers(2, 300), beta=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
       spread=st.sampled_from([0.3, 1.0, 3.0]), seed=st.integers(0, 2**16))
def test_the_code_has_the_largest_ratio_of_densities(d: int, k: int, beta: float, spread: float, seed: int) -> None:
    quantizer = GaussianQuant(SHAPE, codebook_size=k, codebook_dim=d, beta=beta, seed=seed).eval()
    given = latents(2 * d, seed=seed, scale=spread)
    out = quantizer(given)
    scores = dense_scores(given, quantizer.codebook, beta)
    chosen = scores.gather(1, out.codes.flatten()[:, None])[:, 0]
    size = (given.double().flatten(0, 1)[:, d:].neg().exp().sum(1) + beta * d) * 60
    assert (scores.max(1).values - chosen <= 1e-6 * size).all()
    assert torch.equal(out.quantized, quantizer.codebook[out.codes[..., 0]])


def test_beta_matters() -> None:
    given = latents(8)
    found = [GaussianQuant(SHAPE, codebook_size=256, codebook_dim=4, beta=b).eval()(given).codes for b in (0.0, 1.0)]
    assert not torch.equal(*found)


def test_codes_are_points_of_the_unit_gaussian_and_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    points = gaussian_points(4096, 5, 42)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(points, gaussian_points(4096, 5, 42))
    assert not torch.equal(points, gaussian_points(4096, 5, 43))
    assert points.dtype == torch.float32 and points.isfinite().all()
    torch.testing.assert_close(points.mean(0), torch.zeros(5), rtol=0, atol=2e-3)       # random ones: 0.016
    torch.testing.assert_close(points.T.cov(), torch.eye(5), rtol=0, atol=1e-2)
    with pytest.MonkeyPatch.context() as patch:                         # the ends of the interval stay finite
        patch.setattr("torch.quasirandom.SobolEngine.draw", lambda self, n, dtype: torch.tensor([[0.0], [1.0]]))
        assert gaussian_points(2, 1, 0).isfinite().all()


class Published:
    """The authors' controllers in float64: loss of one batch, then the move of the multipliers."""

    def __init__(self, form: str, bits: float) -> None:
        self.form, self.bits, self.lam, self.lam_min, self.lam_max = form, bits, 1.0, 1.0, 1.0

    def step(self, given: Tensor, images: int) -> float:
        mean, logvar = given.double().flatten(0, 1).chunk(2, 1)
        kl = (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).sum(1) / math.log(2)
        total = sum(float(v) * (self.lam_max if v > self.bits + 0.5 else self.lam_min if v < self.bits - 0.5 else 1.0)
                    for v in kl)
        loss = self.lam * total / (images if self.form == "first" else len(kl))
        self.lam *= 1.01 if kl.mean() > self.bits else 1 / 1.01
        if kl.max() > self.bits + 0.5:
            self.lam_max *= 1.01
        elif self.form == "first":
            self.lam_max /= 1.01
        self.lam_min *= 1 / 1.01 if kl.min() < self.bits - 0.5 else 1.01
        largest = 1e3 if self.form == "first" else 1e7
        self.lam_max, self.lam_min = min(max(self.lam_max, 1.0), largest), max(min(self.lam_min, 1.0), 1 / largest)
        return loss


@pytest.mark.parametrize("form", ["first", "second"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_controller_is_the_published_one(form: str, micro_batches: int) -> None:
    quantizer = GaussianQuant(SHAPE, codebook_size=64, codebook_dim=4, form=form).train()
    published, lams = Published(form, 6.0), []
    for step in range(60):
        scale = [0.3, 2.0, 1.2][step // 20]                             # below, above, around 6 bits
        given = latents(8, seed=step, scale=scale)
        whole = [quantizer(part).losses["kl"] for part in given.chunk(micro_batches)]
        wanted = published.step(given, images=3)
        assert float(sum(whole)) / micro_batches == pytest.approx(wanted, rel=1e-4)
        quantizer.after_step(step)
        for name in ("lam", "lam_min", "lam_max"):
            assert float(getattr(quantizer, name)) == pytest.approx(getattr(published, name), rel=1e-4)
        lams.append(published.lam_max)
    assert max(lams) > 1 and min(float(quantizer.lam_min), published.lam_min) < 1     # it did move
    state = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer.after_step(60)                                            # nothing seen: nothing moves
    assert not same(state, dict(quantizer.state_dict()))


@pytest.mark.parametrize("form", ["first", "second"])
def test_gaussian_quant_gives_what_the_published_code_gives(form: str) -> None:
    """They write 1 / ln 2 as 1.4426, which makes their KL 0.007 % smaller."""
    inputs, wanted = golden("gaussian_quant", "inputs"), golden("gaussian_quant", form)
    quantizer = GaussianQuant(LatentShape(16, 4), codebook_size=64, form=form)
    close(quantizer.codebook, inputs["table"], 1e-6)
    for step, z in enumerate(inputs["latents"]):
        z.requires_grad_()
        torch.manual_seed(1000)
        out = quantizer.train()(z)
        kl = out.losses["kl"] * (1.4426 * math.log(2))
        close(kl, wanted["loss"][step], 1e-5)
        gradient, = torch.autograd.grad(out.quantized.sum() + kl, z)
        close(gradient, wanted["latents_grad"][step], 1e-5)
        quantizer.after_step(step)
        for name in ("lam", "lam_min", "lam_max"):
            close(getattr(quantizer, name), wanted[name][step], 1e-6)
        assert torch.equal(quantizer.eval()(z).codes.flatten(), wanted["codes"][step].flatten().long())
    close(out.quantized, wanted["quantized"], 1e-6)


def test_the_multiplier_comes_back_from_both_ends() -> None:
    quantizer = GaussianQuant(SHAPE, codebook_size=16, codebook_dim=4, lam_factor=1e20).train()
    for scale in (5.0, 0.01):
        for _ in range(4):
            quantizer(latents(8, scale=scale))
            quantizer.after_step(0)
        assert 0 < float(quantizer.lam) < math.inf
    assert float(quantizer.lam) < 1


def test_the_kl_has_the_gradient_of_the_plain_formula() -> None:
    quantizer = GaussianQuant(SHAPE, codebook_size=64, codebook_dim=4).train()
    quantizer.lam.fill_(2.0)
    quantizer.lam_max.fill_(3.0)
    quantizer.lam_min.fill_(0.25)
    given = latents(8, scale=1.2).requires_grad_()
    mine, = torch.autograd.grad(quantizer(given).losses["kl"], given)
    mean, logvar = given.detach().double().chunk(2, -1)
    bits = (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).sum(-1, keepdim=True) / math.log(2)
    share = 2.0 * torch.where(bits > 6.5, 3.0, torch.where(bits < 5.5, 0.25, 1.0)) / (3 * math.log(2))
    wanted = torch.cat([mean * share, 0.5 * (logvar.exp() - 1) * share], -1)
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["first", "second"])
def test_training_hands_on_the_sample_or_the_code_with_the_samples_gradient(form: str) -> None:
    quantizer = GaussianQuant(SHAPE, codebook_size=64, codebook_dim=4, form=form).train()
    given, mix = latents(8).requires_grad_(), latents(4, seed=2)
    torch.manual_seed(7)
    out = quantizer(given)
    torch.manual_seed(7)
    noise = torch.randn(36, 4).view(3, 12, 4)
    mean, logvar = given.detach().chunk(2, -1)
    std = (0.5 * logvar).exp()
    wanted = mean + std * noise if form == "first" else quantizer.codebook[out.codes[..., 0]]
    torch.testing.assert_close(out.quantized.detach(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(out.codes, quantizer.eval()(given).codes)
    gradient, = torch.autograd.grad((out.quantized * mix).sum(), given)
    torch.testing.assert_close(gradient, torch.cat([mix, mix * noise * std / 2], -1), rtol=1e-5, atol=1e-6)


def test_grouped_with_one_shared_controller() -> None:
    inner = partial(GaussianQuant, codebook_size=32)
    quantizer = Grouped(SHAPE, quantizer=inner, groups=2, shared=True, loss_reduction="sum").train()
    assert (quantizer.input_dim, quantizer.output_dim) == (12, 6) and quantizer.layout.vocab_sizes == (32, 32)
    given = latents(12)
    loss = float(quantizer(given).losses["kl"])
    per_group = Published("first", 5.0).step(torch.cat(given.chunk(2, -1)), images=3)
    assert loss == pytest.approx(per_group, rel=1e-5)


@pytest.mark.parametrize("keywords, name", [
    ({"codebook_size": 1}, "codebook_size"), ({"codebook_dim": 0}, "codebook_dim"), ({"tolerance": -0.1}, "tolerance"),
    ({"lam_factor": 1.0}, "lam_factor"), ({"logvar_range": (1.0, 1.0)}, "logvar_range"),
])
def test_gaussian_quant_refuses_values_out_of_range(keywords: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GaussianQuant(SHAPE, **{"codebook_size": 16} | keywords)


# -- processes ---------------------------------------------------------------------------------------------


def work(rank: int, world: int, folder: Path) -> None:
    """Three steps on this process's share of each batch; then what every process must agree on."""
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.manual_seed(0)
    curve = SFDiVeQ(SHAPE, codebook_size=9, skip_steps=3, average_steps=2).train()
    gaussian = GaussianQuant(SHAPE, codebook_size=64).train()
    for step in range(3):
        curve.before_step(step)
        curve(latents(batch=4, seed=step).chunk(world)[rank])
        # the KL of the first half is above log2 K bits, that of the second below: alone, each would decide otherwise
        scales = torch.tensor([3.0, 3.0, 0.3, 0.3])[:, None, None]
        gaussian((latents(12, batch=4, seed=step) * scales).chunk(world)[rank])
        curve.after_step(step)
        gaussian.after_step(step)
    told = {"codebook": curve.codebook.tolist(), "lam": [float(getattr(gaussian, n)) for n in ("lam", "lam_min", "lam_max")]}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    if world > 1:
        torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    work(0, 1, tmp_path)
    one = json.loads((tmp_path / "0.json").read_text())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert one["lam"][1] < 1 < one["lam"][2]                            # both ends of the band were left
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == one


if __name__ == "__main__":
    work(int(sys.argv[1]), 2, Path(sys.argv[2]))
