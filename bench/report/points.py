"""Figures of the two-dimensional example: an animation, its end, and a table of used codes. Torch-free."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.files import replace_file
from bench.report.drawing import COLOURS, panels, styled, text, to_csv, write
from bench.report.strips import _font

if TYPE_CHECKING:
    from bench.points import Trace

SIDE, ACROSS, LARGER = 190, 4, 2        # pixels of a panel; panels in a row; drawn larger and reduced: smooth edges
FRAME_MS, LAST_MS = 80, 2500
POINT, USED, UNUSED = "#b9bec5", COLOURS[0], COLOURS[1]


def render_points(name: str, question: str, traces: Sequence[Trace], reports: Path) -> list[Path]:
    """Write reports/<name>/: <name>.webp (the animation), <name>_end.svg/.png/.csv and table.md; returns them."""
    folder = reports / name
    paths = [folder / f"{name}.webp", folder / "table.md"]
    replace_file(paths[0], animation(traces))
    lines = [f"# {name}\n", f"{question}\n", "| quantizer | used codes | of | squared error |", "| :--- | ---: | ---: | ---: |"]
    lines += [f"| {t.title} | {t.used[-1]} | {t.size} | {t.error:.4f} |" for t in traces]
    points = traces[0].points.shape[1]
    lines += ["", f"{points} points, all of them in each of {traces[0].steps[-1]:,} steps. Squared error: mean over points and "
              "coordinates, at the end, between a point and its code (of FSQ: the mean of the points with that code).", ""]
    replace_file(paths[1], "\n".join(lines))
    rows = [(t.title, int(s), int(u), t.size) for t in traces for s, u in zip(t.steps, t.used, strict=True)]
    with styled(name):
        paths += write(folder, f"{name}_end", _end(traces), to_csv(("quantizer", "step", "used", "codes"), rows))
    return paths


def _limits(traces: Sequence[Trace]) -> tuple[float, float, float, float]:
    """A square around all points and those codes that are near them."""
    every = np.concatenate([t.points.reshape(-1, 2) for t in traces])
    low, high = every.min(0), every.max(0)
    half = 0.56 * (high - low).max()
    centre = (low + high) / 2
    return centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    return [(x + r * math.sin(i * math.pi / 5), y - r * math.cos(i * math.pi / 5))
            for i in range(10) for r in (radius if i % 2 == 0 else 0.45 * radius,)]


def animation(traces: Sequence[Trace]) -> bytes:
    """An endless WebP: a panel for each quantizer; used codes filled, unused ones hollow."""
    from PIL import Image, ImageDraw

    x0, x1, y0, y1 = _limits(traces)
    side, head = SIDE * LARGER, 22 * LARGER
    width, rows = ACROSS * side, -(-len(traces) // ACROSS)
    font = _font("DejaVuSans.ttf").font_variant(size=12 * LARGER)
    frames = []
    for f in range(len(traces[0].steps)):
        image = Image.new("RGB", (width, rows * (side + head)), "white")
        pen = ImageDraw.Draw(image)
        for i, trace in enumerate(traces):
            left, top = i % ACROSS * side, i // ACROSS * (side + head)

            def place(p: Any, left: int = left, top: int = top) -> tuple[float, float]:
                return left + (p[0] - x0) / (x1 - x0) * side, top + head + (y1 - p[1]) / (y1 - y0) * side

            pen.text((left + 6 * LARGER, top + 4 * LARGER), f"{trace.title}: {trace.used[f]} / {trace.size}", fill="#1b1f24", font=font)
            pen.rectangle((left + 2, top + head, left + side - 3, top + head + side - 3), outline="#d5dae0", width=LARGER)
            for point in trace.points[f]:
                x, y = place(point)
                pen.ellipse((x - 2.5 * LARGER, y - 2.5 * LARGER, x + 2.5 * LARGER, y + 2.5 * LARGER), fill=POINT)
            alive = set(trace.chosen[f].tolist())
            for k, code in enumerate(trace.centres(f)):
                if np.isnan(code).any():
                    continue
                x, y = place(code)
                if not (left + 5 * LARGER < x < left + side - 5 * LARGER and top + head < y < top + head + side - 5 * LARGER):
                    continue
                star = _star(x, y, 5.5 * LARGER)
                pen.polygon(star, fill=USED) if k in alive else pen.polygon(star, outline=UNUSED, width=LARGER)
        frames.append(image.resize((width // LARGER, image.height // LARGER), Image.Resampling.LANCZOS))
    file = io.BytesIO()
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=45, method=6)
    return file.getvalue()


def _end(traces: Sequence[Trace]) -> Any:
    """Codes and assignments at the end: each point joined to its code."""
    x0, x1, y0, y1 = _limits(traces)
    figure, axes = panels(len(traces))
    for ax, trace in zip(axes, traces, strict=True):
        centres, points, chosen = trace.centres(-1), trace.points[-1], trace.chosen[-1]
        for point, k in zip(points, chosen, strict=True):
            ax.plot(*zip(point, centres[k], strict=True), color=POINT, linewidth=0.6, zorder=1)
        ax.scatter(*points.T, s=7, color="#7d858f", linewidths=0, zorder=2)
        alive = np.isin(np.arange(trace.size), chosen)
        shown = ~np.isnan(centres).any(1)
        ax.scatter(*centres[alive & shown].T, s=42, marker="*", color=USED, linewidths=0, zorder=4)
        ax.scatter(*centres[~alive & shown].T, s=42, marker="*", facecolors="none", edgecolors=UNUSED, linewidths=0.8, zorder=3)
        ax.set(title=text(f"{trace.title}: {trace.used[-1]} of {trace.size} codes"), xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        ax.grid(False)
        ax.tick_params(labelbottom=False, labelleft=False, length=0)
    return figure
