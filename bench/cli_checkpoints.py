"""Commands about single checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli import Include, app
from bench.terminal import console


@app.command("convert")
def convert_checkpoint(
    checkpoint: Annotated[str, typer.Argument(
        metavar="FILE|NAME|URL|hf:OWNER/NAME[:FILE]", help="A checkpoint, or a run's folder.")],
    folder: Annotated[Path, typer.Argument(help="Where model.safetensors and tokenizer.json are written.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the tokenizer: tokenizer.key=value ...")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Whose state dict it is: `bench ls formats`.")] = None,
    image_size: Annotated[int | None, typer.Option(
        "--image-size", min=1, help="Pixels of a side. Default: what the checkpoint says, or 256.")] = None,
    weights: Annotated[Literal["live", "average"], typer.Option(
        "--weights", help="Of a run that was trained with train.average, which.")] = "live",
    include: Include = None,
) -> None:
    """Write a checkpoint of anybody as ours, which `bench eval` and load_tokenizer open without more words."""
    from bench.load import load_tokenizer
    from bench.registry import include as include_folder
    from bench.registry import include_from_environment
    from bench.suite import tokenizer_keywords
    from bench.terminal import Bars

    include_from_environment()
    for one in include or []:
        include_folder(one)
    with Bars("fetching") as bars:
        tokenizer = load_tokenizer(checkpoint, format=format, image_size=image_size, weights=weights,
                                   **tokenizer_keywords(overrides or []),
                                   progress=lambda done, total: bars("the checkpoint", done, total or done))
    tokenizer.save_pretrained(folder)
    count = sum(p.numel() for p in tokenizer.parameters())
    console.print(f"{folder}: {tokenizer.model.name}, {count:,} parameters, {tokenizer.image_size} pixels", markup=False,
                  highlight=False)
