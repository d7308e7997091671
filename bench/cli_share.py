"""Commands about results that travel: pack a suite for others, join what others have packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import AsJson, Reports, Results, app
from bench.terminal import console, notice


@app.command("publish")
def publish_suite(
    suite: Annotated[str, typer.Argument(help="A suite file, its name, or the name its results were kept under.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A .tar.gz or a .zip. Default: <suite>.tar.gz here.")] = None,
    results: Results = None, reports: Reports = None, as_json: AsJson = False,
) -> None:
    """Pack a suite's records, report and file into one archive with checksums; no weights, no run folders."""
    from bench.collect import report_spec
    from bench.places import Places
    from bench.share import publish

    places = Places.find(results=results, reports=reports)
    name = report_spec(suite, places)[0]
    path, files = publish(name, places, output)
    if as_json:
        print(json.dumps({"archive": str(path), "bytes": path.stat().st_size, "files": files}, indent=1))
        return
    if not any("/reports/" in file for file in files):
        notice.print(f"{name} has no report; `bench report {name} --figures` makes it, then publish again", markup=False)
    console.print(f"{path}: {len(files)} files, {path.stat().st_size:,} bytes; `bench merge {path.name}` joins them to other "
                  f"results", markup=False, highlight=False)


@app.command("merge")
def merge_sources(
    sources: Annotated[list[str], typer.Argument(
        metavar="SOURCE...", help="Folders results/<suite>, or archives of `bench publish`; WHO=SOURCE says whose they are.")],
    name: Annotated[str | None, typer.Option("--name", help="Keep them under this name. Default: the suite's, where all have one.")] = None,
    results: Results = None, as_json: AsJson = False,
) -> None:
    """Join results of several people with those that are here; what differs is kept, and shown with whose it is."""
    from bench.places import Places
    from bench.share import merge_results

    merged = merge_results(sources, Places.find(results=results), name)
    if as_json:
        print(json.dumps({"folder": str(merged.folder), "runs": merged.runs, "differing": merged.differing,
                          "written": merged.written, "remarks": merged.remarks}, indent=1))
        return
    for remark in merged.remarks:
        notice.print(remark, markup=False)
    several = f", {len(merged.differing)} of them with results that differ" if merged.differing else ""
    console.print(f"{merged.folder}: {merged.runs} runs{several}{'' if merged.written else '; nothing is new'}",
                  markup=False, highlight=False)
    for label in merged.differing:
        console.print(f"  {label}", markup=False, highlight=False)
    console.print(f"`bench report {merged.folder.name}` shows them", markup=False, highlight=False)
