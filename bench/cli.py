"""typer and rich: parse, call, print. Whatever needs torch is imported inside the commands that need it."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import BadInput
from bench.terminal import console, notice

if TYPE_CHECKING:
    from bench.places import Places
    from bench.plan import Planned
    from bench.points import PointsSuite
    from bench.run import Run
    from bench.suite import Suite

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train, measure and compare visual tokenizers under one harness.",
)

SuiteArgument = Annotated[str, typer.Argument(help="A suite file, or its name in suites/.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")]
Name = Annotated[str | None, typer.Option("--name", help="Keep results and reports under this name, not the suite's.")]
Results = Annotated[Path | None, typer.Option("--results", help="Folder of records. Default: results, or BENCH_RESULTS.")]
Reports = Annotated[Path | None, typer.Option("--reports", help="Folder of reports. Default: reports, or BENCH_REPORTS.")]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder of run folders. Default: results/runs, or BENCH_RUNS.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder that holds the data sets. Default: BENCH_DATA.")]
Include = Annotated[list[Path] | None, typer.Option("--include", help="Folder of your own tokenizers, quantizers, ...")]
Debug = Annotated[bool, typer.Option("--debug", help="10 batches and 64 test images, under an identity of its own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Only = Annotated[list[str] | None, typer.Option(
    "--only", metavar="GLOB", help="Only runs whose label or id matches the pattern, or contains it.")]
Launcher = Annotated[str, typer.Option(help="debug (this process), local, slurm, or auto.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="At most so many jobs at a time.")]
Wait = Annotated[bool | None, typer.Option(
    "--wait/--no-wait", help="Follow the runs to their end (local: unless said otherwise), or return at once (slurm).")]
LeaveOut = Annotated[bool, typer.Option("--leave-out-unreadable", help="Go on without images that cannot be decoded.")]
Track = Annotated[list[str] | None, typer.Option("--track", help="Also log to tensorboard or wandb.")]


@dataclass(frozen=True, slots=True)
class Opened:
    """A suite as the command line names it."""

    suite: Suite
    runs: list[Run]
    places: Places
    command: tuple[str, ...]            # `bench run SUITE OVERRIDES`: what a user types to do the same

    @property
    def name(self) -> str:
        return self.suite.name

    def planned(self) -> list[Planned]:
        from bench.plan import plan

        return plan(self.runs, self.places, self.name)


def open_suite(
    suite: str, overrides: list[str] | None = None, name: str | None = None, include: list[Path] | None = None,
    debug: bool = False, **given: Path | None,
) -> Opened:
    from bench.places import Places
    from bench.registry import include as include_folder
    from bench.registry import include_from_environment
    from bench.suite import Suite, find_suite

    include_from_environment()
    for folder in include or []:
        include_folder(folder)
    places = Places.find(**given)
    words = ["bench", "run", suite, *(overrides or [])]
    for option, value in (("--name", name), *((f"--{key}", path) for key, path in given.items())):
        words += [option, str(value)] if value is not None else []
    words += [word for folder in include or [] for word in ("--include", str(folder))]
    if debug:
        name = f"{name or find_suite(suite).stem}-debug"
    loaded = Suite.load(suite, overrides or [], name=name)
    runs = loaded.expand(places, debug=debug)
    for note in loaded.notes:
        notice.print(f"note: {note}")
    return Opened(loaded, runs, places, tuple(words))


def _points(suite: str, overrides: list[str] | None) -> PointsSuite | None:
    """Where the file says `task: points`; such a suite takes no overrides."""
    from bench.points import points_suite

    found = points_suite(suite)
    if found is not None and overrides:
        raise BadInput(f"{suite}: a suite of points takes no settings from the command line; change its file")
    return found


def _run_points(suite: PointsSuite, reports: Path | None, as_json: bool) -> None:
    from bench.places import Places
    from bench.points import run_points
    from bench.report.points import render_points

    places = Places.find(reports=reports)
    with console.status("", spinner="dots") as status:
        traces = run_points(suite, lambda title, step, of: status.update(f"{title}: step {step:,} of {of:,}"))
        status.update("drawing")
        paths = render_points(suite.name, suite.question, traces, places.reports)
    if as_json:
        print(json.dumps({"suite": suite.name, "files": [_relative(p) for p in paths],
                          "used": {t.title: int(t.used[-1]) for t in traces}}, indent=1))
        return
    for trace in traces:
        console.print(f"{trace.title:<22} {trace.used[-1]:>3} of {trace.size} codes used, squared error {trace.error:.4f}",
                      markup=False, highlight=False)
    console.print(f"report: {_relative(places.reports / suite.name)}/ ({_names(paths, places.reports / suite.name)})", highlight=False)


def matching(runs: Sequence[Run], only: Sequence[str] | None) -> list[Run]:
    """Runs that any of the patterns names. Raises BadInput for a pattern that names none."""
    if not only:
        return list(runs)
    chosen: dict[str, Run] = {}
    for pattern in only:
        found = [r for r in runs if pattern in r.label or pattern in r.train_id
                 or fnmatch.fnmatchcase(r.label, pattern) or fnmatch.fnmatchcase(r.train_id, pattern)]
        if not found:
            from bench.registry import did_you_mean

            raise BadInput(f"--only {pattern}: no run's label or id matches{did_you_mean(pattern, [r.label for r in runs][:5])}")
        chosen |= {r.train_id: r for r in found}
    return [r for r in runs if r.train_id in chosen]


@app.command("ls")
def list_entries(
    kind: Annotated[str | None, typer.Argument(help="suites, tokenizers, quantizers, metrics, ...; all without it.")] = None,
    include: Include = None,
    as_json: AsJson = False,
) -> None:
    """List suites and components, with one line on each."""
    from bench.catalogue import checkpoints, load_checkpoint
    from bench.registry import HOMES, PLURALS, available, did_you_mean, include_from_environment, signature
    from bench.registry import include as include_folder
    from bench.yaml_lines import load_yaml

    include_from_environment()
    for folder in include or []:
        include_folder(folder)
    found: dict[str, list[dict[str, Any]]] = {"suites": []}
    for path in sorted(Path("suites").glob("*.yaml")):
        try:
            data, _ = load_yaml(path.read_text(), path)
            found["suites"].append({"name": path.stem, "summary": str(data.get("question", ""))})
        except BadInput as error:
            found["suites"].append({"name": path.stem, "summary": f"broken: {error}"})
    found["checkpoints"] = [{"name": n, "summary": load_checkpoint(n).title} for n in checkpoints()]
    for home in HOMES:
        found[PLURALS[home]] = [{"name": n, "summary": signature(home, n).summary} for n in available(home)]
    if kind is not None:
        plural = PLURALS.get(kind, kind)
        if plural not in found:
            raise BadInput(f"there is no kind {kind!r}{did_you_mean(kind, found)}")
        found = {plural: found[plural]}
    if kind == "checkpoints":
        from bench.catalogue import listing
        from bench.places import Places

        found = {kind: listing(Places.find())}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if kind == "checkpoints":
        _print_checkpoints(found[kind])
        return
    for title, entries in found.items():
        if entries:
            console.print(f"[bold]{title}[/]")
            width = max(len(e["name"]) for e in entries)
            for e in entries:
                console.print(f"  {e['name']:<{width}}  {e['summary']}", markup=False, highlight=False)


def _print_checkpoints(entries: Sequence[Mapping[str, Any]]) -> None:
    """As lines of equal columns."""
    lines = [("name", "title", "format", "pixels", "licence", "here"), *(tuple(map(str, e.values())) for e in entries)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for i, line in enumerate(lines):
        text = "  ".join(f"{word:<{width}}" for word, width in zip(line, widths, strict=True)).rstrip()
        console.print(text, style="dim" if i == 0 else None, markup=False, highlight=False, soft_wrap=True)
    console.print("here: no: `bench prepare --checkpoint NAME` fetches it; by hand: it says where to get it", markup=False,
                  highlight=False, style="dim", soft_wrap=True)


@app.command()
def check(
    suite: SuiteArgument, overrides: Overrides = None, data: Data = None, include: Include = None, as_json: AsJson = False
) -> None:
    """Validate a suite completely: keys, types, and one build of each tokenizer on the meta device."""
    if points := _points(suite, overrides):
        from bench.suite import find_suite

        console.print(f"{find_suite(suite)}: {len(points.quantizers)} quantizers; all is well", highlight=False)
        return
    opened = open_suite(suite, overrides, include=include, data=data)
    skipped, parameters = _check(opened)
    if as_json:
        print(json.dumps([{"train_id": r.train_id, "label": r.label, "parameters": parameters[r.train_id],
                           "skipped": skipped.get(r.train_id)} for r in opened.runs], indent=1))
        return
    for run in opened.runs:
        reason = skipped.get(run.train_id)
        console.print(f"{run.train_id}  {run.label}  " + (f"skipped: {reason}" if reason else
                      f"{parameters[run.train_id]:,} parameters"), markup=False, highlight=False)
    console.print(f"{opened.suite.file}: {len(opened.runs)} runs, {len(skipped)} of them skipped; all is well", highlight=False)


def _check(opened: Opened) -> tuple[dict[str, str], dict[str, int]]:
    """(train id -> why it is skipped, train id -> parameters). Raises BadInput for what the user must mend."""
    from bench.checked import check as check_runs

    loaded, runs = opened.suite, opened.runs
    checked = check_runs(runs, opened.places)
    problems = dict.fromkeys(
        loaded.locate(run, checked[run.train_id].key, checked[run.train_id].problem)
        for run in runs if checked[run.train_id].problem
    )
    if problems:
        raise BadInput("\n".join(problems))
    skipped = {i: c.skip for i, c in checked.items() if c.skip}
    if runs and len(skipped) == len(runs):
        raise BadInput(f"{loaded.file}: every run is impossible: {next(iter(skipped.values()))}")
    return skipped, {i: c.parameters for i, c in checked.items()}


@app.command("plan")
def show_plan(
    suite: SuiteArgument, overrides: Overrides = None, launcher: Launcher = "auto", jobs: Jobs = None, only: Only = None,
    name: Name = None, results: Results = None, runs: Runs = None, data: Data = None, include: Include = None,
    debug: Debug = False, as_json: AsJson = False,
) -> None:
    """Show which runs are new, done, failed or stale, and what they would cost. Starts nothing.

    With --launcher slurm also the exact sbatch scripts that `run` would submit.
    """
    from rich.table import Table
    from rich.text import Text

    from bench.plan import TO_RUN
    from bench.report.formats import Quick
    from bench.terminal import describe, status_json

    opened = open_suite(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    if launcher == "slurm":
        skipped, _ = _check(opened)
    else:
        from bench.checked import known

        skipped = {i: c.skip for i, c in known(opened.runs, opened.places).items() if c.skip}
    planned = opened.planned()
    chosen = {r.train_id for r in matching(opened.runs, only)} - skipped.keys()
    todo = [p for p in planned if p.status in TO_RUN and p.run.train_id in chosen]
    scripts = []
    if launcher == "slurm":
        from bench import slurm
        from bench.jobs import packed

        scripts = slurm.scripts(packed([(f"RUN/{p.run.train_id}", p.run) for p in todo]), opened.places, jobs)
    if as_json:
        rows = [status_json(p) for p in planned]
        print(json.dumps(rows if launcher != "slurm" else {"runs": rows, "scripts": scripts}, indent=1))
        return
    table = Table(title=f"{opened.name}: {opened.suite.frame.question}", title_justify="left")
    for column in ("run", "id", "state", "steps", "batch", "training images", "hours", "note"):
        table.add_column(column, justify="right" if column in ("steps", "batch", "training images", "hours") else "left")
    for p in planned:
        images = p.run.data["train"]
        count = f"{images.images:,}" + (f" of {images.of:,}" if images.of and images.of != images.images else "")
        status, note = ("skipped", skipped[p.run.train_id]) if p.run.train_id in skipped else (p.status, describe(p))
        table.add_row(Text(p.run.label), p.run.train_id, status, f"{p.run.train.steps:,}", str(p.run.train.batch_size), count,
                      "" if p.hours is None or status not in TO_RUN else f"{p.hours:.2g}", Text(note))
    console.print(Quick(table))
    work = sum(p.run.train.steps * p.run.train.batch_size for p in todo if p.status != "measure")
    known = [p.hours for p in todo if p.hours is not None and p.status != "measure"]
    hours = f", about {sum(known):.2g} hours at the speed of earlier runs" if known else ""
    console.print(f"{len(todo)} of {len(planned)} runs to do: {work:,} images to train on{hours}", highlight=False)
    if entries := opened.suite.checkpoints():
        from bench.catalogue import here

        absent = [one.checkpoint for one in entries if not here(one.checkpoint, opened.places)]
        told = f"; not on this machine: {', '.join(absent)}" if absent else ""
        console.print(f"{len(entries)} checkpoints that were trained elsewhere{told}", markup=False, highlight=False)
    for script in scripts:
        console.rule("sbatch")
        console.print(Text(script), soft_wrap=True)


@app.command()
def run(
    suite: SuiteArgument, overrides: Overrides = None, launcher: Launcher = "auto", jobs: Jobs = None, wait: Wait = None,
    leave_out: LeaveOut = False, track: Track = None, only: Only = None, debug: Debug = False, name: Name = None,
    results: Results = None, reports: Reports = None, runs: Runs = None, data: Data = None, include: Include = None,
    as_json: AsJson = False,
) -> None:
    """Train and measure what is missing of a suite, then print its tables. The same command continues a stopped one."""
    from bench.plan import TO_RUN

    if points := _points(suite, overrides):
        _run_points(points, reports, as_json)
        return

    _drive(TO_RUN, suite, overrides, launcher, jobs, wait, leave_out, track, only, debug, name, include, as_json,
           results=results, reports=reports, runs=runs, data=data)


@app.command("eval")
def evaluate(
    suite: Annotated[str | None, typer.Argument(
        help="A suite file, or its name in suites/; with --checkpoint: whose images and values are meant.")] = None,
    overrides: Overrides = None,
    checkpoint: Annotated[list[str] | None, typer.Option(
        "--checkpoint", metavar="FILE|NAME|URL|hf:OWNER/NAME[:FILE]", help="Measure this instead. Can be repeated.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Whose state dict it is: `bench ls formats`.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at a time, for --checkpoint.")] = None, launcher: Launcher = "auto", jobs: Jobs = None, wait: Wait = None,
    save_npz: Annotated[Path | None, typer.Option(
        "--save-npz", metavar="FOLDER", help="Also write the reconstructions of each trained run, as ADM's evaluator reads them.")] = None,
    only: Only = None, debug: Debug = False, name: Name = None, results: Results = None, reports: Reports = None,
    runs: Runs = None, data: Data = None, include: Include = None, as_json: AsJson = False,
) -> None:
    """Measure what is missing of trained runs, or checkpoints that were trained elsewhere; trains nothing."""
    given = {"results": results, "reports": reports, "runs": runs, "data": data}
    if checkpoint:
        words = [*([suite] if suite is not None else []), *(overrides or [])]
        _evaluate_checkpoints(checkpoint, format, batch_size, words, name, include, debug, as_json, **given)
        return
    if suite is None:
        raise BadInput("say which suite, or which checkpoint: `bench eval SUITE`, or `bench eval --checkpoint FILE`")
    if format is not None or batch_size is not None:
        raise BadInput("--format and --batch-size go with --checkpoint; the runs of a suite say themselves what they are")
    if save_npz is not None and wait is False:
        raise BadInput("--save-npz needs the measured runs: leave out --no-wait, or save them once the jobs have ended")
    _drive(("measure",), suite, overrides, launcher, jobs, wait if save_npz is None else True, False, None, only, debug, name,
           include, as_json, **given)
    if save_npz is not None:
        from bench.samples import save_samples
        from bench.terminal import Bars

        opened = open_suite(suite, overrides, name, include, debug, **given)
        with Bars("reconstructing with") as bars:
            paths = save_samples(matching(opened.runs, only), opened.places, save_npz, progress=bars)
        notice.print(f"written: {', '.join(map(str, paths))}", markup=False)


def _evaluate_checkpoints(
    checkpoints: list[str], format: str | None, batch_size: int | None, words: list[str], name: str | None,
    include: list[Path] | None, debug: bool, as_json: bool, **given: Path | None,
) -> None:
    """Checkpoints on the images and for the values of a suite, or of overrides alone; `words`: maybe a suite, then those."""
    from bench.checkpoint_records import asked_for
    from bench.collect import records_file, remember_suite, report_spec
    from bench.drive import measure_checkpoints
    from bench.places import Places
    from bench.registry import include as include_folder
    from bench.registry import include_from_environment
    from bench.report.tables import terminal_table
    from bench.reporting import render
    from bench.results import read_records
    from bench.suite import Suite, checkpoint_report, checkpoint_suite, find_suite

    include_from_environment()
    for folder in include or []:
        include_folder(folder)
    places, name = Places.find(**given), (name or "checkpoints") + ("-debug" if debug else "")
    suite = checkpoint_suite(checkpoints, format, words, name)
    measured = measure_checkpoints(suite, places, batch_size=batch_size, debug=debug)
    numbers = [v for v in asked_for(measured, suite.measurements(places, debug=debug)) if v.number is not None]
    records = read_records(records_file(places, name))
    try:
        find_suite(name)                        # a suite of that name says how its records are shown
    except BadInput:
        remember_suite(Suite(suite.frame.model_copy(update={"report": checkpoint_report(records)}), suite.file, {}, {}), places)
    _, question, spec = report_spec(name, places)
    rendered = render(name, question, spec, records, places, figures=False)
    if as_json:
        print(json.dumps([{"train_id": r.train_id, "label": r.label, "state": r.state, "reason": r.reason,
                           "values": {v.name: v.number for v in r.values.values()}} for r in measured], indent=1))
    else:
        for table in rendered.tables:
            console.print(terminal_table(table))
        console.print(f"report: {_relative(places.reports / name)}/", highlight=False)
    if not numbers:
        why = dict.fromkeys(reason for r in measured for reason in (r.reason, *(v.reason for v in r.values.values())) if reason)
        notice.print(f"nothing was measured: {'; '.join(why)}", markup=False)
        raise typer.Exit(1)


@app.command()
def retry(
    suite: SuiteArgument, overrides: Overrides = None,
    failed: Annotated[bool, typer.Option("--failed", help="Failed and cancelled runs: the default.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Train anew what was trained with other code; the old stays aside.")] = False,
    launcher: Launcher = "auto", jobs: Jobs = None, wait: Wait = None, only: Only = None, debug: Debug = False,
    name: Name = None, results: Results = None, reports: Reports = None, runs: Runs = None, data: Data = None,
    include: Include = None, as_json: AsJson = False,
) -> None:
    """Continue failed and cancelled runs from their checkpoints; with --stale train runs of changed code anew."""
    statuses = ("failed", "cancelled") if failed or not stale else ()
    _drive((*statuses, *(("stale",) if stale else ())), suite, overrides, launcher, jobs, wait, False, None, only, debug, name,
           include, as_json, results=results, reports=reports, runs=runs, data=data)


def _drive(
    statuses: tuple[str, ...], suite: str, overrides: list[str] | None, launcher: str, jobs: int | None, wait: bool | None,
    leave_out: bool, track: list[str] | None, only: list[str] | None, debug: bool, name: str | None,
    include: list[Path] | None, as_json: bool, **given: Path | None,
) -> None:
    """What `run`, `eval` and `retry` share: they differ in the statuses they take up."""
    import os

    from bench import drive
    from bench.registry import source_file

    def takes(p: Planned) -> bool:
        """Also a trained run whose measuring has failed or was cancelled, where only measuring is asked for."""
        again = statuses == ("measure",) and p.status in ("failed", "cancelled")
        return p.status in statuses or (again and p.record is not None and p.record.trained)

    for tracker in track or []:
        source_file("tracker", tracker)
    if drive.under_torchrun() and not drive.is_first():
        raise typer.Exit(drive.join())
    with drive.leading():
        opened = open_suite(suite, overrides, name, include, debug, **given)
        drive.writable(opened.places)
        how, why = drive.pick(launcher)
        planned = opened.planned()
        chosen = {r.train_id for r in matching(opened.runs, only)}
        wanted = [p for p in planned if takes(p) and p.run.train_id in chosen]
        drive.preflight([p.run for p in wanted], opened.places)
        skipped, _ = _check(opened)
        if _decode([p.run for p in wanted], opened.places, leave_out):
            opened = open_suite(suite, overrides, name, include, debug, **given)     # other images, other ids
            planned = opened.planned()
            chosen = {r.train_id for r in matching(opened.runs, only)}
        if track:
            os.environ["BENCH_TRACK"] = ",".join(track)
        driven = drive.drive(
            opened.suite, opened.runs, opened.places, planned, how=how, why=why, takes=takes, chosen=chosen,
            skipped=skipped, slots=jobs, wait=how != "slurm" if wait is None else wait,
        )
    _show_driven(opened, driven, skipped, as_json)
    if driven.exit_code:
        raise typer.Exit(driven.exit_code)


def _show_driven(opened: Opened, driven: Any, skipped: dict[str, str], as_json: bool) -> None:
    from bench.collect import collect
    from bench.failures import group
    from bench.report.tables import terminal_table
    from bench.reporting import Report, render
    from bench.terminal import counts, print_failures

    frame, places = opened.suite.frame, opened.places
    records = collect(opened.name, opened.runs, places)
    if frame.checkpoints and not (driven.left or driven.interrupted):
        from bench.collect import records_file
        from bench.drive import measure_checkpoints
        from bench.results import read_records

        measure_checkpoints(opened.suite, places, debug=any(r.train.debug for r in opened.runs))
        records = read_records(records_file(places, opened.name))
    if opened.suite.frame.sanity and records and not (driven.left or driven.interrupted):
        from bench.drive import measure_baselines

        try:
            measure_baselines(opened.name, opened.runs, opened.suite.baselines(), places)
        except BadInput as error:               # a finished suite is rendered where its images are not, too
            notice.print(f"sanity rows are not measured here: {error}", markup=False)
    rendered = Report((), ()) if driven.left else render(
        opened.name, frame.question, frame.report, records, places, figures=True, anew=bool(driven.chosen))
    groups = group(driven.planned, places, opened.command)
    if as_json:
        print(json.dumps({
            "suite": opened.name, "launcher": driven.launcher, "jobs": driven.job_ids,
            "done": sum(r.state == "done" for r in records),
            "failed": {p.run.label: p.note for g in groups for p in g.planned},
            "skipped": skipped, "report": [_relative(p) for p in rendered.paths],
        }, indent=1))
        return
    for table in rendered.tables:
        console.print(terminal_table(table))
    print_failures(groups)
    if driven.left:
        where = f"submitted: {', '.join(_shortened(driven.job_ids))}" if driven.job_ids else "somebody has them"
        console.print(f"{counts(driven.planned)}; {where}; `bench status {opened.name} --watch` follows them", highlight=False)
    elif not driven.chosen and opened.runs:
        console.print("nothing to do" + (": every run is trained and measured" if all(
            p.status in ("done", "stale", "skipped") for p in driven.planned) else f": {counts(driven.planned)}"))
    if rendered.paths:
        folder = places.reports / opened.name
        console.print(f"report: {_relative(folder)}/ ({_names(rendered.paths, folder)})", highlight=False)


def _shortened(jobs: Sequence[str]) -> list[str]:
    """Elements of one array together: `12_0`, `12_1` -> `12_[0-1]`."""
    arrays: dict[str, list[str]] = {}
    for job in jobs:
        base, _, element = job.partition("_")
        arrays.setdefault(base if element.isdigit() else job, []).append(element if element.isdigit() else "")
    return [base if elements == [""] else f"{base}_[{elements[0]}-{elements[-1]}]" if len(elements) > 1 else
            f"{base}_{elements[0]}" for base, elements in arrays.items()]


def _decode(runs: Sequence[Run], places: Places, leave_out: bool) -> bool:
    """Decode what runs need, once, with progress. True where files were left out and the ids have changed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bench.image_cache import LeftOut, decoded
    from bench.run import data_key, open_images, streams

    changed = False
    todo: dict[tuple[str, str], Run] = {}
    for one in runs:
        for split in ("train", "test"):
            todo.setdefault((data_key(one.train.dataset), split), one)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notice, transient=True, disable=not sys.stderr.isatty()) as bars:
        for (key, split), one in todo.items():
            opened = open_images(one, split, places)
            if split == "train" and streams(one, opened):
                continue
            bar = bars.add_task(f"decoding {one.train.dataset.name} {split}", total=len(opened.dataset))
            try:
                decoded(opened, key, places, leave_out=leave_out,
                        progress=lambda done, total, bar=bar: bars.update(bar, completed=done, total=total))
            except LeftOut as found:
                notice.print(f"{one.train.dataset.name}: {found}")
                changed = True
    return changed


def _names(paths: Sequence[Path], folder: Path) -> str:
    """What a report is made of: files by name, folders by how many they hold."""
    inside: dict[str, int] = {}
    for path in paths:
        first = path.relative_to(folder).parts[0]
        inside[first] = inside.get(first, 0) + 1
    return ", ".join(f"{first}/ with {n} files" if (folder / first).is_dir() else first for first, n in sorted(inside.items()))


@app.command()
def report(
    suite: Annotated[str, typer.Argument(help="A suite file, its name, or the name its results were kept under.")],
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Also draw the figures (takes seconds).")] = False,
    results: Results = None, reports: Reports = None, as_json: AsJson = False,
) -> None:
    """Render tables (and figures) from the stored records alone. Needs no torch, no data and no weights."""
    from bench.collect import records_file, report_spec
    from bench.places import Places
    from bench.report.tables import terminal_table
    from bench.reporting import render
    from bench.results import read_records

    places = Places.find(results=results, reports=reports)
    name, question, spec = report_spec(suite, places)
    records = read_records(records_file(places, name))
    if not records:
        raise BadInput(f"{records_file(places, name)}: there are no records of {name} yet; `bench run {suite}` makes them")
    rendered = render(name, question, spec, records, places, figures=figures)
    if as_json:
        print(json.dumps({"suite": name, "files": [_relative(p) for p in rendered.paths]}, indent=1))
        return
    for table in rendered.tables:
        console.print(terminal_table(table))
    folder = places.reports / name
    console.print(f"report: {_relative(folder)}/ ({_names(rendered.paths, folder)})", highlight=False)


@app.command()
def status(
    suite: SuiteArgument, overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, until no run is pending or running.")] = False,
    only: Only = None, name: Name = None, results: Results = None, runs: Runs = None, data: Data = None,
    include: Include = None, debug: Debug = False, as_json: AsJson = False,
) -> None:
    """Show where each run is: from its folder first, whatever started it, and from the scheduler second."""
    from bench.collect import others
    from bench.failures import group
    from bench.terminal import Progress, print_failures, print_status, status_json

    opened = open_suite(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    chosen = matching(opened.runs, only)
    if watch:
        from bench.follow import follow

        progress = Progress(opened.name)
        try:
            planned = follow(chosen, opened.places, opened.name, progress)
        finally:
            progress.close()
    else:
        from bench.plan import plan

        planned = plan(chosen, opened.places, opened.name)
    if as_json:
        print(json.dumps([status_json(p) for p in planned], indent=1))
        return
    print_status(opened.name, planned)
    print_failures(group(planned, opened.places, opened.command))
    if more := others(opened.runs, opened.places, opened.name):
        console.print(f"{more} more recorded under other settings; give the same overrides as then to see where they are")


@app.command()
def cancel(
    suite: SuiteArgument, overrides: Overrides = None, only: Only = None, name: Name = None, results: Results = None,
    runs: Runs = None, data: Data = None, include: Include = None, debug: Debug = False,
) -> None:
    """Stop runs that are pending or running, whoever started them; what they have saved stays."""
    from bench.drive import cancel as stop
    from bench.plan import OPEN, plan

    opened = open_suite(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    chosen = matching(opened.runs, only)
    planned = [p for p in plan(chosen, opened.places, opened.name) if p.status in OPEN]
    for sentence in stop(planned, opened.places):
        notice.print(sentence, markup=False)
    left = [p for p in plan([p.run for p in planned], opened.places, opened.name) if p.status in OPEN]
    console.print(f"{len(planned) - len(left)} of {len(planned)} cancelled" if planned else "nothing is pending or running",
                  highlight=False)
    for p in left:
        console.print(f"  {p.run.label}: still {p.status}, {p.note}", markup=False, highlight=False)


@app.command()
def logs(
    suite: SuiteArgument,
    which: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a part of its label.")],
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 40,
    name: Name = None, results: Results = None, runs: Runs = None, data: Data = None, include: Include = None,
    debug: Debug = False,
) -> None:
    """Print the end of a run's log, and the traceback if it failed."""
    from bench.registry import did_you_mean
    from bench.runs import RunFolder
    from bench.submissions import logs as job_logs

    opened = open_suite(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    found, places = opened.runs, opened.places
    one = [r for r in found if which in (r.train_id, r.label)] or matching(found, [which])
    if len(one) != 1:
        raise BadInput(f"{suite}: {len(one)} runs match {which!r}{did_you_mean(which, [r.label for r in one])}")
    folder = RunFolder(places.runs, one[0].train_id)
    printed = [*job_logs(folder)[:1], *sorted(folder.logs.glob("failure*.txt"))]
    for path in printed:
        console.print(f"[bold]{path.name}[/]")
        for line in path.read_text(errors="replace").splitlines()[-lines:]:
            console.print(line, markup=False, highlight=False)
    if follow:
        _tail(opened, one[0], printed[0] if printed and printed[0].suffix != ".txt" else None)
    elif not printed:
        console.print(f"{one[0].label}: no log yet")


def _tail(opened: Opened, one: Run, shown: Path | None) -> None:
    """Print what is added to a run's log, also to that of its next job, until nobody has the run in hand."""
    import time

    from bench.plan import OPEN, plan
    from bench.runs import RunFolder
    from bench.submissions import logs as job_logs

    folder = RunFolder(opened.places.runs, one.train_id)
    at = shown.stat().st_size if shown is not None else 0
    looked, open_ = 0.0, True
    while True:
        newest = next(iter(job_logs(folder)), None)
        if newest is not None:
            if newest != shown:
                shown, at = newest, 0
            with newest.open("rb") as file:
                file.seek(at)
                text = file.read()
            at += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if not open_:
            return
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            open_ = plan([one], opened.places, opened.name)[0].status in OPEN
        time.sleep(0.3)


@app.command()
def prepare(
    suite: Annotated[str | None, typer.Argument(help="A suite file, or its name in suites/.")] = None,
    overrides: Overrides = None,
    checkpoint: Annotated[list[str] | None, typer.Option(
        "--checkpoint", metavar="NAME", help="Fetch this published checkpoint: `bench ls checkpoints`. Can be repeated.")] = None,
    leave_out: LeaveOut = False, data: Data = None, include: Include = None,
) -> None:
    """Fetch data sets, pretrained weights and published checkpoints, and decode images: all that wants a network."""
    if checkpoint:
        _fetch_checkpoints(checkpoint)
    if suite is None:
        if not checkpoint:
            raise BadInput("say what for: `bench prepare SUITE`, or `bench prepare --checkpoint NAME`")
        return
    from bench.registry import resolve
    from bench.run import open_images
    from bench.weights import FILES, download, missing, sentence

    opened = open_suite(suite, overrides, include=include, data=data)
    found, places = opened.runs, opened.places
    fetched = False
    for dataset in {r.train.dataset.name: r for r in found}.values():
        try:
            open_images(dataset, "train", places)
        except BadInput as error:
            if places.data is None:
                raise BadInput(f"{error}; or say where to put them: bench prepare {suite} --data FOLDER") from None
            notice.print(f"fetching {dataset.train.dataset.name} into {places.data}")
            resolve("dataset", dataset.train.dataset.name).download(places.data)
            fetched = True
    wanted = {n for r in found for named in (r.train.networks, *(w.spec.networks for w in r.values)) for n in named}
    lacking = missing(sorted(wanted), places)
    for network in (n for n in lacking if FILES[n].url):
        notice.print(f"fetching {network}")
        download(network, places)
        fetched = True
    if nowhere := [n for n in lacking if not FILES[n].url]:     # the others are here first
        raise BadInput(sentence(nowhere, places))
    if fetched:
        opened = open_suite(suite, overrides, include=include, data=data)
    _decode(opened.runs, places, leave_out)
    console.print(f"{opened.name}: images and weights are ready")


def _fetch_checkpoints(names: Sequence[str]) -> None:
    from bench.catalogue import prepare as fetch
    from bench.places import Places
    from bench.terminal import Bars

    places = Places.find()
    with Bars("fetching") as bars:
        for name in names:
            path = fetch(name, places, progress=lambda done, total, name=name: bars(name, done, total or done))
            notice.print(f"{name}: {path}", markup=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, for editors."""
    from bench.schema import suite_schema

    print(json.dumps(suite_schema(), indent=1, sort_keys=True))


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
