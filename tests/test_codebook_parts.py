"""The parts of `codebook_vq`: each in the contract of quantizers, and against plain formulas in float64."""

from __future__ import annotations

import hashlib
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import same, small
from torch import Tensor

from bench.interfaces import Incompatible
from bench.registry import available, resolve
from bench.spec import identity
from bench.types import LatentShape
from implementations.codebook.alignments.cross_entropy import CrossEntropy
from implementations.codebook.alignments.orthogonal import Orthogonal
from implementations.codebook.alignments.wasserstein import Wasserstein, gaussian_wasserstein, moments
from implementations.codebook.distances.l2 import L2
from implementations.codebook.gradients.diveq import DiVeQ
from implementations.codebook.gradients.reflection import Reflection
from implementations.codebook.gradients.rotation import Rotation
from implementations.codebook.inits.k_means import KMeans
from implementations.codebook.restarts.cvq import CVQ
from implementations.codebook.restarts.diveq_copy import DiVeQCopy
from implementations.codebook.restarts.random_restart import RandomRestart
from implementations.codebook.updates.ema import EMA
from implementations.codebook.updates.none import NoUpdate
from implementations.quantizers.codebook_vq import CodebookVQ
from implementations.quantizers.ema_vq import EMAVQ
from implementations.quantizers.vq import VQ

SHAPE = LatentShape(positions=12, dim=4, grid=(3, 4))
KINDS = ("distance", "table", "update", "restart", "gradient", "init", "alignment")
PARTS = [(kind, name) for kind in KINDS for name in available(kind)]
every_part = pytest.mark.parametrize("kind, name", PARTS, ids=lambda x: x)


@pytest.fixture(scope="module")
def codes_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("codes") / "codes.npy"
    np.save(path, np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    return path


def written(kind: str, name: str, file: Path) -> dict[str, Any]:
    """Keywords of codebook_vq with this part in it, and what it cannot do without."""
    part: dict[str, Any] = {"name": name}
    if name in ("file", "loaded"):
        part |= {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:12]}
    if name == "wasserstein":
        part["queue"] = 60
    if name in ("diveq_copy", "random_restart"):
        part["every"] = 2
    needs = {("table", "frozen"): {"update": "none"}, ("update", "none"): {"table": "frozen"}}
    return {kind: part, **needs.get((kind, name), {})}


def build(**keywords: Any) -> CodebookVQ:
    torch.manual_seed(0)
    return small("quantizer", "codebook_vq", **keywords).partial()(SHAPE)


def latents(seed: int = 1, batch: int = 3, scale: float = 0.5) -> Tensor:
    return torch.randn(batch, 12, 4, generator=torch.Generator().manual_seed(seed)) * scale


def train_steps(quantizer: CodebookVQ, steps: int = 3, halves: bool = False) -> None:
    """Steps of SGD; each from one batch, or from two halves of it."""
    quantizer.train()
    learned = list(quantizer.parameters())
    for step in range(steps):
        batch = latents(step, batch=4)
        for part in batch.chunk(2) if halves else [batch]:
            z = part.requires_grad_()
            _, loss, _ = quantizer.quantize(z)
            (loss / (2 if halves else 1) + 0 * z.sum()).backward()
        with torch.no_grad():
            for p in learned:
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
        quantizer.after_step(step)


# -- the contract, for every part ------------------------------------------------------------------------------


@every_part
def test_eval_hands_out_the_codes_of_each_image_alone(kind: str, name: str, codes_file: Path) -> None:
    quantizer = build(**written(kind, name, codes_file))
    train_steps(quantizer)
    quantizer.eval()
    z = latents(7)
    out = quantizer(z)
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)
    assert torch.equal(quantizer(z[1:2]).codes, out.codes[1:2])
    assert set(out.losses) == set(quantizer.loss_weights)
    again = quantizer(z)
    assert torch.equal(out.codes, again.codes) and torch.equal(out.quantized, again.quantized)


@every_part
def test_a_stored_quantizer_goes_on_as_the_first(kind: str, name: str, codes_file: Path) -> None:
    first = build(**written(kind, name, codes_file))
    train_steps(first)
    torch.manual_seed(5)
    second = small("quantizer", "codebook_vq", **written(kind, name, codes_file)).partial()(SHAPE)
    second.load_state_dict(first.state_dict())
    for quantizer in (first, second):
        torch.manual_seed(6)
        train_steps(quantizer)
    assert not same(first.state_dict(), second.state_dict())


@every_part
def test_a_step_in_two_halves_moves_the_codes_as_one(kind: str, name: str, codes_file: Path) -> None:
    if (kind, name) in (("gradient", "diveq"), ("init", "samples"), ("init", "k_means")):
        pytest.skip("its noise, or its first batch, is a half")
    if (kind, name) in (("alignment", "entropy"), ("alignment", "contrastive")):
        pytest.skip("the mean assignment of a half, and the nearest of its latents, are others")
    whole, halves = build(**written(kind, name, codes_file)), build(**written(kind, name, codes_file))
    train_steps(whole)
    train_steps(halves, halves=True)
    for key, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(halves.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@every_part
def test_builds_on_the_meta_device_and_gives_gradients(kind: str, name: str, codes_file: Path) -> None:
    with torch.device("meta"), torch.no_grad():
        out = build(**written(kind, name, codes_file))(torch.empty(2, 12, 4))
    assert out.quantized.is_meta and out.codes.shape == (2, 12, 1)
    quantizer = build(**written(kind, name, codes_file)).train()
    z = latents(2).requires_grad_()
    quantized, loss, _ = quantizer.quantize(z)
    (quantized.square().sum() + loss).backward()
    assert z.grad.isfinite().all() and z.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantizer.parameters())


def test_a_part_left_out_is_the_default_written_out() -> None:
    short = small("quantizer", "codebook_vq")
    long = small("quantizer", "codebook_vq", distance={"name": "l2"}, table="free", gradient="straight_through")
    assert identity(short) == identity(long)
    assert identity(short) != identity(small("quantizer", "codebook_vq", distance="cosine"))


def test_composed_parts_are_the_plain_quantizers_bit_for_bit() -> None:
    for plain, parts in ((VQ, {}), (EMAVQ, {"update": "ema"})):
        torch.manual_seed(0)
        one = plain(SHAPE, codebook_size=16)
        torch.manual_seed(0)
        two = CodebookVQ(SHAPE, codebook_size=16, **parts)
        train_steps(one)
        train_steps(two)
        assert torch.equal(one.codebook, two.table.codebook)
        a, b = one.eval()(latents(9)), two.eval()(latents(9))
        assert torch.equal(a.quantized, b.quantized) and not same(a.losses, b.losses)


@pytest.mark.parametrize("keywords, says", [
    ({"table": "linear", "update": "ema"}, "overwrites codes"),
    ({"table": "linear", "restart": "cvq"}, "overwrites codes"),
    ({"table": "frozen"}, "update: none"),
    ({"update": "none"}, "nothing moves"),
    ({"table": "linear", "init": "samples"}, "no codes"),
])
def test_parts_that_contradict_each_other_are_named(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(Incompatible, match=says):
        build(**keywords)


# -- distances ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 30), d=st.integers(1, 9), seed=st.integers(0, 2**16),
       name=st.sampled_from(available("distance")))
def test_each_distance_finds_what_brute_force_finds(n: int, k: int, d: int, seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, e = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    zd, ed = z.double(), e.double()
    scores = {"l2": -torch.cdist(zd, ed, compute_mode="donot_use_mm_for_euclid_dist") ** 2, "dot": zd @ ed.T,
              "cosine": F.normalize(zd, dim=1) @ F.normalize(ed, dim=1).T}[name]
    distance = resolve("distance", name)()
    chosen = scores.gather(1, distance.nearest(z, e)[:, None])[:, 0]
    assert (scores.max(1).values - chosen <= 1e-5 * scores.abs().max()).all()
    torch.testing.assert_close(distance.similarity(z, e).double(), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", available("distance"))
def test_entropy_of_each_distance_is_the_plain_formula(name: str) -> None:
    z, e = latents(3).flatten(0, 1), latents(4).flatten(0, 1)[:9]
    zd, ed = z.double(), e.double()
    if name == "cosine":
        zd, ed = F.normalize(zd, dim=1), F.normalize(ed, dim=1)
    logits = zd @ ed.T if name == "dot" else -(zd[:, None] - ed).square().sum(-1)
    p = (logits / 0.3).softmax(1)
    mean = p.mean(0)
    wanted = torch.special.entr(p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    assert float(resolve("distance", name)().entropy(z, e, 0.3)) == pytest.approx(float(wanted), abs=1e-5)


# -- gradients ---------------------------------------------------------------------------------------------------


def rotation_matrix(z: Tensor, q: Tensor) -> Tensor:
    """The smallest rotation of unit z onto unit q, written out per row [N, D, D] from the plane the two span."""
    matrices = []
    for a, b in zip(z / z.norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True), strict=True):
        cosine = a @ b
        generator = torch.outer(b, a) - torch.outer(a, b)
        matrices.append(torch.eye(len(a), dtype=a.dtype) + generator + generator @ generator / (1 + cosine))
    return torch.stack(matrices)


@pytest.mark.parametrize("form", ["vector", "direction"])
@pytest.mark.parametrize("scale", [True, False])
def test_rotation_is_the_gradient_of_the_constant_rotation(form: str, scale: bool) -> None:
    z, table = latents(3).flatten(0, 1), latents(4).flatten(0, 1)
    codes = torch.arange(len(z)).flip(0)
    q, mix = table[codes], latents(5).flatten(0, 1)
    ours = z.clone().requires_grad_()
    handed = Rotation(form=form, scale=scale).handed(ours, q, table, codes)
    assert torch.equal(handed, q)
    got = torch.autograd.grad((handed * mix).sum(), ours)[0]

    zd = z.double().requires_grad_()
    matrices = rotation_matrix(z.double(), q.double())
    s = (q.double().norm(dim=1) / z.double().norm(dim=1))[:, None] if scale else 1.0
    moving = zd
    if form == "direction":                     # z / |z| with the norm differentiated, brought back to |z| at this point
        moving = zd / zd.norm(dim=1, keepdim=True) * z.double().norm(dim=1, keepdim=True)
    turned = s * torch.einsum("nij,nj->ni", matrices, moving)
    if scale:
        torch.testing.assert_close(turned.detach().float(), q, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad((turned * mix.double()).sum(), zd)[0]
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["vector", "direction"])
def test_reflection_is_the_gradient_of_the_constant_mirror(form: str) -> None:
    z, q, mix = (latents(s).flatten(0, 1) for s in (3, 4, 5))
    ours = z.clone().requires_grad_()
    got = torch.autograd.grad((Reflection(form=form).handed(ours, q, q, torch.arange(len(q))) * mix).sum(), ours)[0]
    zd = z.double().requires_grad_()
    w = F.normalize(F.normalize(z.double(), dim=1) - F.normalize(q.double(), dim=1), dim=1)
    moving = zd
    if form == "direction":
        moving = zd / zd.norm(dim=1, keepdim=True) * z.double().norm(dim=1, keepdim=True)
    mirror = torch.eye(4, dtype=torch.float64) - 2 * w[:, :, None] * w[:, None, :]
    turned = (q.double().norm(dim=1) / z.double().norm(dim=1))[:, None] * torch.einsum("nij,nj->ni", mirror, moving)
    torch.testing.assert_close(turned.detach().float(), q, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad((turned * mix.double()).sum(), zd)[0]
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4)


def test_diveq_moves_latents_and_codes_through_the_length_of_the_error() -> None:
    z, table = latents(3).flatten(0, 1).requires_grad_(), latents(4).flatten(0, 1)[:5].requires_grad_()
    codes = torch.arange(len(z)) % 5
    mix = latents(5).flatten(0, 1)
    handed = DiVeQ(noise_std=0.0).handed(z, table[codes].detach(), table, codes)
    torch.testing.assert_close(handed, table[codes])
    grad_z, grad_table = torch.autograd.grad((handed * mix).sum(), (z, table))
    u = F.normalize(table.detach()[codes] - z.detach(), dim=1)
    along = u * (u * mix).sum(1, keepdim=True)
    torch.testing.assert_close(grad_z, mix - along, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_table, torch.zeros(5, 4).index_add_(0, codes, along), rtol=1e-4, atol=1e-5)


# -- dead codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", available("distance"))
def test_cvq_moves_little_used_codes_to_their_nearest_latent(name: str) -> None:
    distance = resolve("distance", name)()
    book, z = latents(3).flatten(0, 1)[:6].clone(), latents(4).flatten(0, 1)
    before, restart = book.double().numpy().copy(), CVQ(book, anchor="closest", decay=0.99)
    use = np.zeros(6)
    for step, hits in enumerate(([36, 0, 0, 0, 0, 0], [20, 16, 0, 0, 0, 0])):
        similarity = distance.similarity(torch.tensor(before, dtype=torch.float32), z).double().numpy()
        use = 0.99 * use + 0.01 * np.array(hits) / 36
        alpha = np.exp(-use * 6 * 10 / 0.01 - 1e-3)
        before = (1 - alpha)[:, None] * before + alpha[:, None] * z.double().numpy()[similarity.argmax(1)]
        restart.apply(book, torch.tensor(hits, dtype=torch.float32), z, distance, step)
        np.testing.assert_allclose(book.numpy(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("anchor", ["random", "probabilistic"])
def test_cvq_draws_anchors_from_the_latents(anchor: str) -> None:
    z = latents(4, batch=20).flatten(0, 1)
    book = torch.full((8, 4), 9.0)
    CVQ(book, anchor=anchor).apply(book, torch.zeros(8), z, L2(), 0)
    distance = torch.cdist(book, z + (9.0 - z) * (1 - np.exp(-1e-3))).min(1).values      # alpha = e^-0.001 of the way
    assert (distance < 1e-3).all()


def test_the_pool_of_random_anchors_fills_before_it_is_renewed() -> None:
    book = torch.zeros(30, 4)
    restart = CVQ(book, anchor="random")
    steps = [latents(s, batch=1).flatten(0, 1) for s in range(4)]          # 12 latents a step, 30 codes
    for step, z in enumerate(steps):
        restart.apply(book, torch.ones(30), z, L2(), step)
        if step == 2:
            assert torch.equal(restart.pool, torch.cat(steps[:3])[:30])
    renewed = (restart.pool != torch.cat(steps[:3])[:30]).any(1)
    assert int(renewed.sum()) == 12
    assert {tuple(r) for r in restart.pool[renewed].tolist()} == {tuple(r) for r in steps[3].tolist()}


def test_random_restart_replaces_codes_below_the_threshold_and_no_other() -> None:
    book = torch.arange(24.0).view(6, 4)
    restart, z = RandomRestart(book, threshold=0.5, decay=0.5), latents(4).flatten(0, 1)
    counts = torch.tensor([30.0, 6, 0, 0, 0, 0])
    kept = book.clone()
    assert not restart.apply(book, counts, z, L2(), 0).any()        # 0.5 of even use is not below 0.5
    dead = restart.apply(book, counts, z, L2(), 1)
    assert dead.tolist() == [False, False, True, True, True, True]
    assert torch.equal(book[:2], kept[:2])
    rows = {tuple(r) for r in z.tolist()}
    assert len({tuple(r) for r in book[2:].tolist()} & rows) == 4   # four different latents
    assert torch.equal(restart.use[2:], torch.ones(4))


def test_diveq_copies_living_codes_over_rarely_seen_ones() -> None:
    book = torch.eye(4)
    restart = DiVeQCopy(book, every=4, fewest=0.5)
    for step, hits in enumerate([[9, 1, 1, 0], [9, 1, 0, 0], [9, 0, 0, 0], [9, 0, 0, 0]]):
        dead = restart.apply(book, torch.tensor(hits, dtype=torch.float32), None, L2(), step)
    assert dead.tolist() == [False, False, True, True]              # 4, 2, 1 and 0 of 4 steps
    assert torch.equal(book[:2], torch.eye(4)[:2])
    assert all(torch.cdist(row[None], torch.eye(4)[:2]).min() < 1e-6 for row in book[2:])
    assert not restart.seen.any()


def test_averages_of_a_restarted_code_begin_anew() -> None:
    for policy in ("freeze", "laplace", "zero_debiased"):
        book = latents(3).flatten(0, 1)[:4].clone()
        update = EMA(book, decay=0.9, zero_count=policy)
        update.begin(book, first_batch=False)
        counts, sums = torch.tensor([5.0, 3, 0, 0]), torch.randn(4, 4)
        sums[2:] = 0
        update.apply(book, counts, sums)
        book[2:] = 7.0
        update.restarted(torch.tensor([False, False, True, True]), book)
        update.apply(book, counts, sums)
        if policy == "freeze":
            assert torch.equal(book[2:], torch.full((2, 4), 7.0))
        else:
            torch.testing.assert_close(book[2:], torch.full((2, 4), 7.0), rtol=0.05, atol=0)


# -- alignment and initialisation --------------------------------------------------------------------------------


def test_wasserstein_is_the_formula_with_matrix_roots() -> None:
    z, e = latents(3, batch=9).flatten(0, 1).double(), latents(4, scale=1.0).flatten(0, 1).double().requires_grad_()
    ours = gaussian_wasserstein(*moments(z), *moments(e))
    (mean_z, cov_z), (mean_e, cov_e) = moments(z), moments(e.detach())
    root = scipy.linalg.sqrtm(cov_z.numpy())
    cross = scipy.linalg.sqrtm(root @ cov_e.numpy() @ root)
    wanted = np.sqrt(((mean_z - mean_e) ** 2).sum().item() + np.trace(cov_z.numpy() + cov_e.numpy() - 2 * cross.real))
    assert ours.item() == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: gaussian_wasserstein(*moments(z), *moments(x)), (e,))


def test_wasserstein_looks_at_the_newest_latents_of_past_steps() -> None:
    book = torch.zeros(8, 4)
    part = Wasserstein(book, queue=30)
    assert float(part(latents().flatten(0, 1), book, L2())["wasserstein"]) == 0
    steps = [latents(s, batch=1).flatten(0, 1) for s in range(5)]
    for z in steps:
        part.after_step(z)
    newest = torch.cat(steps)[-30:]
    assert {tuple(r) for r in part.past.tolist()} == {tuple(r) for r in newest.tolist()}
    table = latents(9).flatten(0, 1)
    ridge = 1e-6 * torch.eye(4)
    (mean, cov), (m, c) = moments(newest), moments(table)
    wanted = gaussian_wasserstein(mean, cov + ridge, m, c + ridge)
    torch.testing.assert_close(part(newest, table, L2())["wasserstein"], wanted, rtol=1e-4, atol=1e-5)


def test_cross_entropy_is_torchs_of_the_distances_and_pushes_every_other_code_away() -> None:
    z = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    distances = (z[:, None] - table[None]).square().sum(-1).sqrt()
    expected = F.cross_entropy(-distances, distances.argmin(1))
    gradients = torch.autograd.grad(expected, (z, table))
    found = CrossEntropy(table)(z, table, L2())["cross_entropy"]
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, (z, table)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)

    one, book = torch.tensor([[0.1, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    CrossEntropy(book)(one, book, L2())["cross_entropy"].backward()
    towards = ((one - book) * -book.grad).sum(1).detach()
    assert towards[0] > 0 and (towards[1:] < 0).all()


def test_orthogonal_is_the_mean_over_all_pairs() -> None:
    table = latents(4).flatten(0, 1)
    unit = F.normalize(table.double(), dim=1)
    pairs = (unit @ unit.T).square()
    wanted = (pairs.sum() - pairs.diagonal().sum()) / len(table) ** 2
    assert float(Orthogonal(table)(table, table, L2())["orthogonal"]) == pytest.approx(float(wanted), rel=1e-4)


def test_the_projected_table_begins_as_optvqs() -> None:
    """Rows N(0, 1) and a map N(0, 1/D) of the codes' width D; by default rows N(0, 1/width) and torch's own map."""
    shape, torchs = LatentShape(positions=4, dim=64, grid=(2, 2)), (3 * 64) ** -0.5
    for table, init, rows, weight in ((partial(resolve("table", "projected"), map="normal"), "normal", 1.0, 64**-0.5),
                                      ("projected", None, 64**-0.5, torchs)):
        torch.manual_seed(0)
        table = CodebookVQ(shape, codebook_size=512, table=table, init=init).table
        assert float(table.codebook.detach().std()) == pytest.approx(rows, rel=0.03)
        assert float(table.map.weight.detach().std()) == pytest.approx(weight, rel=0.05)


def test_k_means_finds_clusters_and_never_gets_worse() -> None:
    centres = torch.tensor([[5.0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0]])
    z = (centres[torch.arange(90) % 3] + 0.1 * latents(3, batch=8).flatten(0, 1)[:90])

    def spread(iterations: int) -> float:
        return float(torch.cdist(z, KMeans(iterations=iterations).draw_from(z, 6)).min(1).values.square().sum())

    spreads = [spread(i) for i in range(6)]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(spreads)) and spreads[-1] < spreads[0]


def test_files_are_known_by_their_content(codes_file: Path, tmp_path: Path) -> None:
    digits = hashlib.sha256(codes_file.read_bytes()).hexdigest()
    quantizer = build(init={"name": "file", "file": str(codes_file), "sha256": digits})
    np.testing.assert_array_equal(quantizer.codebooks()[0].detach().numpy(), np.load(codes_file))
    tensor = tmp_path / "codes.pt"
    torch.save(torch.from_numpy(np.load(codes_file)), tensor)
    digest = hashlib.sha256(tensor.read_bytes()).hexdigest()[:8]
    loaded = build(table={"name": "loaded", "file": str(tensor), "sha256": digest, "projector": "none"}, update="none")
    np.testing.assert_array_equal(loaded.codebooks()[0].numpy(), np.load(codes_file))
    for keywords, says in (
        ({"init": {"name": "file", "file": str(codes_file), "sha256": "0" * 12}}, f"has {digits[:16]}"),
        ({"init": {"name": "file", "file": str(codes_file), "sha256": digits[:4]}}, "8 or more digits"),
        ({"init": {"name": "file", "file": "nowhere.npy", "sha256": digits}}, "no such file"),
        ({"init": {"name": "file", "file": str(codes_file), "sha256": digits}, "codebook_size": 8}, "holds 16 codes"),
        ({"table": {"name": "loaded", "file": str(codes_file), "sha256": digits}, "codebook_size": 8}, "holds 16 codes"),
    ):
        with pytest.raises(ValueError, match=says):
            build(**keywords)


# -- in somebody's own project -----------------------------------------------------------------------------------


def test_parts_are_passed_half_built_in_python() -> None:
    quantizer = CodebookVQ(SHAPE, codebook_size=16, update=partial(EMA, decay=0.9),
                           restart=partial(CVQ, anchor="random"), gradient=Rotation)
    train_steps(quantizer)
    assert quantizer.update.decay == 0.9 and quantizer.loss_weights == {"commitment": 0.25}
    moved = CodebookVQ(SHAPE, codebook_size=16, update=partial(NoUpdate, commitment=False), gradient=DiVeQ)
    before = moved.table.codebook.detach().clone()
    out = moved.train()(latents())
    out.quantized.square().sum().backward()
    assert moved.loss_weights == {} and moved.table.codebook.grad.abs().max() > 0
    assert torch.equal(before, moved.table.codebook)
