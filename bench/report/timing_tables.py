"""Timings -> the table of `bench profile`, and that of two sessions compared. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.report.model import Cell, Column, Header, Row, Table
from bench.timings import Change, Timing, newest

DASH = Cell("–", mark="missing")
IDLE = 0.9                  # share of one thread below which a case has waited for the processor


@dataclass(frozen=True, slots=True)
class Floor:
    """What the machine could do while the cases of one size were timed."""

    flops_per_second: float                     # the faster of the two reference products
    bytes_per_second: float                     # one elementwise read and write of the latents

    def seconds(self, t: Timing) -> float | None:
        """The least time for the products and the traffic that the method needs; None where neither is known."""
        if t.flops is None and t.bytes is None:
            return None
        return max((t.flops or 0) / self.flops_per_second, (t.bytes or 0) / self.bytes_per_second)

    def intensity(self, t: Timing) -> float | None:
        """Arithmetic intensity, flops per compulsory byte."""
        return t.flops / t.bytes if t.flops and t.bytes else None


def place(t: Timing) -> tuple[object, ...]:
    """What cases must share to be compared side by side."""
    return (t.machine.fingerprint, t.session, t.dtype, *t.size.items())


def floors(timings: Sequence[Timing]) -> dict[tuple[object, ...], Floor]:
    products: dict[tuple[object, ...], float] = {}
    copies: dict[tuple[object, ...], float] = {}
    for t in timings:
        if t.kind == "reference" and t.seconds and t.what == "product":
            products[place(t)] = max(products.get(place(t), 0.0), (t.flops or 0) / t.median)
        elif t.kind == "reference" and t.seconds:
            copies[place(t)] = (t.bytes or 0) / t.median
    return {key: Floor(products[key], copies[key]) for key in products.keys() & copies.keys()}


def size_text(t: Timing) -> str:
    return "×".join(str(t.size[x]) for x in "NDK") if "K" in t.size else f"{t.size['image_size']} px × {t.size['batch']}"


def time_text(seconds: float) -> str:
    """Milliseconds with three digits."""
    ms = 1e3 * seconds
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def ratio_text(ratio: float) -> str:
    """Time of ours over theirs: '1/8.2' where ours is faster, '1.3×' where it is not."""
    return f"1/{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}×"


def quantizer_table(timings: Sequence[Timing], titles: Mapping[str, str] | None = None) -> Table:
    """One row a case, those of a size together; ratios are of medians of the same size and session.

    titles: of peers, by registered name.
    """
    shown = [t for t in newest(timings) if t.kind in ("quantizer", "peer")]
    floor = floors(timings)
    order = {"search": 0, "train": 1, "lookup": 2}
    # newest sessions of a size only share a floor with themselves, so rows keep their own
    shown.sort(key=lambda t: (t.machine.fingerprint, t.size["N"], t.size["D"], t.size["K"], t.dtype, order.get(t.what, 3), t.kind != "quantizer",
                              t.median if t.seconds else float("inf"), t.label))
    peers = sorted({name for t in shown for name in t.beside})
    by_case = {(place(t), t.kind, t.name, t.form, t.what): t for t in timings if t.seconds}
    reasons: dict[str, str] = {}

    def mark(reason: str) -> str:
        return reasons.setdefault(reason, chr(ord("a") + len(reasons) % 26) * (1 + len(reasons) // 26))

    rows, previous = [], None
    for t in shown:
        size = (place(t)[0], t.dtype, size_text(t))
        key = (*size, t.what)
        first_size, first_what = previous is None or previous[:-1] != size, previous != key
        span_size = sum((place(o)[0], o.dtype, size_text(o)) == size for o in shown) if first_size else 0
        span_what = sum((place(o)[0], o.dtype, size_text(o), o.what) == key for o in shown) if first_what else 0
        previous = key
        label = t.label if t.kind == "quantizer" else f"{(titles or {}).get(t.name, t.name)} {t.form}"
        headers = (Header(size_text(t), size_text(t), span=span_size), Header(t.what, t.what, span=span_what),
                   Header(t.label, label, notes=(mark(t.reason),) if t.reason else ()))
        rows.append(Row(headers, _cells(t, floor.get(place(t)), peers, by_case, mark), sanity=False))
    columns = (
        Column("milliseconds", "ms", "lower"), Column("quartiles", "quartiles"), Column("gflops", "GFLOP/s"), Column("floor", "× floor", "lower"),
        Column("memory", "extra MiB", "lower"), Column("codes", "wrong codes"),
        *(Column(f"against_{p}", f"÷ {(titles or {}).get(p, p)}", "lower") for p in peers))
    return Table("profile", "Quantizers", _caption(timings), (Column("size", "N×D×K"), Column("what", "what"), Column("who", "who")), columns,
                 tuple(rows), tuple((m, f"{reason}.") for reason, m in reasons.items()), NOTES, _stamp(timings))


NOTES = (
    "ms: median of the rounds, in which all cases of a size take turns. search: forward in eval mode (look-up included; faiss: bare search). "
    "train: forward, backward to the latents and after_step, without optimizer.",
    "× floor: time over the least time for the needed products (at the faster of two reference products timed among the cases) and for the compulsory "
    "traffic (at one elementwise read and write of the latents).",
    "extra MiB: peak above what one warm call finds, its results included. wrong codes: beyond float32's rounding, of the latents that were checked in float64.",
)


def _cells(
    t: Timing, floor: Floor | None, peers: Sequence[str], by_case: Mapping[tuple[object, ...], Timing], mark: Callable[[str], str]
) -> tuple[Cell, ...]:
    if not t.seconds:
        return (Cell("–", mark="skipped"),) * (6 + len(peers))
    low, high = t.quartiles
    waited = t.busy is not None and t.busy < IDLE
    time = Cell(time_text(t.median), 1e3 * t.median, n=len(t.seconds),
                notes=(mark(f"had the processor {100 * t.busy:.0f} % of the time: the machine was busy"),) if waited and t.busy else ())
    rate = Cell(f"{t.flops / t.median / 1e9:.1f}", t.flops / t.median / 1e9, n=1) if t.flops else DASH
    least = floor.seconds(t) if floor is not None and t.what != "train" else None
    times = Cell(f"{t.median / least:.2f}", t.median / least, n=1) if least else DASH
    memory = Cell(f"{t.memory / 2**20:.1f}", t.memory / 2**20, n=1) if t.memory is not None else DASH
    wrong = Cell(f"{t.wrong} of {t.checked}", float(t.wrong), n=t.checked, mark="failed" if t.wrong else "") if t.checked else Cell(
        "–", mark="missing", notes=(mark(f"codes not checked: {t.unchecked}"),) if t.unchecked and t.what == "search" else ())
    against = []
    for name in peers:
        other = by_case.get((place(t), "peer", name, t.beside.get(name), t.what))
        against.append(DASH if other is None else Cell(ratio_text(t.median / other.median), t.median / other.median, n=1))
    return (time, Cell(f"{time_text(low)}–{time_text(high)}", n=1), rate, times, memory, wrong, *against)


def _machines(timings: Sequence[Timing]) -> str:
    found = {t.machine.fingerprint: t.machine for t in timings}
    return "; ".join(f"{m.processor}, {m.cores} cores, {m.threads} threads, torch {m.torch}, {m.backend} [{f}]" for f, m in found.items())


def _caption(timings: Sequence[Timing]) -> str:
    return f"Measured by bench profile on {_machines(timings)}."


def _stamp(timings: Sequence[Timing]) -> str:
    found = sorted({t.session for t in timings})
    commits = sorted({f"{(t.commit or 'unknown')[:12]}{' with changes' if t.dirty else ''}" for t in timings})
    versions = sorted({f"{t.name.replace('_', '-')} {t.version}" for t in timings if t.version})
    return f"{len(timings)} timings, {found[0]} to {found[-1]}, commit {', '.join(commits)}" + (f"; {', '.join(versions)}" if versions else "")


def tokenizer_table(timings: Sequence[Timing]) -> Table:
    """One row a tokenizer, image size and batch; one column a thing it does."""
    shown = [t for t in newest(timings) if t.kind == "tokenizer"]
    rows: dict[tuple[object, ...], dict[str, Timing]] = {}
    for t in shown:
        rows.setdefault((t.machine.fingerprint, t.label, size_text(t), t.dtype), {})[t.what] = t
    reasons: dict[str, str] = {}
    doing = [w for w in ("encode", "decode", "train") if any(w in r for r in rows.values())]
    out = []
    for (_, label, size, dtype), row in sorted(rows.items(), key=str):
        cells = []
        any_of = next(iter(row.values()))
        counts = [row["train"].macs] if "train" in row else [t.macs for t in row.values()]
        for count in (any_of.parameters, None if None in counts else sum(counts)):
            cells.append(DASH if count is None else Cell(f"{count / 1e6:,.2f} M" if count < 1e9 else f"{count / 1e9:,.2f} G", float(count), n=1))
        for w in doing:
            t = row.get(w)
            if t is None or not t.seconds:
                note = (reasons.setdefault(t.reason, chr(ord("a") + len(reasons))),) if t is not None and t.reason else ()
                cells += [Cell("–", mark="skipped", notes=note), DASH]
                continue
            rate = t.size["batch"] / t.median
            low, high = (t.size["batch"] / s for s in reversed(t.quartiles))
            cells.append(Cell(f"{rate:,.4g} ({low:,.4g}–{high:,.4g})", rate, n=len(t.seconds)))
            cells.append(DASH if t.memory is None else Cell(f"{t.memory / 2**20:,.0f}", t.memory / 2**20, n=1))
        out.append(Row((Header(label, label), Header(size, size), Header(dtype, dtype)), tuple(cells)))
    columns = [Column("parameters", "parameters", "none"), Column("macs", "MACs per image", "none")]
    for w in doing:
        columns += [Column(f"{w}_images_per_second", f"{w}, images/s", "higher"), Column(f"{w}_memory", f"{w}, extra MiB", "lower")]
    notes = ("images/s: median of interleaved rounds (quartiles). encode: images to codes; decode: codes to images; train: one whole step of the training loop, "
             "optimizer included. MACs: products and convolutions of what is timed (of a step: of its forward), multiply and add as one.",)
    return Table("tokenizers", "Tokenizers", _caption(timings), (Column("who", "tokenizer"), Column("size", "images"), Column("dtype", "precision")),
                 tuple(columns), tuple(out), tuple((m, f"{r}.") for r, m in reasons.items()), notes, _stamp(timings))


def comparison_table(changes: Sequence[Change], old: str) -> Table:
    """One row a case; slower ones first."""
    order = ("slower", "faster", "other machine", "unmeasured", "new", "gone", "same")
    rows = []
    for c in sorted(changes, key=lambda c: (order.index(c.verdict), -(c.ratio or 0), c.case.label, size_text(c.case))):
        t = c.case
        mark = {"slower": "failed", "faster": "best"}.get(c.verdict, "")
        number = c.verdict in ("same", "slower", "faster") and c.ratio is not None
        cells = (
            Cell(time_text(c.old.median), n=1) if c.old and c.old.seconds and c.verdict != "other machine" else DASH,
            Cell(time_text(c.new.median), n=1) if c.new and c.new.seconds else DASH,
            Cell(f"{c.ratio:.3f}", c.ratio, n=1) if number else DASH,
            Cell(f"±{100 * (c.noise or 0):.0f} %", c.noise, n=1) if number else DASH,
            Cell(f"{c.drift:.3f}", c.drift, n=1) if number and c.drift else DASH,
            Cell(c.verdict + (f": {c.note}" if c.note else ""), n=1, mark=mark))                    # type: ignore[arg-type]
        rows.append(Row((Header(size_text(t), size_text(t)), Header(t.what, t.what), Header(t.label, t.label)), cells))
    columns = (Column("before", "ms before"), Column("now", "ms now"), Column("ratio", "now / before", "lower"), Column("noise", "noise"),
               Column("machine", "machine"), Column("verdict", "verdict"))
    notes = ("noise: the smallest change that counts (3 standard errors of the difference of the medians, at least 3 %). machine: the same ratio of the reference "
             "product; a change counts only if it is still one after dividing by it and, with one thread, also in processor time.",)
    stamp = ", ".join(f"{n} {v}" for v in order if (n := sum(c.verdict == v for c in changes))) or "no cases"
    return Table("comparison", f"Against {old}", None, (Column("size", "size"), Column("what", "what"), Column("who", "who")), columns, tuple(rows), (), notes, stamp)
