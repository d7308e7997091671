"""Commands about numbers: what they mean, how two runs differ, how ours compare with published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import (
    AsJson,
    Data,
    Include,
    Name,
    Only,
    Overrides,
    Results,
    Runs,
    SuiteArgument,
    app,
    matching,
    open_suite,
)
from bench.errors import BadInput
from bench.terminal import console

if TYPE_CHECKING:
    import torch


@app.command("explain")
def explain_number(
    word: Annotated[str, typer.Argument(metavar="METRIC", help="A metric, metric@protocol, or a protocol.")],
    as_json: AsJson = False,
) -> None:
    """Print what a metric is, its traps, and how each protocol measures it."""
    from bench.explain import explain, shown

    said = explain(word)
    if as_json:
        print(json.dumps(said, indent=1))
        return
    console.print(shown(said))


@app.command("diff")
def differ(
    one: Annotated[str, typer.Argument(metavar="A", help="A run: its id or label, SUITE:LABEL, or a run folder.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The other run.")],
    suite: Annotated[list[str] | None, typer.Option("--suite", help="Look for the runs in this suite's records only.")] = None,
    results: Results = None, runs: Runs = None, as_json: AsJson = False,
) -> None:
    """Print which settings of two runs differ, and each metric's difference with its interval over the test images."""
    from bench.compare import compare, find_run, shown, to_json
    from bench.places import Places

    places = Places.find(results=results, runs=runs)
    comparison = compare(*(find_run(text, places, suite or ()) for text in (one, other)))
    if as_json:
        print(json.dumps(to_json(comparison), indent=1))
        return
    console.print(shown(comparison))


@app.command("verify")
def verify_suite(
    suite: SuiteArgument,
    tolerance: Annotated[list[str] | None, typer.Option(
        "--tolerance", metavar="METRIC=X", help="Allow this much beside rounding: psnr=0.2, rfid=5%. Can be repeated.")] = None,
    results: Results = None, as_json: AsJson = False,
) -> None:
    """List ours against published numbers with tolerance and verdict; ends with 1 where comparable ones differ."""
    from bench.collect import records_file, report_spec
    from bench.places import Places
    from bench.published import published_file, read_published
    from bench.results import read_records
    from bench.verify import differing, print_verdicts, read_tolerance, to_json, verify

    places = Places.find(results=results)
    name, question, spec = report_spec(suite, places)
    records = read_records(records_file(places, name))
    if not records:
        raise BadInput(f"{records_file(places, name)}: there are no records of {name} yet; `bench run {suite}` makes them")
    entries = read_published(published_file(places.results))
    verdicts = verify(records, spec, entries, tolerances=dict(map(read_tolerance, tolerance or ())))
    if as_json:
        print(to_json(verdicts))
    else:
        print_verdicts(f"{name}: {question}", verdicts)
    if differing(verdicts):
        raise typer.Exit(1)


@app.command("sanity")
def measure_sanity_rows(
    suite: SuiteArgument, overrides: Overrides = None,
    rows: Annotated[list[str] | None, typer.Option("--row", help="Only this baseline, whether the suite asks for it or not; rows that are there stay.")] = None,
    only: Only = None, name: Name = None, results: Results = None, runs: Runs = None, data: Data = None, include: Include = None,
) -> None:
    """Measure the suite's sanity rows (identity, mean colour, JPEG, ...) on this machine; `bench report` shows them."""
    from bench.drive import measure_baselines

    opened = open_suite(suite, overrides, name, include, results=results, runs=runs, data=data)
    asked = rows or opened.suite.baselines()
    if not asked:
        raise BadInput(f"{opened.suite.file}: it asks for no sanity rows; add `sanity: [identity, jpeg]`, or name them with --row")
    records = measure_baselines(opened.name, matching(opened.runs, only), asked, opened.places, forget=not (rows or only))
    for record in records:
        console.print(f"{record.label}: {record.reason or f'{len(record.values)} values'}", markup=False, highlight=False)
    console.print(f"`bench report {opened.name}` shows them", highlight=False)


@app.command("score")
def score_samples(
    reference: Annotated[Path, typer.Argument(help="An .npz of ADM's evaluator (images, or mu and sigma), or a folder of images.")],
    samples: Annotated[Path, typer.Argument(help="An .npz of samples, or a folder of images.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Print FID, sFID, Inception score, precision and recall of samples against a reference."""
    from rich.table import Table

    from bench.places import Places
    from bench.score import score
    from bench.terminal import Bars

    with Bars("features of") as bars:
        scores = score(reference, samples, places=Places.find(), device=_device(device),
                       progress=lambda done, total: bars("the images", done, total))
    if as_json:
        print(json.dumps({"values": scores.values, "reasons": scores.reasons, "reference_images": scores.reference_images,
                          "sample_images": scores.sample_images, "network": scores.network}, indent=1))
        return
    known = f"{scores.reference_images:,} images" if scores.reference_images else "stored statistics"
    table = Table("metric", "value", title=f"{scores.sample_images:,} samples against {known}", title_justify="left")
    for title, value, reason in scores.rows():
        table.add_row(title, f"{value:.4f}" if value is not None else f"– ({reason})")
    console.print(table)
    for sentence in (f"Network: {scores.network}.", *scores.caveats):
        console.print(sentence, markup=False, highlight=False)


def _device(name: str | None) -> torch.device | None:
    """Raises BadInput for what is no device, or none of this machine."""
    import torch

    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"--device {name}: not on this machine ({str(error).splitlines()[0]}); leave it out, or write cpu") from error
    return device
