"""typer and rich: parse, call, print. Whatever needs torch is imported inside the commands that need it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bench.errors import BadInput

if TYPE_CHECKING:
    from bench.places import Places
    from bench.plan import Planned
    from bench.run import Run
    from bench.suite import Suite

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train, measure and compare visual tokenizers under one harness.",
)
console = Console(width=None if sys.stdout.isatty() else 160)
notice = Console(stderr=True, soft_wrap=True, highlight=False)

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


def _open(
    suite: str, overrides: list[str] | None, name: str | None, include: list[Path] | None, debug: bool, **given: Path | None
) -> tuple[Suite, list[Run], Places]:
    from bench.places import Places
    from bench.registry import include as include_folder
    from bench.registry import include_from_environment
    from bench.suite import Suite, find_suite

    include_from_environment()
    for folder in include or []:
        include_folder(folder)
    places = Places.find(**given)
    if debug:
        name = f"{name or find_suite(suite).stem}-debug"
    loaded = Suite.load(suite, overrides or [], name=name)
    runs = loaded.expand(places, debug=debug)
    for note in loaded.notes:
        notice.print(f"note: {note}")
    return loaded, runs, places


@app.command("ls")
def list_entries(
    kind: Annotated[str | None, typer.Argument(help="suites, tokenizers, quantizers, metrics, ...; all without it.")] = None,
    include: Include = None,
    as_json: AsJson = False,
) -> None:
    """List suites and components, with one line on each."""
    from bench.registry import HOMES, PLURALS, available, did_you_mean, include_from_environment, signature
    from bench.registry import include as include_folder
    from bench.yaml_lines import load_yaml

    include_from_environment()
    for folder in include or []:
        include_folder(folder)
    found: dict[str, list[dict[str, str]]] = {"suites": []}
    for path in sorted(Path("suites").glob("*.yaml")):
        try:
            data, _ = load_yaml(path.read_text(), path)
            found["suites"].append({"name": path.stem, "summary": str(data.get("question", ""))})
        except BadInput as error:
            found["suites"].append({"name": path.stem, "summary": f"broken: {error}"})
    for home in HOMES:
        found[PLURALS[home]] = [{"name": n, "summary": signature(home, n).summary} for n in available(home)]
    if kind is not None:
        plural = PLURALS.get(kind, kind)
        if plural not in found:
            raise BadInput(f"there is no kind {kind!r}{did_you_mean(kind, found)}")
        found = {plural: found[plural]}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for title, entries in found.items():
        if entries:
            console.print(f"[bold]{title}[/]")
            width = max(len(e["name"]) for e in entries)
            for e in entries:
                console.print(f"  {e['name']:<{width}}  {e['summary']}", markup=False, highlight=False)


@app.command()
def check(
    suite: SuiteArgument, overrides: Overrides = None, data: Data = None, include: Include = None, as_json: AsJson = False
) -> None:
    """Validate a suite completely: keys, types, and one build of each tokenizer on the meta device."""
    loaded, runs, _ = _open(suite, overrides, None, include, False, data=data)
    skipped, parameters = _check(loaded, runs)
    if as_json:
        print(json.dumps([{"train_id": r.train_id, "label": r.label, "parameters": parameters[r.train_id],
                           "skipped": skipped.get(r.train_id)} for r in runs], indent=1))
        return
    for run in runs:
        reason = skipped.get(run.train_id)
        console.print(f"{run.train_id}  {run.label}  " + (f"skipped: {reason}" if reason else
                      f"{parameters[run.train_id]:,} parameters"), markup=False, highlight=False)
    console.print(f"{loaded.file}: {len(runs)} runs, {len(skipped)} of them skipped; all is well", highlight=False)


def _check(loaded: Suite, runs: list[Run]) -> tuple[dict[str, str], dict[str, int]]:
    """(train id -> why it is skipped, train id -> parameters). Raises BadInput for what the user must mend."""
    from bench.build import check_runs

    checked = check_runs(runs)
    problems = dict.fromkeys(
        loaded.locate(run, checked[run.train_id].key, checked[run.train_id].problem)
        for run in runs if checked[run.train_id].problem
    )
    if problems:
        raise BadInput("\n".join(problems))
    skipped = {i: c.skip for i, c in checked.items() if c.skip}
    if len(skipped) == len(runs):
        raise BadInput(f"{loaded.file}: every run is impossible: {next(iter(skipped.values()))}")
    return skipped, {i: c.parameters for i, c in checked.items()}


@app.command("plan")
def show_plan(
    suite: SuiteArgument, overrides: Overrides = None, name: Name = None, results: Results = None, runs: Runs = None,
    data: Data = None, include: Include = None, debug: Debug = False, as_json: AsJson = False,
) -> None:
    """Show which runs are new, done, failed or stale, and what they would cost. Starts nothing."""
    from rich.table import Table

    from bench.plan import TO_RUN, plan

    loaded, found, places = _open(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    planned = plan(found, places, loaded.name)
    if as_json:
        print(json.dumps([_planned_json(p) for p in planned], indent=1))
        return
    table = Table(title=f"{loaded.name}: {loaded.frame.question}", title_justify="left")
    for column in ("run", "id", "state", "steps", "batch", "training images", "hours", "note"):
        table.add_column(column, justify="right" if column in ("steps", "batch", "training images", "hours") else "left")
    for p in planned:
        images = p.run.data["train"]
        count = f"{images.images:,}" + (f" of {images.of:,}" if images.of and images.of != images.images else "")
        table.add_row(p.run.label, p.run.train_id, p.status, f"{p.run.train.steps:,}", str(p.run.train.batch_size), count,
                      "" if p.hours is None or p.status not in TO_RUN else f"{p.hours:.2g}", p.note)
    console.print(table)
    todo = [p for p in planned if p.status in TO_RUN]
    work = sum(p.run.train.steps * p.run.train.batch_size for p in todo if p.status != "measure")
    known = [p.hours for p in todo if p.hours is not None and p.status != "measure"]
    hours = f", about {sum(known):.2g} hours at the speed of earlier runs" if known else ""
    console.print(f"{len(todo)} of {len(planned)} runs to do: {work:,} images to train on{hours}", highlight=False)


def _planned_json(p: Planned) -> dict[str, Any]:
    return {
        "label": p.run.label, "train_id": p.run.train_id, "state": p.status, "note": p.note, "steps": p.run.train.steps,
        "step": p.state.step if p.state else 0, "hours": p.hours, "values": {w.name: w.value_id for w in p.run.values},
        "images_per_second": p.state.images_per_second if p.state else None,
        "eta_seconds": p.state.eta_seconds if p.state else None,
    }


@app.command()
def run(
    suite: SuiteArgument,
    overrides: Overrides = None,
    launcher: Annotated[str, typer.Option(help="debug (this process), local, slurm, or auto.")] = "auto",
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="At most so many jobs at a time.")] = None,
    wait: Annotated[bool | None, typer.Option("--wait/--no-wait", help="Follow submitted jobs to their end.")] = None,
    leave_out: Annotated[bool, typer.Option("--leave-out-unreadable", help="Go on without images that cannot be decoded.")] = False,
    track: Annotated[list[str] | None, typer.Option("--track", help="Also log to tensorboard or wandb.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only runs whose label or id contains this.")] = None,
    debug: Debug = False, name: Name = None, results: Results = None, reports: Reports = None, runs: Runs = None,
    data: Data = None, include: Include = None, as_json: AsJson = False,
) -> None:
    """Train and measure what is missing of a suite, then print its tables. The same command continues a stopped one."""
    from bench.files import write_atomic
    from bench.launch import launch, pack, pick_launcher
    from bench.plan import TO_RUN, collect, plan, preflight, remember_suite, writable
    from bench.registry import source_file
    from bench.runs import RunFolder

    places_given = {"results": results, "reports": reports, "runs": runs, "data": data}
    loaded, found, places = _open(suite, overrides, name, include, debug, **places_given)
    for tracker in track or []:
        source_file("tracker", tracker)
    writable(places)
    how, why = pick_launcher(launcher)
    planned = plan(found, places, loaded.name)
    preflight(planned, places)
    skipped, _ = _check(loaded, found)
    if _decode(planned, places, leave_out):
        loaded, found, places = _open(suite, overrides, name, include, debug, **places_given)     # other images, other ids
        planned = plan(found, places, loaded.name)
        preflight(planned, places)
    remember_suite(loaded, places)
    for r in found:
        if r.train_id in skipped:
            _record_skipped(r, skipped[r.train_id], places)
    chosen = [p.run for p in planned if p.status in (*TO_RUN, "running") and p.run.train_id not in skipped
              and (not only or any(o in p.run.label or o in p.run.train_id for o in only))]
    outcome = None
    if chosen:
        files = []
        for r in chosen:
            folder = RunFolder(places.runs, r.train_id).create()
            file = folder.path / f"run-{loaded.name}.json"
            write_atomic(file, r.model_dump_json())
            files.append((str(file), r.label, r.train_id))
        work = pack(files, loaded.frame.resources)
        follow = _Follow(loaded.name, found, places)
        if track:
            os.environ["BENCH_TRACK"] = ",".join(track)
        notice.print(f"{loaded.name}: {len(chosen)} of {len(found)} runs to do, launcher {how} ({why})", markup=False)
        outcome = launch(work, how, places=places, slots=jobs, on_progress=follow,
                         wait=how != "slurm" if wait is None else wait)
        follow.finish()
    records = collect(loaded.name, found, places)
    tables, paths = _render(loaded.name, loaded.frame.question, loaded.frame.report, records, places, figures=True)
    failures = [] if outcome is None else outcome.failures
    if as_json:
        print(json.dumps({
            "suite": loaded.name, "launcher": outcome.launcher if outcome else None,
            "done": sum(r.state == "done" for r in records), "failed": {f.label: f.reason for f in failures},
            "skipped": skipped, "report": [_relative(p) for p in paths],
        }, indent=1))
    else:
        for table in tables:
            console.print(table)
        for failure in failures:
            notice.print(f"[red]failed[/] {failure.label}: ", end="")
            notice.print(failure.reason, markup=False)
            for line in failure.tail:
                notice.print(f"    {line}", markup=False)
        if outcome is not None and outcome.submitted:
            console.print(f"submitted: {', '.join(outcome.job_ids)}; `bench status {loaded.name}` follows them")
        if not chosen:
            console.print("nothing to do: every run is trained and measured")
        if paths:
            console.print(f"report: {_relative(places.reports / loaded.name)}/ ({', '.join(sorted(p.name for p in paths))})",
                          highlight=False)
    if outcome is not None and outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _decode(planned: list[Planned], places: Places, leave_out: bool) -> bool:
    """Decode what the runs need, once, with progress. True where files were left out and the ids have changed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bench.image_cache import LeftOut, decoded
    from bench.plan import TO_RUN
    from bench.run import data_key, open_images, streams

    changed = False
    todo: dict[tuple[str, str], Run] = {}
    for p in planned:
        if p.status in TO_RUN:
            for split in ("train", "test"):
                todo.setdefault((data_key(p.run.train.dataset), split), p.run)
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


def _record_skipped(run: Run, reason: str, places: Places) -> None:
    from bench.results import Record
    from bench.runs import RunFolder

    RunFolder(places.runs, run.train_id).create().write_record(Record(
        train_id=run.train_id, label=run.label, state="skipped", reason=reason, debug=run.train.debug,
        spec=json.loads(run.train.model_dump_json()), fields=run.fields, components=run.components, data=run.data,
    ))


class _Follow:
    """Shows progress: a live table on a terminal, plain lines elsewhere; collects records as runs end."""

    def __init__(self, suite: str, runs: list[Run], places: Places) -> None:
        self.suite, self.runs, self.places = suite, runs, places
        self.phases: dict[str, str] = {}
        self.said: dict[str, float] = {}
        self.live: Any = None

    def __call__(self, states: list[tuple[str, Any]]) -> None:
        ended = {label for label, s in states if s is not None and s.phase in ("done", "failed")}
        if ended - {label for label, phase in self.phases.items() if phase in ("done", "failed")}:
            from bench.plan import collect

            collect(self.suite, self.runs, self.places)
        if sys.stderr.isatty():
            self._show(states)
        else:
            self._say(states)
        self.phases = {label: s.phase for label, s in states if s is not None}

    def _show(self, states: list[tuple[str, Any]]) -> None:
        from rich.live import Live

        if self.live is None:
            self.live = Live(console=notice, refresh_per_second=4, transient=True)
            self.live.start()
        self.live.update(status_table(self.suite, states))

    def _say(self, states: list[tuple[str, Any]]) -> None:
        for label, s in states:
            if s is None or s.phase == "waiting":
                continue
            changed = self.phases.get(label) != s.phase
            if not changed and (s.phase != "training" or time.monotonic() - self.said.get(label, 0.0) < 10):
                continue
            self.said[label] = time.monotonic()
            notice.print(f"{label}: {describe_state(s)}", markup=False)

    def finish(self) -> None:
        if self.live is not None:
            self.live.stop()


def describe_state(s: Any) -> str:
    """`training, step 200 of 400, 812 images/s, 3 s left`."""
    words = [s.phase]
    if s.phase == "training":
        words.append(f"step {s.step:,} of {s.steps:,}")
        if s.images_per_second:
            words.append(f"{s.images_per_second:,.0f} images/s")
        if s.eta_seconds:
            words.append(f"{s.eta_seconds:,.0f} s left")
    if s.restarts:
        words.append(f"restarted {s.restarts} times")
    if s.reason:
        words.append(s.reason)
    return ", ".join(words)


def status_table(title: str, states: list[tuple[str, Any]]) -> Any:
    """A rich table of runs and where they are."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("run", "state", "step", "images/s", "left"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for label, s in states:
        if s is None:
            table.add_row(label, "waiting", "", "", "")
            continue
        left = "" if not s.eta_seconds or s.phase != "training" else f"{s.eta_seconds:,.0f} s"
        speed = f"{s.images_per_second:,.0f}" if s.images_per_second else ""
        table.add_row(label, s.phase + (f": {s.reason}" if s.reason else ""), f"{s.step:,} / {s.steps:,}", speed, left)
    return table


def _render(name: str, question: str, report: Any, records: list[Any], places: Places, *, figures: bool) -> tuple[list[Any], list[Path]]:
    """(tables for the terminal, files written or kept)."""
    from bench.report.render import build_tables, render_suite
    from bench.report.tables import terminal_table

    if not records:
        return [], []
    paths = list(render_suite(name, records, report, question, places.reports))
    if figures:
        from bench.report.figures import render_figures

        paths += render_figures(name, records, report, places.results / name / "curves.parquet", places.reports)
    return [terminal_table(t) for t in build_tables(name, records, report)], paths


@app.command()
def report(
    suite: Annotated[str, typer.Argument(help="A suite file, its name, or the name its results were kept under.")],
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Also draw the figures (takes seconds).")] = False,
    results: Results = None, reports: Reports = None, as_json: AsJson = False,
) -> None:
    """Render tables (and figures) from the stored records alone. Needs no torch, no data and no weights."""
    from bench.places import Places
    from bench.plan import records_file, report_spec
    from bench.results import read_records

    places = Places.find(results=results, reports=reports)
    name, question, spec = report_spec(suite, places)
    records = read_records(records_file(places, name))
    if not records:
        raise BadInput(f"{records_file(places, name)}: there are no records of {name} yet; `bench run {suite}` makes them")
    tables, paths = _render(name, question, spec, records, places, figures=figures)
    if as_json:
        print(json.dumps({"suite": name, "files": [_relative(p) for p in paths]}, indent=1))
        return
    for table in tables:
        console.print(table)
    console.print(f"report: {_relative(places.reports / name)}/ ({', '.join(sorted(p.name for p in paths))})", highlight=False)


@app.command()
def status(
    suite: SuiteArgument, overrides: Overrides = None, name: Name = None, results: Results = None, runs: Runs = None,
    data: Data = None, include: Include = None, debug: Debug = False, as_json: AsJson = False,
) -> None:
    """Show where each run is: from its folder, whatever started it."""
    from rich.table import Table

    from bench.plan import others, plan

    loaded, found, places = _open(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    planned = plan(found, places, loaded.name)
    if as_json:
        print(json.dumps([_planned_json(p) for p in planned], indent=1))
        return
    table = Table(title=loaded.name, title_justify="left")
    for column in ("run", "id", "state", "what"):
        table.add_column(column)
    for p in planned:
        what = describe_state(p.state) if p.state is not None and p.status in ("running", "resume") else p.note
        table.add_row(p.run.label, p.run.train_id, p.status, what)
    console.print(table)
    console.print(", ".join(f"{sum(p.status == s for p in planned)} {s}" for s in dict.fromkeys(p.status for p in planned)))
    if more := others(found, places, loaded.name):
        console.print(f"{more} more recorded under other settings; give the same overrides as then to see where they are")


@app.command()
def logs(
    suite: SuiteArgument,
    which: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a part of its label.")],
    overrides: Overrides = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 40,
    name: Name = None, results: Results = None, runs: Runs = None, data: Data = None, include: Include = None,
    debug: Debug = False,
) -> None:
    """Print the end of a run's log, and the traceback if it failed."""
    from bench.launch import job_logs
    from bench.registry import did_you_mean
    from bench.runs import RunFolder

    _, found, places = _open(suite, overrides, name, include, debug, results=results, runs=runs, data=data)
    matching = [r for r in found if which == r.train_id or which == r.label] or [
        r for r in found if r.train_id.startswith(which) or which in r.label]
    if len(matching) != 1:
        what = "no run" if not matching else f"{len(matching)} runs"
        raise BadInput(f"{suite}: {what} match {which!r}{did_you_mean(which, [r.label for r in matching or found])}")
    folder = RunFolder(places.runs, matching[0].train_id)
    found_any = False
    failure = folder.logs / "failure.txt"
    for path in [*job_logs(folder)[:1], *([failure] if failure.is_file() else [])]:
        text = path.read_text(errors="replace").splitlines()[-lines:]
        found_any = True
        console.print(f"[bold]{path.name}[/]")
        for line in text:
            console.print(line, markup=False, highlight=False)
    if not found_any:
        console.print(f"{matching[0].label}: no log yet")


@app.command()
def prepare(
    suite: SuiteArgument, overrides: Overrides = None,
    leave_out: Annotated[bool, typer.Option("--leave-out-unreadable", help="Go on without images that cannot be decoded.")] = False,
    data: Data = None, include: Include = None,
) -> None:
    """Fetch data sets and pretrained weights that a suite needs, and decode its images: all that wants a network."""
    from bench.plan import plan
    from bench.registry import resolve
    from bench.run import open_images
    from bench.weights import download, missing

    loaded, found, places = _open(suite, overrides, None, include, False, data=data)
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
    for network in missing(sorted({n for r in found for w in r.values for n in w.spec.networks}), places):
        notice.print(f"fetching {network}")
        download(network, places)
        fetched = True
    if fetched:
        loaded, found, places = _open(suite, overrides, None, include, False, data=data)
    _decode(plan(found, places, loaded.name), places, leave_out)
    console.print(f"{loaded.name}: images and weights are ready")


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
