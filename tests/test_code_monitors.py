"""Monitors of codes against naive computations; that they change no weight, resume exactly, and add over processes."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, ROOT, batches, new_state, same, train_spec
from torch import Tensor

from bench.distributed import start, stop
from bench.monitors.code_age import CodeAge
from bench.monitors.codebook_gradients import CodebookGradients
from bench.monitors.codebook_movement import CodebookMovement
from bench.monitors.latents import Latents
from bench.train import TrainState, train
from bench.types import TokenizerOutput, TokenLayout

NEW = ("code_age", "codebook_movement", "latents", "codebook_gradients")
VQ = {"name": "vq", "codebook_size": 16, "codebook_dim": 4}
EMA = {"name": "ema_vq", "codebook_size": 16, "codebook_dim": 4, "init": "samples"}
both = pytest.mark.parametrize("quantizer", [VQ, EMA], ids=["vq", "ema_vq"])


def output(codes: Tensor | None, latents: Tensor | None = None, quantized: Tensor | None = None) -> TokenizerOutput:
    nothing = torch.zeros(0)
    return TokenizerOutput(nothing, nothing if latents is None else latents, nothing if quantized is None else quantized, codes)


def tokenizer(*sizes: int, tokens: int = 4, books: tuple[Tensor, ...] = (), tables: tuple[Any, ...] | None = None) -> Any:
    """What a monitor sees of one with these levels."""
    quantizer = SimpleNamespace(codebooks=lambda: books, tables=lambda: tables or (None,) * len(sizes))
    return SimpleNamespace(layout=TokenLayout(tokens, sizes), quantizer=quantizer)


# -- ages ----------------------------------------------------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int, list[list[list[tuple[int, ...]]]]]:
    """(codes per level, first step, steps of micro-batches of rows of one code per level)."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))
    row = st.tuples(*(st.integers(0, k - 1) for k in sizes))
    part = st.lists(row, min_size=1, max_size=5)
    steps = draw(st.lists(st.lists(part, min_size=1, max_size=3), min_size=1, max_size=8))
    return sizes, draw(st.sampled_from([0, 7])), steps


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(0, 4))
def test_ages_are_the_steps_since_a_code_was_last_seen(stream: tuple, dead_after: int) -> None:
    sizes, first, steps = stream
    monitor = CodeAge(dead_after=dead_after)
    monitor.begin(tokenizer(*sizes), CPU)
    for step, parts in enumerate(steps, first):
        for part in parts:
            monitor.observe(output(torch.tensor(part)[None]), step)
        row, arrays = monitor.scalars(), monitor.arrays()
        for level, k in enumerate(sizes):
            end = "" if len(sizes) == 1 else f"/level{level}"
            ages = []
            for code in range(k):               # backwards through all that has been seen
                seen = [s for s, ps in enumerate(steps[: step - first + 1], first) for p in ps for r in p if r[level] == code]
                ages.append(step - seen[-1] if seen else step + 1 - first)
            assert arrays[f"code_ages{end}"].tolist() == ages
            assert float(row[f"code_age_mean{end}"]) == pytest.approx(sum(ages) / k)
            assert float(row[f"code_age_max{end}"]) == max(ages)
            assert float(row[f"dead_codes{end}"]) == pytest.approx(sum(a > dead_after for a in ages) / k)


def test_a_continuous_tokenizer_has_no_ages_and_no_movement() -> None:
    for monitor in (CodeAge(), CodebookMovement(), CodebookGradients()):
        monitor.begin(tokenizer(), CPU)
        monitor.observe(output(None), 0)
        monitor.observe_gradients(tokenizer(), 0)
        assert monitor.scalars() == {} and monitor.arrays() == {}


# -- gradients and movement ----------------------------------------------------------------------------------


def test_gradients_of_a_codebook_that_learns_otherwise_are_none_not_zero() -> None:
    learned = torch.nn.Parameter(torch.ones(3, 2))
    learned.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    books = (torch.ones(3, 2), learned)
    model = tokenizer(3, 3, books=books, tables=(None, learned))
    monitor = CodebookGradients()
    monitor.begin(model, CPU)
    monitor.observe_gradients(model, 0)
    assert {n: a.tolist() for n, a in monitor.arrays().items()} == {
        "code_gradient_norms/level0": [], "code_gradient_norms/level1": [5.0, 0.0, 2.0]}
    row = {n: float(v) for n, v in monitor.scalars().items()}
    assert row == {"codes_with_gradient/level1": pytest.approx(2 / 3), "code_gradient_mean/level1": pytest.approx(7 / 3),
                   "code_gradient_max/level1": 5.0}


def test_the_gradient_of_a_code_is_that_of_the_codebook_loss() -> None:
    """2 n_k / (N D) |e_k - mean of the latents that chose it|, and zero for codes nobody chose."""
    spec = train_spec(VQ, steps=1)
    state = new_state(spec, ("codebook_gradients",))
    books, outputs = [], []

    class Spy(CodeAge):
        def observe(self, output: TokenizerOutput, step: int) -> None:
            outputs.append(output)
            books.append(state.model.quantizer.codebook.detach().clone())

    spy = Spy()
    spy.begin(state.model, CPU)
    state.monitors.append(spy)
    train(state, batches(spec), spec, lambda state: False, watched=lambda step: True)
    found = state.monitors[0].arrays()["code_gradient_norms"]
    latents, codes = outputs[0].latents.detach().flatten(0, 1).double(), outputs[0].codes.flatten()
    for k, code in enumerate(books[0].double()):
        mine = latents[codes == k]
        wanted = 2 * len(mine) / latents.numel() * float((code - mine.mean(0)).norm()) if len(mine) else 0.0
        assert float(found[k]) == pytest.approx(wanted, rel=1e-4, abs=1e-12)
        assert (float(found[k]) == 0) == (len(mine) == 0)


@both
def test_movement_is_the_displacement_per_step_between_two_looks(quantizer: dict) -> None:
    spec = train_spec(quantizer, steps=9)
    state = new_state(spec, ("codebook_movement",))
    books: list[Tensor] = []

    def book() -> Tensor:
        return state.model.quantizer.codebooks()[0].detach().double().clone()

    class Spy(CodeAge):
        def observe(self, output: TokenizerOutput, step: int) -> None:
            books.append(book())                # before the step's move, after a first initialisation

    spy = Spy()
    spy.begin(state.model, CPU)
    state.monitors.append(spy)
    rows: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def look(state: TrainState) -> bool:
        if state.step in (4, 7, 9):
            movement = state.monitors[0]
            rows.append((state.step - 1, movement.arrays()["code_movement"].clone(), movement.scalars()))
        return False

    train(state, batches(spec), spec, look, watched=lambda step: step + 1 in (4, 7, 9))
    before = 0
    for step, moved, row in rows:
        wanted = (books[step] - books[before]).square().sum(1).sqrt() / (step - before)
        assert moved.double().numpy() == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-7)
        assert wanted.max() > 0
        assert float(row["code_movement_max"]) == float(moved.max())
        assert float(row["code_movement_mean"]) == pytest.approx(float(moved.mean()))
        before = step
    assert len(rows) == 3


# -- latents -------------------------------------------------------------------------------------------------


def test_a_sample_holds_tokens_codes_and_rows_of_the_codebooks() -> None:
    generator = torch.Generator().manual_seed(0)
    books = torch.randn(7, 3, generator=generator), torch.randn(50, 2, generator=generator)
    model = tokenizer(7, 50, tokens=6, books=books)
    latents, quantized = torch.randn(5, 6, 4, generator=generator), torch.randn(5, 6, 5, generator=generator)
    codes = torch.stack([torch.randint(k, (5, 6), generator=generator) for k in (7, 50)], -1)
    monitor = Latents(n=20)
    before = torch.get_rng_state()
    monitor.begin(model, CPU)
    monitor.observe(output(codes, latents, quantized), 3)
    monitor.observe(output(codes + 100, latents + 100, quantized), 3)   # a further micro-batch of the step
    monitor.observe_gradients(model, 3)
    found = monitor.arrays()
    assert torch.equal(torch.get_rng_state(), before)
    assert {n: tuple(a.shape) for n, a in found.items()} == {
        "latents": (20, 4), "quantized": (20, 5), "latent_codes": (20, 2),
        "token_vectors/level0": (20, 3), "token_vectors/level1": (20, 2),
        "code_vectors/level0": (7, 3), "code_vectors/level1": (20, 2), "code_sample/level0": (7,), "code_sample/level1": (20,)}
    flat = latents.flatten(0, 1).tolist()
    places = [flat.index(row) for row in found["latents"].tolist()]
    assert places == sorted(set(places)) and len(places) == 20          # each once, in order
    assert torch.equal(found["quantized"], quantized.flatten(0, 1)[places])
    assert torch.equal(found["latent_codes"].long(), codes.flatten(0, 1)[places])
    for level, book in enumerate(books):
        assert torch.equal(found[f"token_vectors/level{level}"], book[codes.flatten(0, 1)[places][:, level]])
        sample = found[f"code_sample/level{level}"].long()
        assert torch.equal(found[f"code_vectors/level{level}"], book[sample])
        assert len(set(sample.tolist())) == len(sample)


def test_codes_that_are_not_one_a_position_are_left_out() -> None:
    monitor = Latents()
    model = tokenizer(9, tokens=5, books=(torch.ones(9, 2),))
    monitor.begin(model, CPU)
    monitor.observe(output(torch.zeros(2, 5, 1, dtype=torch.int64), torch.ones(2, 4, 2), torch.ones(2, 4, 2)), 0)
    monitor.observe_gradients(model, 0)
    assert monitor.arrays().keys() == {"latents", "quantized", "code_vectors", "code_sample"}


def test_a_sample_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        Latents(n=0)


# -- training with them --------------------------------------------------------------------------------------


def trained(quantizer: dict, monitors: tuple[str, ...] = NEW, until: int | None = None,
            saved: dict | None = None) -> tuple[TrainState, list[Any]]:
    """(state, rows and arrays of watched steps) of 12 steps, or of those after a saved state."""
    spec = train_spec(quantizer, accumulation=2)
    state = new_state(spec, monitors)
    if saved is not None:
        state.load_state_dict(saved, CPU)
    looks: list[Any] = []

    def after_step(state: TrainState) -> bool:
        if state.step % 4 == 0:
            looks.append({n: a.clone() for m in state.monitors for n, a in m.arrays().items()})
        if state.step % 2 == 0:
            looks.append(state.terms.read(state.monitors))
        return state.step == until

    train(state, batches(spec), spec, after_step, watched=lambda step: (step + 1) % 2 == 0)
    return state, looks


@both
def test_they_change_no_bit_of_the_weights(quantizer: dict) -> None:
    a, b = (trained(quantizer, m)[0].state_dict() for m in (NEW, ()))
    for part in ("model", "optimizers", "random"):
        assert not same(a[part], b[part])


@both
@pytest.mark.parametrize("stop_at", [1, 6, 7])
def test_a_resumed_run_has_the_same_numbers_bit_for_bit(quantizer: dict, stop_at: int) -> None:
    straight, wanted = trained(quantizer)
    first, looks = trained(quantizer, until=stop_at)
    state, more = trained(quantizer, saved=first.state_dict())
    assert not same([*looks, *more], wanted)
    assert not same(state.state_dict()["monitors"], straight.state_dict()["monitors"])
    movement = [look["code_movement_max"] for look in wanted if "code_movement_max" in look]
    assert all(math.isfinite(m) and m > 0 for m in movement)


def test_looking_reads_no_value_and_so_waits_for_no_device() -> None:
    """On the meta device there are no values: what asks for one, and would wait for a GPU, fails."""
    meta = torch.device("meta")
    books = tuple(torch.empty(k, 3, device=meta) for k in (12, 40))
    model = tokenizer(12, 40, tokens=5, books=books)
    monitors = [CodeAge(), Latents(n=7), CodebookMovement()]
    for monitor in monitors:
        monitor.begin(model, meta)
    for step in range(3):
        for monitor in monitors:
            monitor.observe(output(torch.zeros(2, 5, 2, dtype=torch.int64, device=meta), *torch.empty(2, 2, 5, 3, device=meta)), step)
            monitor.observe_gradients(model, step)
            assert all(a.device == meta for a in (*monitor.scalars().values(), *monitor.arrays().values()))


# -- several processes ---------------------------------------------------------------------------------------


def watched(part: slice) -> dict[str, Any]:
    """What the monitors say of these images of each micro-batch of a stream."""
    generator = torch.Generator().manual_seed(1)
    books = tuple(torch.randn(k, 3, generator=generator) for k in (12, 40))
    model = tokenizer(12, 40, tokens=5, books=books)
    monitors = [CodeAge(dead_after=1), Latents(n=13), CodebookMovement()]
    for monitor in monitors:
        monitor.begin(model, CPU)
    found: dict[str, Any] = {}
    for step in range(4):
        for _ in range(2):
            codes = torch.stack([torch.randint(k, (4, 5), generator=generator) for k in (12, 40)], -1)
            latents, quantized = torch.randn(2, 4, 5, 3, generator=generator)
            for monitor in monitors:
                monitor.observe(output(codes[part], latents[part], quantized[part]), step)
        for monitor in monitors:
            monitor.observe_gradients(model, step)
        found[f"{step}"] = [{**m.scalars(), **m.arrays()} for m in monitors]
        for book in books:
            book += 0.1
        found[f"state{step}"] = [{n: v.clone() for n, v in m.state_dict().items()} for m in monitors]
        monitors[0].load_state_dict(found[f"state{step}"][0])
    return found


def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], text=True, capture_output=True, timeout=100,
        env=os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                          "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"})
    wanted = watched(slice(None))
    for rank in range(2):
        assert (tmp_path / f"{rank}.pt").is_file(), done.stdout + done.stderr
        assert not same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), wanted)


def one_of_two(folder: Path, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    start()
    torch.save(watched(slice(2 * rank, 2 * rank + 2)), folder / f"{rank}.pt")
    stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    other = os.fork()                           # both have imported everything once
    one_of_two(Path(sys.argv[1]), int(other == 0))
    if other:
        os.waitpid(other, 0)
    os._exit(0)
