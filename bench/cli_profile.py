"""`bench profile`: how fast quantizers and whole tokenizers are, and what has changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli import AsJson, Include, Reports, Results, app
from bench.cli_numbers import _device
from bench.errors import BadInput
from bench.terminal import console, notice

if TYPE_CHECKING:
    from bench.report.model import Table
    from bench.timings import Timing

profile = typer.Typer(no_args_is_help=False, help="Time quantizers and tokenizers, beside their peers; compare with earlier times.")
app.add_typer(profile, name="profile", invoke_without_command=True)

Compare = Annotated[str | None, typer.Option(
    "--compare", metavar="OLD", help="Compare with a file of timings, or with an earlier session of ours: its time, or `previous`.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the CPU where it is left out.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds in which all cases take turns.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; as torch chooses where it is left out.")]


@profile.callback()
def main(context: typer.Context, compare: Compare = None, results: Results = None, as_json: AsJson = False) -> None:
    """Time quantizers and tokenizers, beside their peers; with --compare alone, what has changed between stored times."""
    if context.invoked_subcommand is not None:
        if compare is not None:
            raise BadInput(f"--compare belongs behind the word: `bench profile {context.invoked_subcommand} --compare {compare}`, or alone")
        return
    if compare is None:
        console.print(context.get_help())
        return
    from bench.places import Places
    from bench.timings import read_timings

    folder = Places.find(results=results).results / "profile"
    stored = [t for name in ("quantizers", "tokenizers") for t in read_timings(folder / f"{name}.jsonl")]
    if not stored:
        raise BadInput(f"{folder}: there are no timings yet; `bench profile quantizers` makes them")
    old, new = _sides(compare, stored)
    _compared(old, new, compare, as_json)


@profile.command("quantizers")
def quantizers(
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME[,keyword=value...]]...", help="Registered quantizers, maybe with keywords: lfq,entropy=true. All without it.")] = None,
    sizes: Annotated[list[str] | None, typer.Option("--sizes", metavar="N×D×K", help="Latents × width × codes. Can be repeated, or comma-separated.")] = None,
    against: Annotated[str, typer.Option(help="Peers, comma-separated: see `bench ls peers`. Empty: none.")] = "naive",
    what: Annotated[str, typer.Option(help="search, train, lookup; comma-separated.")] = "search,train",
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="Of the latents: float32, bfloat16, float16.")] = "float32",
    rounds: Rounds = 7, threads: Threads = None, compare: Compare = None, include: Include = None, results: Results = None,
    reports: Reports = None, as_json: AsJson = False,
) -> None:
    """Time quantizers at given sizes in turns with their peers; checks their codes, keeps times, table and figures."""
    from bench.timings import Size

    _include(include)
    chosen_sizes = [Size.parse(s) for text in sizes or () for s in text.split(",") if s]
    doing = _words("--what", what, ("search", "train", "lookup"))
    dtypes = ("float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise BadInput(f"--dtype {dtype}: expected one of {', '.join(dtypes)}")
    import torch

    from bench.profile import SIZES, Subject, profile_quantizers
    from bench.registry import available

    subjects = [Subject.parse(name) for name in names or available("quantizer")]
    peers = [p for p in against.split(",") if p.strip()]
    _run("quantizers", lambda progress: profile_quantizers(
        subjects, chosen_sizes or SIZES, against=peers, what=doing, device=_device(device), dtype=getattr(torch, dtype), rounds=rounds,
        threads=threads, progress=progress), compare, results, reports, as_json)


@profile.command("tokenizers")
def tokenizers(
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME|SUITE|CHECKPOINT]...", help="Registered tokenizers, suites, published checkpoints. All that is published without it.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side, of registered tokenizers in their plain form.")] = None,
    batch: Annotated[str, typer.Option(help="Images at a time, comma-separated. 1 and a large one, by device, where it is left out.")] = "",
    what: Annotated[str, typer.Option(help="encode, decode, train; comma-separated. Empty: parameters and MACs alone.")] = "encode,decode",
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; as training takes on the device where it is left out.")] = None,
    device: Device = None, rounds: Rounds = 7,
    patience: Annotated[float, typer.Option(min=0, help="Seconds of rounds after which a case is not timed again.")] = 20.0,
    missing: Annotated[bool, typer.Option("--missing", help="Only what this machine has not timed yet, or while it was shared with others.")] = False,
    threads: Threads = None, compare: Compare = None, include: Include = None,
    results: Results = None, reports: Reports = None, as_json: AsJson = False,
) -> None:
    """Parameters, MACs, images a second and memory of whole tokenizers, each as published: encode, decode, a training step."""
    _include(include)
    doing = _words("--what", what, ("encode", "decode", "train")) if what.strip() else []
    if precision not in (None, "fp32", "bf16"):
        raise BadInput(f"--precision {precision}: expected fp32 or bf16")
    words = [w.strip() for w in batch.split(",") if w.strip()]
    if bad := next((w for w in words if not w.isdecimal() or int(w) < 1), None):
        raise BadInput(f"--batch {bad}: expected numbers of images, comma-separated, such as 1,64")
    import torch

    from bench.places import Places
    from bench.profile import Session, threads_of
    from bench.throughput import LARGE, architectures, profile_tokenizers, systems, unsettled
    from bench.timings import append_architectures, read_timings, settled

    places = Places.find(results=results, reports=reports)
    found = systems(names or [], places, image_size, lambda sentence: notice.print(sentence, markup=False))
    where = _device(device) or torch.device("cpu")
    batches = sorted({int(w) for w in words}) or [1, LARGE.get(where.type, LARGE["cpu"])]

    def begin(progress: Any) -> Iterable[Timing]:
        with threads_of(threads):
            session = Session.begin(where)
        records, groups, refused = architectures(found, session, progress)
        append_architectures(places.results / "profile" / "architectures.jsonl", records)
        if missing:
            have = settled(read_timings(places.results / "profile" / "tokenizers.jsonl"), session.machine)
            groups = unsettled(groups, have, batches=batches, what=doing, device=where, precision=precision)
        yield from profile_tokenizers(
            groups, refused, session=session, batches=batches, device=where, precision=precision, rounds=rounds, threads=threads,
            patience=patience, what=doing, tell=progress)

    _run("tokenizers", begin, compare, results, reports, as_json)


def _include(folders: list[Path] | None) -> None:
    from bench.registry import include, include_from_environment

    include_from_environment()
    for folder in folders or []:
        include(folder)


def _words(option: str, text: str, known: Sequence[str]) -> list[str]:
    from bench.registry import did_you_mean

    words = list(dict.fromkeys(w.strip() for w in text.split(",") if w.strip()))
    for word in words:
        if word not in known:
            raise BadInput(f"{option} {word}: expected {', '.join(known)}{did_you_mean(word, known) if word else ''}")
    if not words:
        raise BadInput(f"{option}: expected at least one of {', '.join(known)}")
    return words


def _run(
    name: str, begin: Callable[[Any], Iterable[Timing]], compare: str | None, results: Path | None, reports: Path | None, as_json: bool
) -> None:
    """Time, append, render. What is measured before an interruption is kept."""
    from bench.places import Places
    from bench.report.formats import terminal_table
    from bench.report.timing_tables import quantizer_table, tokenizer_table
    from bench.terminal import Bars
    from bench.timings import append_timings, read_timings

    places = Places.find(results=results, reports=reports)
    file = places.results / "profile" / f"{name}.jsonl"
    stored = read_timings(file)
    old = _sides(compare, stored)[0] if compare else []
    new: list[Timing] = []
    try:
        with Bars("rounds of") as bars:
            for timing in begin(bars):
                append_timings(file, [timing])
                new.append(timing)
    except KeyboardInterrupt:
        notice.print(f"stopped; {len(new)} timings are kept in {file}", markup=False)
        raise
    make = quantizer_table if name == "quantizers" else tokenizer_table
    if as_json:
        import json

        print(json.dumps([t.model_dump(exclude_defaults=True) for t in new], indent=1))
    elif new:
        console.print(terminal_table(_shown(make, new)))
    written = _render(name, [*stored, *new], places.reports / "profile", places.results)
    folders = " and ".join(dict.fromkeys(str(p.parent) for p in written))
    notice.print(f"kept in {file if new else file.parent}; drawn: {', '.join(p.name for p in written)} in {folders}", markup=False)
    if compare:
        _compared(old, new, compare, as_json)


def _shown(make: Any, timings: Sequence[Timing]) -> Table:
    if make.__name__ == "quantizer_table":
        return make(timings, _titles(timings))
    return make(timings)


def _titles(timings: Sequence[Timing]) -> dict[str, str]:
    from bench.registry import available, signature

    return {p: signature("peer", p).title for p in available("peer")}


def _render(name: str, timings: Sequence[Timing], folder: Path, results: Path) -> list[Path]:
    from bench.files import replace_file
    from bench.report.formats import to_csv, to_markdown
    from bench.report.timing_figures import render_timing_figures
    from bench.report.timing_tables import quantizer_table, tokenizer_table

    written: list[Path] = []
    if timings:
        table = _shown(quantizer_table if name == "quantizers" else tokenizer_table, timings)
        written = [folder / f"{name}.md", folder / f"{name}.csv"]
        replace_file(written[0], f"# {table.title}\n\n{to_markdown(table)}")
        replace_file(written[1], to_csv(table))
    if name == "quantizers":
        return written + render_timing_figures(timings, folder)
    from bench.costs import Profile
    from bench.report.cost_report import render_costs

    return written + render_costs(Profile.read(results), folder.parent)


def _sides(old: str, stored: Sequence[Timing]) -> tuple[list[Timing], list[Timing]]:
    """(the timings that OLD names, those of ours to hold against them). Raises BadInput."""
    from bench.timings import read_timings, sessions

    if Path(old).is_file():
        return read_timings(Path(old)), list(stored)
    known = sessions(stored)
    if old == "previous" and len(known) > 1:
        return [t for t in stored if t.session < known[-1]], [t for t in stored if t.session == known[-1]]
    named = [s for s in known if s.startswith(old)]
    if not named:
        raise BadInput(f"--compare {old}: no such file, and no session of ours begins so; sessions: {', '.join(known[-10:]) or 'none'}")
    return [t for t in stored if t.session in named], [t for t in stored if t.session > named[-1]]


def _compared(old: Sequence[Timing], new: Sequence[Timing], name: str, as_json: bool) -> None:
    """Print the comparison; ends with 1 where something has become slower."""
    from bench.report.formats import terminal_table
    from bench.report.timing_tables import comparison_table
    from bench.timings import compare

    changes = compare(old, new)
    if as_json:
        import json

        print(json.dumps([{"case": c.case.case, "verdict": c.verdict, "ratio": c.ratio, "noise": c.noise, "machine": c.drift, "note": c.note}
                          for c in changes], indent=1))
    else:
        console.print(terminal_table(comparison_table(changes, name)))
    if any(c.verdict == "slower" for c in changes):
        raise typer.Exit(1)
