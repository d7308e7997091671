"""reports/<suite>/index.html: the whole report in one file that needs no network and no server. Torch-free.

The template escapes what it shows; what the script reads is JSON in an element of its own, without a single `<`. Pictures
are in the file as data. The file is no part of a repository: it holds pictures of the runs on this machine.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.files import replace_file
from bench.report.bibtex import entries_of
from bench.report.drawing import natural
from bench.report.formats import to_csv, to_html, to_latex, to_markdown
from bench.report.grouping import plain
from bench.report.model import Table
from bench.report.series import run_colours, shown_runs
from bench.results import Record, Value

FILE = "index.html"
HERE = Path(__file__).parent
BROWSED = 24                # runs in the reconstruction browser
DIAGNOSED = 12              # runs whose codebook figures are in the file
POINTS = 300                # of one line of a curve
SHEET = 8                   # pictures side by side in a sheet
MOST_BYTES = 40 * 2**20     # of all sheets together; then fewer images


def render_page(
    name: str, question: str, tables: Sequence[Table], records: Iterable[Record], runs_folder: Path, reports: Path, *,
    curves: Path | None = None, suite: Mapping[str, Any] | None = None,
) -> Path:
    """Write reports/<name>/index.html from what is stored and from the figures that lie beside it; returns its path."""
    folder = reports / name
    every = list(records)
    runs = sorted(shown_runs(every), key=lambda r: (natural(r.label), r.train_id))
    trained = [r for r in runs if r.trained]
    colours = {t: _css(c) for t, c in run_colours(every).items()}
    data = {
        "tables": [{"name": t.name, "latex": to_latex(t), "markdown": to_markdown(t), "csv": to_csv(t)} for t in tables],
        "bibtex": "\n".join(entries_of(every)),
        "runs": [{"id": r.train_id, "label": r.label, "colour": colours.get(r.train_id, "#888")} for r in trained],
        "curves": _curves(curves, trained),
        "browser": _browser(trained, runs_folder),
    }
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, keep_trailing_newline=True,
                              trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    differing = _differing(runs)
    page = environment.get_template("page.html.j2").render(
        name=name, question=question,
        tables=[(t.name, t.title, Markup(to_html(t))) for t in tables],     # a table escapes itself
        figures=_figures(folder),
        runs=[_section(r, differing, name, suite or {}, folder, i < DIAGNOSED) for i, r in enumerate(trained)],
        failures=[(r.label, r.state, r.reason or "no reason was recorded") for r in runs if not r.trained],
        browser=data["browser"] is not None, curves=bool(data["curves"]), bibtex=bool(data["bibtex"]),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((HERE / file).read_text(encoding="utf-8") for file in ("common.js", "page.js"))),
        data=Markup(script_json(data)),
    )
    replace_file(folder / FILE, page)
    return folder / FILE


def script_json(data: Any) -> str:
    """JSON that can stand in a <script> element whatever strings it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _css(colour: Any) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# -- figures and sections --------------------------------------------------------------------------------------------


def _figures(folder: Path) -> list[tuple[str, str]]:
    """(name, data) of the suite's figures, in order of their names; reconstructions are the browser's."""
    return [(path.stem, data_url(path.read_bytes(), "image/svg+xml")) for path in sorted(folder.glob("*.svg"))]


def _differing(runs: Sequence[Record]) -> list[str]:
    """Dotted keys whose values are not the same in all runs."""
    keys = dict.fromkeys(k for r in runs for k in r.fields)
    return [k for k in sorted(keys) if len({json.dumps(r.fields.get(k), sort_keys=True) for r in runs}) > 1]


def _section(
    record: Record, differing: Sequence[str], name: str, suite: Mapping[str, Any], folder: Path, figures: bool,
) -> dict[str, Any]:
    from bench.report.diagnostics import folder_of

    where = folder / "diagnostics" / folder_of(record)
    pictures = sorted(where.glob("*.png")) if figures else []
    kept = record.provenance
    told = [("finished", kept.get("finished")), ("commit", kept.get("commit")), ("device", kept.get("device")),
            ("precision", kept.get("precision")), ("processes", kept.get("processes")), ("Python", kept.get("python")),
            ("torch", (kept.get("versions") or {}).get("torch")),
            ("pretrained", ", ".join(kept.get("pretrained") or ())),
            ("uncommitted changes", "yes: its folder keeps them" if kept.get("dirty") else None)]
    return {
        "id": record.train_id, "label": record.label,
        "settings": [(k, plain(record.fields[k])) for k in differing if k in record.fields],
        "measured": [_value(v) for v in sorted(record.values.values(), key=lambda v: natural(v.name))],
        "cost": [(k.replace("_", " "), _short(v)) for k, v in sorted(record.cost.items()) if v is not None]
        + [(f"parameters, {k}", f"{v:,}") for k, v in record.parameters.items()],
        "provenance": [(k, str(v)) for k, v in told if v not in (None, "")],
        "command": command(record, name, suite),
        "figures": [(p.stem.replace("_", " "), data_url(p.read_bytes(), "image/png")) for p in pictures],
    }


def command(record: Record, name: str, suite: Mapping[str, Any]) -> str:
    """What makes this run again, from the suite as it was run."""
    overrides = [f"{k}={v if isinstance(v, str) else json.dumps(v, separators=(',', ':'))}"
                 for k, v in sorted((suite.get("overrides") or {}).items())]
    words = ["bench", "run", Path(str(suite.get("file") or name)).name.removesuffix(".yaml"), *overrides,
             "--only", record.train_id]
    return shlex.join(words)


def _value(value: Value) -> tuple[str, str]:
    title = value.name
    if value.number is None:
        return title, f"– ({value.reason})"
    shown = f"{value.number:.2%}" if value.unit == "share" else f"{value.number:,.4f} {value.unit}".strip()
    return title, shown


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


# -- curves ----------------------------------------------------------------------------------------------------------


def _curves(path: Path | None, runs: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each quantity its lines, as columns of numbers of at most POINTS points."""
    from bench.report.curve_figures import curve_figures, read_curves

    if path is None or not path.is_file():
        return []
    found: dict[str, list[dict[str, Any]]] = {}
    for figure in curve_figures(read_curves(path, {r.train_id for r in runs})):
        for quantity, lines in figure.panels.items():
            found[quantity] = [{"run": c.train_id, "test": c.test, **_thinned(c.steps, c.values)} for c in lines]
    return [{"name": name, "lines": lines} for name, lines in found.items()]


def _thinned(steps: Sequence[int], values: Sequence[float]) -> dict[str, list[float]]:
    every = max(1, math.ceil(len(steps) / POINTS))
    kept = sorted({*range(0, len(steps), every), len(steps) - 1})
    return {"x": [steps[i] for i in kept], "y": [float(f"{values[i]:.6g}") for i in kept]}


# -- the reconstruction browser --------------------------------------------------------------------------------------


def _browser(runs: Sequence[Record], runs_folder: Path) -> dict[str, Any] | None:
    """Sheets of pictures, codes and numbers of each image; None where no run's pictures are on this machine.

    Runs that reconstruct other originals than the first one are left out.
    """
    read: list[tuple[Record, dict[str, np.ndarray]]] = []
    for record in runs:
        try:
            with np.load(runs_folder / record.train_id / "images" / "samples.npz") as file:
                arrays = dict(file)
        except (OSError, ValueError, KeyError):
            continue
        if not read or np.array_equal(arrays["originals"], read[0][1]["originals"]):
            read.append((record, arrays))
        if len(read) == BROWSED:
            break
    if not read:
        return None
    originals = read[0][1]["originals"]
    sheets = [_sheet(originals), *(_sheet(a["reconstructions"]) for _, a in read)]
    images = len(originals)
    while images > 4 and sum(map(len, sheets)) > MOST_BYTES:
        images = max(4, images // 2)
        sheets = [_sheet(originals[:images]), *(_sheet(a["reconstructions"][:images]) for _, a in read)]
    return {
        "images": images, "height": originals.shape[1], "width": originals.shape[2], "across": SHEET,
        "originals": data_url(sheets[0], "image/webp"),
        "runs": [{"run": record.train_id, "sheet": data_url(sheet, "image/webp"),
                  "metrics": _per_image(record, runs_folder, images), **_codes(record, arrays, images)}
                 for (record, arrays), sheet in zip(read, sheets[1:], strict=True)],
    }


def _sheet(pictures: np.ndarray) -> bytes:
    """uint8 [n, H, W, C] -> lossless WebP, SHEET pictures in a row."""
    from PIL import Image

    n, height, width, channels = pictures.shape
    across, rows = min(SHEET, n), -(-n // SHEET)
    canvas = np.zeros((rows * across, height, width, channels), np.uint8)
    canvas[:n] = pictures
    canvas = canvas.reshape(rows, across, height, width, channels).swapaxes(1, 2)
    canvas = canvas.reshape(rows * height, across * width, channels)
    file = io.BytesIO()
    Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas).convert("RGB").save(file, "WEBP", lossless=True, quality=60)
    return file.getvalue()


def _per_image(record: Record, runs_folder: Path, images: int) -> dict[str, dict[str, Any]]:
    """Title of a metric -> its direction, and its value of each image."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {}
    for value_id, value in record.values.items():
        path = runs_folder / record.train_id / "values" / f"{value_id}.parquet"
        if path.is_file() and value.number is not None:
            numbers = pq.read_table(path, columns=["value"])["value"].to_pylist()[:images]
            found[value.name] = {"better": value.direction, "values": [float(f"{x:.6g}") for x in numbers]}
    return dict(sorted(found.items()))


def _codes(record: Record, arrays: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
    codes = arrays.get("codes")
    if codes is None or not codes.size:
        return {"codes": None}
    grids = [list(g) for g in record.layout.get("grids") or ()]
    tokens = codes.shape[1]
    if sum(h * w for h, w in grids) != tokens:
        side = math.isqrt(tokens)
        grids = [[side, side]] if side * side == tokens else [[1, tokens]]
    return {
        "codes": base64.b64encode(np.ascontiguousarray(codes[:images], "<i4").tobytes()).decode(),
        "tokens": tokens, "levels": codes.shape[2], "grids": grids, "vocabulary": list(record.layout.get("vocab_sizes") or ()),
    }


