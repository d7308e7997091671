"""`bench profile quantizers`: every registered quantizer, and its peers, at given N x D x K; times, memory, right codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from bench.distributed import derived_seed
from bench.errors import BadInput, Incompatible
from bench.interfaces import Quantizer
from bench.oracle import Check, check_codes
from bench.peer import Peer
from bench.provenance import git_state, versions
from bench.registry import REQUIRED, Part, available, did_you_mean, resolve, signature
from bench.spec import ComponentSpec, bind
from bench.stopwatch import Watched, extra_memory, free_memory, machine, watch
from bench.timings import Machine, Size, Timing
from bench.types import LatentShape

WHAT = ("search", "train", "lookup")
SIZES = tuple(map(Size.parse, (             # one axis at a time around 16384 x 64 x 1024, and what papers use
    "1024x64x1024", "4096x64x1024", "16384x64x1024", "65536x64x1024",
    "16384x4x1024", "16384x16x1024", "16384x256x1024",
    "16384x64x256", "16384x64x4096", "16384x64x16384", "65536x64x512", "4096x8x16384")))
SIDES = (16, 8, 4, 2, 1)                    # of the latent grid: the first whose square divides N
SHARE_OF_MEMORY = 0.6                       # that the tables of a peer may need
PRODUCT = (2048, 512, 1024)                 # rows, width, columns of the reference product: 2.1 GFLOP

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Session:
    """What all timings of one call of `bench profile` share."""

    session: str
    commit: str | None
    dirty: bool | None
    machine: Machine

    @classmethod
    def begin(cls, device: torch.device) -> Session:
        commit, changes = git_state()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(now, commit, None if commit is None else bool(changes), machine(device))

    def timing(self, **fields: Any) -> Timing:
        return Timing(session=self.session, commit=self.commit, dirty=self.dirty, machine=self.machine, **fields)


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """So many torch threads inside; as before without a number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- a quantizer of a given size -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """A registered quantizer, maybe with keywords given by hand."""

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)
    form: str = ""                          # the given keywords, as written

    @classmethod
    def parse(cls, text: str) -> Subject:
        """'lfq' or 'lfq,entropy=true,bits=10': values as YAML writes them. Raises BadInput."""
        name, *pairs = re.split(r",(?=\w+=)", text)
        try:
            given = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        except yaml.YAMLError as error:
            raise BadInput(f"{text}: not readable as NAME,keyword=value,... ({str(error).splitlines()[0]})") from error
        known = signature("quantizer", name).keywords
        for key in given.keys() - known.keys():
            raise BadInput(f"{text}: {name} has no keyword {key}{did_you_mean(key, known)}")
        return cls(name, given, ",".join(pairs))


def sized(kind: str, name: str, size: Size, given: Mapping[str, Any] = {}) -> ComponentSpec:
    """A component with K codes of width D, by the names of its keywords.

    `codebook_size` is K and `codebook_dim` is D; `bits` is log2 K; `levels`, a tuple, are eights and fours with product
    K. Keywords with another meaning are its own business: a literal class attribute `profiled = {"keyword": value}`
    gives what a quantizer is profiled with beyond its defaults. A component that has to be given is the first one, by
    name, that has both a size and a width and needs nothing else. Raises Incompatible where K cannot be had.
    """
    sig = signature(kind, name)
    chosen: dict[str, Any] = {**sig.attributes.get("profiled", {}), **given}
    for key, keyword in sig.keywords.items():
        if key in chosen:
            if _part(keyword.annotation) and isinstance(chosen[key], str | dict):
                inner = {"name": chosen[key]} if isinstance(chosen[key], str) else chosen[key]
                spec = sized(_part(keyword.annotation), inner["name"], size, {k: v for k, v in inner.items() if k != "name"})
                chosen[key] = _written(spec)
            continue
        if key == "codebook_size":
            chosen[key] = size.k
        elif key == "codebook_dim":
            chosen[key] = size.d
        elif key == "bits":
            chosen[key] = _power_of_two(name, size.k)
        elif key == "levels" and "tuple" in keyword.text:
            bits = _power_of_two(name, size.k)
            chosen[key] = [8] * (bits // 3) + {0: [], 1: [2], 2: [4]}[bits % 3] if bits % 3 != 1 or bits < 4 else (
                [8] * (bits // 3 - 1) + [4, 4])
        elif keyword.default is REQUIRED and _part(keyword.annotation):
            chosen[key] = _written(sized(_part(keyword.annotation), _plain(_part(keyword.annotation)), size))

    def fail(path: tuple[Any, ...], value: Any, sentence: str) -> Exception:
        return BadInput(f"{'.'.join(map(str, path))} = {value!r}: {sentence}")

    return bind(kind, {"name": name, **chosen}, (name,), fail)


def _part(annotation: Any) -> str:
    """The kind of component that a keyword wants; '' where it wants none."""
    return annotation.kind if isinstance(annotation, type) and issubclass(annotation, Part) else ""


def _plain(kind: str) -> str:
    for name in available(kind):
        keywords = signature(kind, name).keywords
        if {"codebook_size", "codebook_dim"} <= keywords.keys() and all(k.default is not REQUIRED for k in keywords.values()):
            return name
    raise Incompatible(f"no {kind} is there that needs nothing else; give one by hand")


def _power_of_two(name: str, k: int) -> int:
    if k < 2 or k & (k - 1):
        raise Incompatible(f"{name} has a power of two of codes, not {k}")
    return k.bit_length() - 1


def _written(spec: ComponentSpec) -> dict[str, Any]:
    """As a suite would name it; tuples become lists again."""
    return json.loads(json.dumps({"name": spec.name, **{
        k: _written(v) if isinstance(v, ComponentSpec) else v for k, v in spec.kwargs.items()}}))


@dataclass(slots=True)
class Sample:
    """The inputs of all cases of one size: standard normal latents and codes."""

    size: Size
    latents: Tensor                         # [N, D]
    table: Tensor                           # [K, D] float32

    @classmethod
    def draw(cls, size: Size, device: torch.device, dtype: torch.dtype) -> Sample:
        generator = torch.Generator().manual_seed(derived_seed("profile", size.n, size.d, size.k))
        latents = torch.randn(size.n, size.d, generator=generator).to(device, dtype)
        return cls(size, latents, torch.randn(size.k, size.d, generator=generator).to(device))

    def of_width(self, width: int) -> Tensor:
        """[N, width], for a quantizer whose K decides its width."""
        if width == self.size.d:
            return self.latents
        generator = torch.Generator().manual_seed(derived_seed("profile", self.size.n, width))
        return torch.randn(self.size.n, width, generator=generator).to(self.latents)


@dataclass(slots=True)
class Case:
    """One thing to time, and what its record will say."""

    fields: dict[str, Any]
    call: Callable[[], Any]
    check: Callable[[Tensor], Check] | None = None
    result: Any = None

    def __call__(self) -> None:
        self.result = self.call()


def _grid(n: int) -> tuple[int, int]:
    side = next(s for s in SIDES if n % s**2 == 0)
    return side, side


def _build(spec: ComponentSpec, sample: Sample, device: torch.device) -> tuple[Quantizer, Tensor]:
    """(quantizer with the sample's codes, latents [B, P, width])."""
    grid = _grid(sample.size.n)
    positions = grid[0] * grid[1]
    torch.manual_seed(derived_seed("profile", spec.name))
    quantizer: Quantizer = spec.partial()(LatentShape(positions, sample.size.d, grid)).to(device)
    owned = {t.data_ptr() for t in (*quantizer.parameters(), *quantizer.buffers())}
    with torch.no_grad():
        for table in (*quantizer.codebooks(), *(t for t in quantizer.tables() if t is not None)):
            if table.data_ptr() in owned and table.shape == sample.table.shape:
                table.copy_(sample.table)
    return quantizer, sample.of_width(quantizer.input_dim).view(-1, positions, quantizer.input_dim)


def quantizer_cases(subject: Subject, sample: Sample, what: Sequence[str], device: torch.device) -> list[Case]:
    """Raises Incompatible, ValueError or BadInput where this quantizer cannot have this size."""
    spec = sized("quantizer", subject.name, sample.size, subject.given)
    quantizer, latents = _build(spec, sample, device)
    quantizer.eval()
    layout, books = quantizer.layout, [b.detach().clone() for b in quantizer.codebooks()]
    batch, n = len(latents), sample.size.n
    levels = len(layout.vocab_sizes)
    table_bytes = 4 * sum(b.numel() for b in books)
    common = {
        "kind": "quantizer", "name": subject.name, "form": subject.form, "keywords": _written(spec) | {"name": subject.name},
        "flops": sum(2 * batch * layout.num_tokens * b.numel() for b in books),
    }
    common["keywords"].pop("name")
    traffic = latents.element_size() * n * (quantizer.input_dim + quantizer.output_dim) + table_bytes + 8 * batch * layout.num_tokens * levels
    check, unchecked = _oracle(spec, quantizer, latents, books)
    cases = []
    if "search" in what:
        @torch.no_grad()
        def search() -> Tensor | None:
            return quantizer(latents).codes

        cases.append(Case(common | {"what": "search", "bytes": traffic, "unchecked": unchecked}, search, check))
    if "lookup" in what and layout.vocab_sizes:
        with torch.no_grad():
            codes = quantizer(latents).codes

        @torch.no_grad()
        def lookup() -> None:
            quantizer.lookup(codes)

        cases.append(Case(common | {"what": "lookup", "flops": 0, "bytes": traffic - latents.nbytes}, lookup))
    if "train" in what:
        cases.append(Case(common | {"what": "train", "bytes": traffic}, _training(*_build(spec, sample, device))))
    return cases


def _training(quantizer: Quantizer, latents: Tensor) -> Callable[[], None]:
    """Forward, backward to the latents (the decoder's gradient is ones) and after_step; no optimizer."""
    z = latents.detach().clone().requires_grad_()
    ones = torch.ones(*z.shape[:2], quantizer.output_dim, device=z.device, dtype=z.dtype)
    quantizer.train()
    steps = iter(range(10**12))

    def train() -> None:
        step = next(steps)
        quantizer.before_step(step)
        out = quantizer(z)
        terms = [quantizer.loss_weights[name] * value for name, value in out.losses.items() if value.requires_grad]
        tensors = [out.quantized, *terms]
        torch.autograd.backward(tensors, [ones, *([None] * len(terms))])
        with torch.no_grad():
            quantizer.after_step(step)
        z.grad = None
        for parameter in quantizer.parameters():
            parameter.grad = None

    return train


def _oracle(
    spec: ComponentSpec, quantizer: Quantizer, latents: Tensor, books: Sequence[Tensor]
) -> tuple[Callable[[Tensor], Check] | None, str]:
    """(what counts wrong codes, why there is no such check).

    How codes are chosen is what the keyword `distance` says, else the class attribute `assignment`: l2 unless given, or
    `none`. Of several levels whose tables are as wide as the latents each is checked on what the ones before have left;
    tables whose widths add up to the latents' are checked on their part of it.
    """
    by = spec.kwargs.get("distance", signature("quantizer", spec.name).attributes.get("assignment", "l2"))
    by = by.name if isinstance(by, ComponentSpec) else by
    if not books:
        return None, "no table" if quantizer.layout.vocab_sizes else "no codes"
    if by not in ("l2", "cosine", "dot"):
        return None, "not the nearest code"
    flat, widths = latents.flatten(0, 1), [b.shape[1] for b in books]
    if quantizer.layout.num_tokens != latents.shape[1]:
        return None, "several scales"

    def check(codes: Tensor) -> Check:
        total, left, start = Check(0, 0, 0), flat.float(), 0
        for level, (book, width) in enumerate(zip(books, widths, strict=True)):
            chosen = codes.flatten(0, 1)[:, level]
            if width == flat.shape[1]:
                total += check_codes(left, book, chosen, by)
                left = left - F.embedding(chosen, book)
            else:
                total += check_codes(left[:, start : start + width], book, chosen, by)
                start += width
        return total

    if all(w == flat.shape[1] for w in widths) or sum(widths) == flat.shape[1]:
        return check, ""
    return None, "codes of another width than the latents"


# -- peers and references --------------------------------------------------------------------------------------------


def peers_of(names: Sequence[str]) -> dict[str, Peer]:
    """By registered name. Raises BadInput for one that there is not, or whose package is not installed."""
    found = {}
    for name in names:
        key = name.strip().replace("-", "_")
        found[key] = resolve("peer", key)()
        found[key].require()
    return found


def peer_cases(
    name: str, peer: Peer, form: str, keywords: Mapping[str, Any], sample: Sample, width: int, what: Sequence[str], device: torch.device
) -> list[Case]:
    """Raises Incompatible with the reason where the peer cannot be run at this size on this device."""
    if device.type not in peer.devices:
        raise Incompatible(f"{peer.title} does not run on {device.type}")
    need, have = peer.distances(form) * 4 * sample.size.n * sample.size.k, free_memory(device)
    if have is not None and need > SHARE_OF_MEMORY * have:
        raise Incompatible(f"{peer.title} would need about {need / 2**30:.1f} GiB for its tables of distances")
    latents = sample.of_width(width)
    version = versions([peer.package]).get(peer.package) if peer.package else None
    common = {"kind": "peer", "name": name, "form": form, "version": version}
    cases = []
    for doing in what:
        call = peer.build(form, latents, sample.table, keywords).get(doing)     # one for each: training moves its codes
        if call is None:
            continue
        check = None
        if doing == "search" and width == sample.size.d:
            def check(codes: Tensor) -> Check:
                return check_codes(latents, sample.table, codes)
        cases.append(Case(common | {"what": doing}, call, check))
    return cases


def reference_cases(sample: Sample, device: torch.device) -> list[Case]:
    """What the machine can do at this moment: a matrix product two ways, and one read and write of the latents."""
    rows, width, columns = PRODUCT
    scale = 4 if device.type == "cuda" else 1
    a, b = torch.randn(rows * scale, width * scale, device=device), torch.randn(columns * scale, width * scale, device=device)
    out = torch.empty(rows * scale, columns * scale, device=device)
    flops = 2 * a.numel() * len(b)
    pixels = a.view(1, 1, *a.shape).permute(0, 3, 1, 2)
    kernel = b.view(len(b), 1, 1, -1).permute(0, 3, 1, 2)
    target = torch.empty_like(sample.latents)

    @torch.no_grad()
    def convolution() -> None:
        F.conv2d(pixels, kernel)

    return [
        Case({"kind": "reference", "name": "torch.mm", "what": "product", "flops": flops}, lambda: torch.mm(a, b.T, out=out)),
        Case({"kind": "reference", "name": "1x1 convolution", "what": "product", "flops": flops}, convolution),
        Case({"kind": "reference", "name": "read and write", "what": "copy", "bytes": 2 * sample.latents.nbytes},
             lambda: torch.add(sample.latents, 1.0, out=target)),
    ]


# -- all of it -------------------------------------------------------------------------------------------------------


def profile_quantizers(
    subjects: Sequence[Subject], sizes: Sequence[Size], *, against: Sequence[str] = ("naive",), what: Sequence[str] = ("search", "train"),
    device: torch.device | None = None, dtype: torch.dtype = torch.float32, rounds: int = 7, threads: int | None = None,
    progress: Progress = lambda label, done, total: None,
) -> Iterator[Timing]:
    """Yields the timings of one size after another; its cases take turns, round by round.

    A case that makes no sense comes with a `reason` and no seconds. Codes of the last timed search of each case are
    compared with the float64 oracle. Matrix products are full float32 (no TF32).
    """
    device = device or torch.device("cpu")
    peers = peers_of(against)
    with threads_of(threads):
        session = Session.begin(device)
        for size in sizes:
            yield from _profile_size(session, subjects, size, peers, what, device, dtype, rounds, progress)


def _profile_size(
    session: Session, subjects: Sequence[Subject], size: Size, peers: Mapping[str, Peer], what: Sequence[str], device: torch.device,
    dtype: torch.dtype, rounds: int, progress: Progress,
) -> Iterator[Timing]:
    sample = Sample.draw(size, device, dtype)
    common = {"size": {"N": size.n, "D": size.d, "K": size.k}, "dtype": str(dtype).removeprefix("torch.")}
    cases: list[Case] = reference_cases(sample, device)
    wanted: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    for subject in subjects:
        try:
            found = quantizer_cases(subject, sample, what, device)
        except (Incompatible, ValueError, NotImplementedError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield from (session.timing(**common, kind="quantizer", name=subject.name, form=subject.form, what=w, reason=reason)
                        for w in what)
            continue
        beside = {}
        keywords = found[0].fields["keywords"] if found else {}
        width = _width(subject, sample) if found else size.d
        for name, peer in peers.items():
            if (form := peer.form(subject.name, keywords)) is not None and (width == size.d or not peer.searches):
                beside[name] = form
                wanted.setdefault((name, form, width), keywords)
        for case in found:
            case.fields["beside"] = beside
        cases += found
    for (name, form, width), keywords in wanted.items():
        try:
            cases += peer_cases(name, peers[name], form, keywords, sample, width, what, device)
        except (Incompatible, ValueError, RuntimeError, TypeError) as error:
            yield from (session.timing(**common, kind="peer", name=name, form=form, what=w, reason=str(error).splitlines()[0])
                        for w in what)
    watched = watch(dict(enumerate(cases)), rounds, device, lambda done, total: progress(str(size), done, total))
    for i, case in enumerate(cases):
        yield _measured(session, common, case, watched[i], device)


def _width(subject: Subject, sample: Sample) -> int:
    grid = _grid(sample.size.n)
    with torch.device("meta"):
        return sized("quantizer", subject.name, sample.size, subject.given).partial()(
            LatentShape(grid[0] * grid[1], sample.size.d, grid)).input_dim


def _measured(session: Session, common: Mapping[str, Any], case: Case, watched: Watched, device: torch.device) -> Timing:
    if watched.failure:
        return session.timing(**common, **case.fields, reason=watched.failure)
    found: dict[str, Any] = {}
    if case.check is not None and case.result is not None:
        check = case.check(case.result)
        found = {"checked": check.checked, "differing": check.differing, "wrong": check.wrong}
    case.result = None
    if case.fields["kind"] != "reference":
        found["memory"], found["memory_by"] = extra_memory(case.call, device)
    return session.timing(**common, **case.fields, **found, repeats=watched.repeats, seconds=watched.seconds,
                          processor_seconds=watched.processor_seconds)
