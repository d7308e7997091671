"""reconstructions.png of a suite: the same test images in rows, the original and one headed column a run. Torch-free.

The pictures are cut out of what each run keeps: images/reconstructions.png, a grid of pairs (original, reconstruction).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.files import replace_file
from bench.report.drawing import natural, to_csv
from bench.report.grouping import canonical
from bench.report.headings import unusual_networks
from bench.report.series import settings_of, shown_runs
from bench.results import Record, Value

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

GRID_IMAGES = 32        # of a run's own picture: the first images of the split, as in the reference's sample grid
GRID_COLUMNS = 8        # pictures in a row: four originals, each beside its reconstruction
GRID_BORDER = 2         # black pixels around each picture

FILE = "reconstructions"
LEAST_TILE = 96         # pixels of a side; smaller pictures are enlarged by a whole factor, pixel by pixel
ACROSS = 8              # runs of a band, beside the originals
MOST_BYTES = 2**20
METRICS = (("psnr", "PSNR", 2), ("ssim", "SSIM", 4), ("lpips", "LPIPS", 4), ("rfid", "rFID", 2))
GAP, MARGIN, LINE = 3, 8, 14


@dataclass(frozen=True, slots=True)
class Strip:
    """A run's pictures: uint8 [n, h, w, 3] each."""

    record: Record
    originals: np.ndarray
    reconstructions: np.ndarray


@dataclass(frozen=True, slots=True)
class Column:
    """What is shown in a column: a heading, lines below it, and pictures."""

    heading: str
    lines: tuple[str, ...]
    pictures: np.ndarray


def render_reconstructions(
    name: str, records: Iterable[Record], runs_folder: Path, reports: Path, most_images: int = 8, most_runs: int = 12
) -> list[Path]:
    """Write reports/<name>/reconstructions.png, and .csv: which runs and images are shown, and why others are not.

    Up to `most_runs` runs have a column each; of more, one run of each setting. Runs whose original images are other
    ones than most runs' are left out, and the picture says so. Nothing is written, and [] returned, where no run's own
    picture is there, or fewer runs' than the file shows already (the runs were made on another machine).
    """
    trained = [r for r in shown_runs(records) if r.trained]
    path = reports / name / f"{FILE}.png"
    strips, notes = _read(trained, runs_folder)
    if not strips or _shown_before(path.with_suffix(".csv"), trained) - {s.record.train_id for s in strips}:
        return []
    common = Counter(_key(s) for s in strips).most_common(1)[0][0]
    notes |= {s.record.train_id: "its original images are other ones" for s in strips if _key(s) != common}
    chosen, further = _chosen([s for s in strips if _key(s) == common], most_runs)
    notes |= further
    labels = {r.train_id: r.label for r in trained}
    texts = _numbers([s.record for s in chosen])
    columns = [Column("original", (), chosen[0].originals)]
    columns += [Column(s.record.label, texts[s.record.train_id], s.reconstructions) for s in chosen]
    said = Counter(notes.values())
    sentences = _networks([s.record for s in chosen])
    sentences += [f"not shown: {_some([labels[t] for t, why in notes.items() if why == reason])}: {reason}" for reason in said]
    png, images = compressed(columns, sentences, min(most_images, len(chosen[0].originals)))
    rows: list[tuple[Any, ...]] = [(i, s.record.train_id, s.record.label, images, "") for i, s in enumerate(chosen, start=1)]
    rows += [("", t, labels[t], 0, why) for t, why in sorted(notes.items())]
    replace_file(path, png)
    replace_file(path.with_suffix(".csv"), to_csv(("column", "train_id", "label", "images", "why not shown"), rows))
    return [path, path.with_suffix(".csv")]


# -- which pictures ------------------------------------------------------------------------------------------


def cut(picture: np.ndarray, images: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A run's grid uint8 [H, W, 3] of so many pairs -> originals and reconstructions, [images, height, width, 3].

    Raises ValueError where the grid has another geometry.
    """
    columns = min(GRID_COLUMNS, 2 * images)
    rows = -(-2 * images // columns)
    tall, wide = height + GRID_BORDER, width + GRID_BORDER
    expected = (rows * tall + GRID_BORDER, columns * wide + GRID_BORDER)
    if picture.shape[:2] != expected:
        raise ValueError(f"the picture has {picture.shape[1]} x {picture.shape[0]} pixels, not {expected[1]} x {expected[0]}")
    inner = picture[GRID_BORDER:, GRID_BORDER:].reshape(rows, tall, columns, wide, -1)[:, :height, :, :width]
    pairs = inner.swapaxes(1, 2).reshape(rows * columns, height, width, -1)[: 2 * images]
    return pairs[0::2], pairs[1::2]


def _read(records: Sequence[Record], runs_folder: Path) -> tuple[list[Strip], dict[str, str]]:
    """The runs' pictures, and why there are none of some (train_id -> reason)."""
    from PIL import Image

    strips: list[Strip] = []
    notes: dict[str, str] = {}
    for record in records:
        path = runs_folder / record.train_id / "images" / f"{FILE}.png"
        size, test = record.fields.get("dataset.image_size"), record.data.get("test")
        try:
            with Image.open(path) as file:
                pixels = np.asarray(file.convert("RGB"))
            side = size if isinstance(size, int) else (pixels.shape[1] - GRID_BORDER) // GRID_COLUMNS - GRID_BORDER
            images = min(GRID_IMAGES, test.images) if test is not None else GRID_IMAGES
            strips.append(Strip(record, *cut(pixels, images, side, side)))
        except FileNotFoundError:
            notes[record.train_id] = "its folder holds no picture here"
        except (OSError, ValueError) as error:
            notes[record.train_id] = f"its picture cannot be read ({error})"
    return strips, notes


def _key(strip: Strip) -> str:
    """Equal for the same original images."""
    return hashlib.sha256(repr(strip.originals.shape).encode() + strip.originals.tobytes()).hexdigest()


def _shown_before(path: Path, records: Sequence[Record]) -> set[str]:
    """Runs of these records that the file shows already."""
    if not path.is_file() or not path.with_suffix(".png").is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        shown = {row.get("train_id", "") for row in csv.DictReader(file) if row.get("column")}
    return shown & {r.train_id for r in records}


def _chosen(strips: Sequence[Strip], most: int) -> tuple[list[Strip], dict[str, str]]:
    """At most so many runs, in the order of their labels; of too many, the first run of each setting."""
    ordered = sorted(strips, key=lambda s: (natural(s.record.label), s.record.train_id))
    notes: dict[str, str] = {}
    if len(ordered) > most:
        settings = settings_of(s.record for s in ordered)
        first: dict[str, Strip] = {}
        for s in ordered:
            if first.setdefault(settings[s.record.train_id], s) is not s:
                notes[s.record.train_id] = "another seed is shown"
        ordered = list(first.values())
    notes |= {s.record.train_id: f"there is room for {most} runs" for s in ordered[most:]}
    return ordered[:most], notes


def _numbers(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """train_id -> lines such as 'PSNR 23.47', measured in the same way for all who have one."""
    found: dict[str, list[str]] = {r.train_id: [] for r in records}
    for name, title, decimals in METRICS:
        for train_id, v in _usual(records, name).items():
            found[train_id].append(f"{title} {v.number:.{decimals}f}")
    return {train_id: tuple(lines) for train_id, lines in found.items()}


def _usual(records: Sequence[Record], name: str) -> dict[str, Value]:
    """train_id -> value of that name, of those measured under the conditions that most share."""
    values: dict[str, dict[str, Value]] = {}
    for r in records:
        for _, v in sorted(r.values.items()):
            if v.name == name and v.number is not None:
                values.setdefault(canonical(v.conditions()), {}).setdefault(r.train_id, v)
    return max(values.values(), key=len, default={})


def _networks(records: Sequence[Record]) -> list[str]:
    """'LPIPS with squeeze': numbers of a network that is not the usual one are on another scale, and there is no room
    for that below a heading."""
    return [f"{title} with {' and '.join(networks)}" for name, title, _ in METRICS
            for v in list(_usual(records, name).values())[:1] if (networks := unusual_networks(v.metric, v.keywords))]


def _some(labels: Sequence[str], most: int = 6) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


# -- the picture ---------------------------------------------------------------------------------------------


def compressed(columns: Sequence[Column], notes: Sequence[str], images: int) -> tuple[bytes, int]:
    """(PNG, images shown): as many images as fit into MOST_BYTES, at least four; then at half their size, or less."""
    side = columns[0].pictures.shape[1]
    tries = [(n, 1) for n in range(images, min(images, 4) - 1, -2)]
    tries += [(min(images, 4), shrink) for shrink in (2, 4, 8) if side // shrink >= LEAST_TILE]
    for n, shrink in tries:
        file = io.BytesIO()
        compose(columns, notes, n, shrink).save(file, "PNG", optimize=True)
        if file.tell() < MOST_BYTES:
            break
    return file.getvalue(), n


def compose(columns: Sequence[Column], notes: Sequence[str], images: int, shrink: int = 1) -> Image:
    """Bands of columns, the originals first in each. Pictures are [n, h, w, 3]; small ones are enlarged."""
    from PIL import Image, ImageDraw

    plain, bold = _font("DejaVuSans.ttf"), _font("DejaVuSans-Bold.ttf")
    height, width = (side // shrink for side in columns[0].pictures.shape[1:3])
    factor = -(-LEAST_TILE // min(height, width))
    tall, wide = height * factor + GAP, max(width * factor, LEAST_TILE) + GAP
    runs = columns[1:]
    each = -(-len(runs) // -(-len(runs) // ACROSS))         # bands as even as can be
    bands = [[columns[0], *runs[i : i + each]] for i in range(0, len(runs), each)]
    heads = [[(wrapped(c.heading, bold, wide - GAP - 2), c.lines) for c in band] for band in bands]
    tops = [LINE * max(len(lines) + len(more) for lines, more in band) + 6 for band in heads]
    across = 2 * MARGIN + max(len(b) for b in bands) * wide
    scale = [f"every pixel is shown as {factor} x {factor}"] if factor > 1 else \
        [f"shown at 1/{shrink} of the size"] if shrink > 1 else []
    foot = [line for note in (*scale, *notes) for line in wrapped(note, plain, across - 2 * MARGIN)]
    down = 2 * MARGIN + sum(top + images * tall + 10 for top in tops) + LINE * len(foot)
    canvas = Image.new("RGB", (across, down), "white")
    pen = ImageDraw.Draw(canvas)
    y = MARGIN
    for band, head, top in zip(bands, heads, tops, strict=True):
        for i, (column, (lines, more)) in enumerate(zip(band, head, strict=True)):
            x = MARGIN + i * wide
            for j, line in enumerate((*lines, *more)):
                pen.text((x, y + j * LINE), line, fill="black" if j < len(lines) else "#555555",
                         font=bold if j < len(lines) else plain)
            for j in range(images):
                tile = Image.fromarray(np.ascontiguousarray(column.pictures[j]))
                if shrink > 1:
                    tile = tile.resize((width, height), Image.Resampling.LANCZOS)
                if factor > 1:
                    tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
                canvas.paste(tile, (x, y + top + j * tall))
        y += top + images * tall + 10
    for line in foot:
        pen.text((MARGIN, y), line, fill="#555555", font=plain)
        y += LINE
    return canvas


def _font(file: str) -> FreeTypeFont:
    """The fonts that matplotlib brings: the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", file), 11, layout_engine=ImageFont.Layout.BASIC)


def wrapped(text: str, font: Any, width: float, most: int = 5) -> tuple[str, ...]:
    """Lines no wider than so many pixels, broken at blanks and after signs, else anywhere; the last may end in dots."""
    lines = [""]
    for word in re.findall(r"\s+|[^\s=_/,:;-]+[=_/,:;-]*|[=_/,:;-]+", " ".join(text.split())):
        pieces = [word] if font.getlength(word) <= width else list(word)
        for piece in pieces:
            if font.getlength((lines[-1] + piece).rstrip()) <= width or not lines[-1]:
                lines[-1] += piece
            else:
                lines.append(piece.lstrip())
    lines = [line.rstrip() for line in lines if line.strip()]
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "…"]
    return tuple(lines)
