"""`bench view`: a page on a trained tokenizer."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli import Data, Include, Runs, app
from bench.errors import BadInput
from bench.terminal import console


@app.command()
def view(
    run: Annotated[str | None, typer.Argument(help="A run: its id, the beginning of it, its label or its folder.")] = None,
    checkpoint: Annotated[str | None, typer.Option(
        "--checkpoint", metavar="FILE|NAME|URL|hf:OWNER/NAME[:FILE]", help="Look at this instead.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Whose state dict it is: `bench ls formats`.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page. 0: a free one.")] = 0,
    runs: Runs = None, data: Data = None, include: Include = None,
) -> None:
    """Open a local page on a trained tokenizer: images, reconstructions, tokens to edit, levels decoded alone."""
    from bench.places import Places
    from bench.registry import include as include_folder
    from bench.registry import include_from_environment

    if (run is None) == (checkpoint is None):
        raise BadInput("say which tokenizer: `bench view RUN`, or `bench view --checkpoint FILE`")
    if format is not None and checkpoint is None:
        raise BadInput("--format goes with --checkpoint; a run says itself what it is")
    include_from_environment()
    for folder in include or []:
        include_folder(folder)
    from bench.build import pick_device
    from bench.view import Server, open_viewer

    viewer = open_viewer(run or checkpoint or "", Places.find(runs=runs, data=data), run=run is not None, format=format,
                         device=pick_device())
    server = Server(viewer, port)
    console.print(f"{viewer.title}: {server.address}\nfor this machine alone; Ctrl-C ends it", markup=False, highlight=False,
                  soft_wrap=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
