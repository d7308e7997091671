"""Commands about single checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli import Include, app
from bench.errors import BadInput
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


def listing() -> list[dict[str, object]]:
    """What `bench ls checkpoints` says of each; `here`: yes, no, by hand (no, and no program can fetch it), or another
    file (of its name, with another hash)."""
    from bench.catalogue import checkpoints, find_checkpoint, load_checkpoint
    from bench.places import Places

    places, found = Places.find(), []
    for name in checkpoints():
        entry = load_checkpoint(name)
        try:
            absent = "no" if all(one.url for one in entry.files) else "by hand"
            here = absent if find_checkpoint(entry, places) is None else "yes"
        except BadInput:
            here = "another file"
        found.append({"name": name, "summary": entry.title, "format": entry.format, "image_size": entry.image_size,
                      "license": entry.license, "here": here})
    return found


def print_listing(entries: list[dict[str, object]]) -> None:
    """As lines of equal columns below their names."""
    lines = [("name", "title", "format", "pixels", "licence", "here"), *(tuple(map(str, e.values())) for e in entries)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for i, line in enumerate(lines):
        text = "  ".join(f"{word:<{width}}" for word, width in zip(line, widths, strict=True)).rstrip()
        console.print(text, style="bold" if i == 0 else None, markup=False, highlight=False, soft_wrap=True)
    console.print("here: no: `bench prepare --checkpoint NAME` fetches it; by hand: it says where to get it", markup=False,
                  highlight=False, style="dim", soft_wrap=True)
