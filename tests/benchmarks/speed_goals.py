"""The speeds this project has set itself on a CPU, side by side with vector-quantize-pytorch, faiss and plain formulas.

    OMP_NUM_THREADS=2 python tests/benchmarks/speed_goals.py [--threads 2] [--rounds 7] [--only forward,search,memory,...]

Prints one Markdown row per goal: goal, measured, verdict. All cases of a group take turns, round by round, and medians
are compared; each ratio comes with the range from its least to its largest round. Nothing is asserted: machines are
noisy, and how busy this one was is printed below the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.monitors.codebook_usage import CodebookUsage
from bench.oracle import check_codes
from bench.profile import Sample, Subject, peer_cases, peers_of, quantizer_cases, reference_cases, threads_of
from bench.stopwatch import Watched, extra_memory, machine, watch
from bench.timings import Size
from bench.types import LatentShape, TokenizerOutput
from implementations.quantizers.ema_vq import EMAVQ
from implementations.search.averages import move_to_means
from implementations.search.kernel import library
from implementations.search.nearest import nearest_codes
from implementations.search.statistics import add_statistics
from implementations.vqvae import VQVAE

CPU = torch.device("cpu")
MIB = 2**20
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    goal: str
    measured: str
    reached: bool


def without_kernel(call: Call) -> Call:
    """The same call on torch and numpy alone."""

    def wrapped() -> object:
        before = os.environ.get("BENCH_KERNELS")
        os.environ["BENCH_KERNELS"] = "0"
        try:
            return call()
        finally:
            os.environ.pop("BENCH_KERNELS") if before is None else os.environ.update(BENCH_KERNELS=before)

    return wrapped


def timed(calls: Mapping[str, Call], rounds: int) -> dict[str, Watched]:
    found = watch(calls, rounds, CPU)
    for name, watched in found.items():
        if watched.failure:
            raise SystemExit(f"{name}: {watched.failure}")
    return found


def faster(what: str, ours: Watched, other: Watched, least: float) -> Row:
    """Ours has to take at most 1/least of the other's time."""
    ratio = statistics.median(other.seconds) / statistics.median(ours.seconds)
    each = sorted(o / s for s, o in zip(ours.seconds, other.seconds, strict=True))
    times = f"{milliseconds(ours)} against {milliseconds(other)} ms"
    return Row(what, f"≤ 1/{least:g}", f"1/{ratio:.1f} (1/{each[0]:.1f} to 1/{each[-1]:.1f}); {times}", ratio >= least)


def within(what: str, ours: Watched, other: Watched, most: float) -> Row:
    """Ours has to take at most `most` times the other's time."""
    ratio = statistics.median(ours.seconds) / statistics.median(other.seconds)
    each = sorted(s / o for s, o in zip(ours.seconds, other.seconds, strict=True))
    times = f"{milliseconds(ours)} against {milliseconds(other)} ms"
    return Row(what, f"≤ {most:g}×", f"{ratio:.2f}× ({each[0]:.2f} to {each[-1]:.2f}); {times}", ratio <= most)


def milliseconds(watched: Watched) -> str:
    return f"{1e3 * statistics.median(watched.seconds):.3g}"


# -- groups ----------------------------------------------------------------------------------------------------------


def ours(name: str, sample: Sample, what: str, **keywords: object) -> Call:
    case, = quantizer_cases(Subject(name, keywords), sample, [what], CPU)
    return case


def theirs(name: str, form: str, sample: Sample, what: str) -> Call:
    case, = peer_cases(name, peers_of([name])[name], form, {}, sample, sample.size.d, [what], CPU)
    return case


def forward(rounds: int) -> Iterator[Row]:
    """A training step of the quantizer: forward, backward, the EMA update; peers' are the same by their defaults."""
    sample = Sample.draw(Size(65536, 64, 512), CPU, torch.float32)
    found = timed({"ours": ours("ema_vq", sample, "train"), "package": theirs("vector_quantize_pytorch", "EMA", sample, "train"),
                   "naive": theirs("naive", "VQ", sample, "train")}, rounds)
    yield faster("forward+backward 65536×64×512, EMA, against vector-quantize-pytorch's", found["ours"], found["package"], 14)
    yield faster("the same against the naive formula", found["ours"], found["naive"], 8)
    sample = Sample.draw(Size(4096, 8, 16384), CPU, torch.float32)
    calls = {"plain": without_kernel(ours("ema_vq", sample, "train")), "package": theirs("vector_quantize_pytorch", "EMA", sample, "train")}
    if library() is not None:
        calls["kernel"] = ours("ema_vq", sample, "train")
    found = timed(calls, rounds)
    yield faster("forward+backward 4096×8×16384, no compiler, against vector-quantize-pytorch", found["plain"], found["package"], 35)
    if "kernel" in found:
        yield faster("the same, with kernel", found["kernel"], found["package"], 75)


def search(rounds: int) -> Iterator[Row]:
    """Codes alone, as faiss returns them; right codes are a condition. The floor is the faster of two products."""
    for size, most in ((Size(65536, 64, 512), 0.75), (Size(16384, 64, 4096), 0.75), (Size(16384, 256, 1024), 0.75),
                       (Size(16384, 32, 1024), 0.75), (Size(4096, 8, 16384), 2.5), (Size(16384, 4, 1024), 2.5)):
        sample = Sample.draw(size, CPU, torch.float32)
        calls: dict[str, Call] = {"ours": lambda s=sample: nearest_codes(s.latents, s.table), "faiss": theirs("faiss", "flat", sample, "search")}
        if size.d < 32:
            calls["plain"] = without_kernel(calls["ours"])
        references = reference_cases(sample, CPU)[:2]
        calls |= {case.fields["name"]: case for case in references}
        found = timed(calls, rounds)
        wrong = check_codes(sample.latents, sample.table, calls["ours"]()).wrong
        kernel = " with kernel" if size.d < 32 and library() is not None else ""
        note = f"; {wrong} wrong codes" if wrong else ""
        yield within(f"search {size}{kernel} against faiss flat{note}", found["ours"], found["faiss"], most)
        if kernel:
            yield within(f"search {size} no compiler against faiss flat", found["plain"], found["faiss"], most)
        if size.d >= 64:
            best = min((found[case.fields["name"]] for case in references), key=lambda w: statistics.median(w.seconds))
            scale = 2 * size.n * size.d * size.k / references[0].fields["flops"]
            floor = Watched(1, [scale * s for s in best.seconds])
            yield within(f"search {size} against the arithmetic floor", found["ours"], floor, 1.7)


def memory(rounds: int) -> Iterator[Row]:
    """Above what a warm call finds, results included; not timed."""
    for size in (Size(65536, 64, 512), Size(16384, 256, 16384), Size(262144, 8, 1024), Size(4096, 8, 262144)):
        sample = Sample.draw(size, CPU, torch.float32)
        search = partial(nearest_codes, sample.latents, sample.table)
        for how, run in {"": search, ", no compiler": without_kernel(search)}.items():
            run()
            need, by = extra_memory(run, CPU)
            yield amount(f"extra memory of a search {size}{how}", need, by, 32 * MIB)
    for size in (Size(65536, 64, 512), Size(4096, 8, 16384)):
        sample = Sample.draw(size, CPU, torch.float32)
        train = ours("ema_vq", sample, "train")
        train()
        need, by = extra_memory(train, CPU)
        yield amount(f"extra memory of a training step {size} (6× latents + 32 MiB)", need, by, 6 * sample.latents.nbytes + 32 * MIB)
    sample = Sample.draw(Size(16384, 64, 262144), CPU, torch.float32)
    need, by = extra_memory(lambda: ours("ema_vq", sample, "train")(), CPU)         # one call: no warm-up, built within
    yield amount("16384×64×262144, EMA: building it and a training step", need, by, 1024 * MIB)


def amount(what: str, need: int | None, by: str, most: int) -> Row:
    if need is None:
        return Row(what, f"≤ {most / MIB:.0f} MiB", by, False)
    return Row(what, f"≤ {most / MIB:.0f} MiB", f"{need / MIB:.1f} MiB", need <= most)


def update(rounds: int) -> Iterator[Row]:
    n, d, k = 65536, 64, 512
    z, codes = torch.randn(n, d), torch.randint(k, (n,))
    codebook, counts, sums = torch.randn(k, d), torch.zeros(k), torch.zeros(k, d)
    mean_counts, mean_sums, updates = torch.ones(k), codebook.clone(), torch.zeros((), dtype=torch.int64)

    def move(new_counts: Tensor, new_sums: Tensor) -> None:
        move_to_means(codebook, mean_counts, mean_sums, updates, new_counts, new_sums, decay=0.99, zero_count="freeze", epsilon=1e-5)

    def by_index() -> None:
        add_statistics(counts.zero_(), sums.zero_(), codes, z)
        move(counts, sums)

    def by_table() -> None:
        table = F.one_hot(codes, k).float()
        move(table.sum(0), table.T @ z)

    found = timed({"index": by_index, "table": by_table}, rounds)
    yield faster(f"EMA update {n}×{d}×{k} against the one-hot matmul", found["index"], found["table"], 50)


def usage(rounds: int) -> Iterator[Row]:
    window, n = 65536, 4096
    for k in (512, 16384):
        codes = torch.randint(k, (n,))
        output = TokenizerOutput(codes, codes, codes, codes.view(16, -1, 1))
        monitor = CodebookUsage(window=window)
        monitor.begin(VQVAE(64, quantizer=partial(EMAVQ, codebook_size=k, codebook_dim=4), hidden=8), CPU)
        shifted, joined = torch.randint(k, (window,)), torch.randint(k, (window,))

        def shift(queue: Tensor = shifted, codes: Tensor = codes) -> None:
            queue[:-n] = queue[n:].clone()
            queue[-n:] = codes
            queue.unique()

        def cat(queue: Tensor = joined, codes: Tensor = codes) -> None:
            torch.cat([queue, codes])[-window:].unique()

        found = timed({"ring": lambda m=monitor, o=output: m.observe(o, 0), "shift": shift, "cat": cat}, rounds)
        yield faster(f"usage of {window} codes, {n} new, K = {k}, against shift+unique", found["ring"], found["shift"], 40)
        yield faster(f"the same, K = {k}, against cat+unique", found["ring"], found["cat"], 15)


def implicit(rounds: int) -> Iterator[Row]:
    """Quantizers without a table, against z + 1 into a tensor that is there."""
    for name, bits, keywords in (("fsq", 12, {}), ("lfq", 16, {"entropy": False}), ("bsq", 16, {"entropy": False})):
        sample = Sample.draw(Size(65536, 64, 2**bits), CPU, torch.float32)
        cases = {what: ours(name, sample, what, **keywords) for what in ("search", "train")}
        width = bits if name != "fsq" else 4
        z = sample.of_width(width)
        target = torch.empty_like(z)
        found = timed({**cases, "copy": lambda z=z, target=target: torch.add(z, 1.0, out=target)}, rounds)
        yield within(f"{name} without entropy, 65536 latents of {width}: forward against one read and write", found["search"], found["copy"], 2)
        yield within(f"the same, {name}: forward+backward", found["train"], found["copy"], 2)


def step(rounds: int) -> Iterator[Row]:
    """What the quantizer and the usage of its codes cost within a training step of the reference network."""
    torch.manual_seed(0)
    model = VQVAE(64, quantizer=partial(EMAVQ, codebook_size=512, codebook_dim=64)).to(memory_format=torch.channels_last)
    images = torch.rand(64, 3, 64, 64).mul(2).sub(1).contiguous(memory_format=torch.channels_last)
    adam = torch.optim.Adam(model.parameters(), lr=4e-4, fused=True)
    model.train()

    def whole() -> None:
        out = model(images)
        (F.mse_loss(out.reconstruction, images) + 0.25 * out.losses["commitment"]).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        model.quantizer.after_step(0)

    sample = Sample.draw(Size(64 * 256, 64, 512), CPU, torch.float32)
    train = ours("ema_vq", sample, "train")
    monitor = CodebookUsage()
    monitor.begin(model, CPU)
    codes = EMAVQ(LatentShape(256, 64, (16, 16)), codebook_size=512)(sample.latents.view(64, 256, 64)).codes
    output = TokenizerOutput(images, images, images, codes)

    def part() -> None:
        train()
        monitor.observe(output, 0)

    found = timed({"part": part, "whole": whole}, rounds)
    share = statistics.median(found["part"].seconds) / statistics.median(found["whole"].seconds)
    yield Row("quantizer and usage, share of a SimpleCNN step, batch 64", "≤ 1.5 %",
              f"{100 * share:.2f} %; {milliseconds(found['part'])} of {milliseconds(found['whole'])} ms", share <= 0.015)


GROUPS = {f.__name__: f for f in (forward, search, update, usage, implicit, memory, step)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, comma-separated")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - GROUPS.keys():
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: expected {', '.join(GROUPS)}")
    with threads_of(args.threads):
        here = machine(CPU)
        print("| what | goal | measured | verdict |\n| :--- | ---: | :--- | :--- |", flush=True)
        start = time.perf_counter()
        for name in names:
            for row in GROUPS[name](args.rounds):
                print(f"| {row.what} | {row.goal} | {row.measured} | {'reached' if row.reached else '**missed**'} |", flush=True)
    loads = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"\n{here.processor}, {here.cores} cores, {here.threads} threads, torch {here.torch}, {args.rounds} rounds, "
          f"{time.perf_counter() - start:.0f} s; load average at the end {loads} (above {here.threads}: others shared the cores).")


if __name__ == "__main__":
    sys.exit(main())
