"""Latents and codes in two dimensions: principal axes, and t-SNE of sub-codebooks. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bench.report.code_panels import DEAD, Drawn, Level, Subject, each, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def latents(subject: Subject) -> Drawn | None:
    """Latents and codes on the latents' first two principal axes."""
    if "latents_2d" not in subject.archive:
        return None
    of = subject.archive
    parts: list[tuple[str, np.ndarray]] = [("latent", of["latents_2d"])]
    if "codes_2d" in of:
        used = of.get("codes_used", np.ones(len(of["codes_2d"]), bool))
        parts += [("dead code", of["codes_2d"][~used]), ("active code", of["codes_2d"][used])]
    elif "quantized_2d" in of:
        parts.append(("quantized", of["quantized_2d"]))
    rows = [(kind, f"{x:.6g}", f"{y:.6g}") for kind, points in parts for x, y in points]
    looks: dict[str, dict[str, Any]] = {
        "latent": {"s": 5, "color": "#333333", "alpha": 0.28, "linewidth": 0, "zorder": 2},
        "dead code": {"s": 13, "color": "white", "marker": "X", "edgecolor": "black", "linewidth": 0.5, "zorder": 5},
        "active code": {"s": 26, "color": subject.colour, "edgecolor": "white", "linewidth": 0.5, "zorder": 4},
        "quantized": {"s": 9, "color": subject.colour, "alpha": 0.6, "linewidth": 0, "zorder": 3},
    }

    def draw(ax: Axes, level: Level) -> None:
        shown = np.concatenate([points for kind, points in parts if kind != "dead code"])
        low, high = np.quantile(shown, [0.005, 0.995], axis=0)
        room = 0.12 * np.maximum(high - low, 1e-9)
        ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
        names = []
        for kind, points in parts:
            if not len(points):
                continue
            inside = ((points >= low - room) & (points <= high + room)).all(1)
            outside = f", {int((~inside).sum()):,} outside" if not inside.all() else ""
            what = kind if len(points) == 1 or kind == "quantized" else f"{kind}s"
            names.append(ax.scatter(*points[inside].T, rasterized=len(points) > 3000, **looks[kind],
                                    label=f"{len(points):,} {what}{outside}"))
        shares = of["plane"]
        ax.set(xlabel=f"first axis ({100 * shares[0]:.0f}% of the variance)",
               ylabel=f"second axis ({100 * shares[1]:.0f}%)")
        ax.grid(False)
        scaled = ", scaled to length 1 as the codes are" if "unit" in of else ""
        say(ax, f"principal axes of the latents{scaled}")
        legend = ax.figure.legend(handles=names, loc="outside lower left", ncols=2, columnspacing=1.2, handletextpad=0.3)
        for handle in legend.legend_handles:
            handle.set(alpha=1)

    return each(subject, [Level("", "", {})], "Latents and codes", draw, size=(4.9, 4.5)), ("kind", "x", "y"), rows


def sub_codebooks(subject: Subject) -> Drawn | None:
    """t-SNE of the codes of each level: near points are near codes; distances between groups mean little."""
    levels = subject.levels("tsne_2d")
    if not levels:
        return None
    rows: list[tuple[Any, ...]] = []

    def draw(ax: Axes, level: Level) -> None:
        points, tokens = level.of["tsne_2d"], level.of["tsne_tokens"]
        chosen = tokens > 0
        ax.scatter(*points[~chosen].T, s=7, color=DEAD, marker="X", linewidth=0, rasterized=True)
        ax.scatter(*points[chosen].T, s=5 + 60 * np.sqrt(tokens[chosen] / max(tokens.sum(), 1)), color=subject.colour,
                   alpha=0.75, edgecolor="white", linewidth=0.3, rasterized=True)
        ax.grid(False)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(True)
        say(ax, f"{level.title}{int(chosen.sum()):,} codes that {int(tokens.sum()):,} tokens chose, "
                 f"{int((~chosen).sum()):,} others")
        rows.extend((level.name, f"{x:.6g}", f"{y:.6g}", int(n)) for (x, y), n in zip(points, tokens, strict=True))

    figure = each(subject, levels, "Sub-codebooks by t-SNE", draw, size=(4.7, 4.4))
    figure.set_dpi(180)
    return figure, ("level", "x", "y", "tokens"), rows
