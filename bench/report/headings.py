"""What a column of measured values is called, and how many decimals it shows. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.registry import signature
from bench.report.lookup import Asked, attributes
from bench.report.model import ARROWS, Column
from bench.report.spec import ColumnKey
from bench.results import Value

#: keywords that choose a network: numbers of another network are on another scale
NETWORKS = ("net", "network", "trunk")


def heading(key: ColumnKey, asked: Asked, sample: Value | None) -> tuple[Column, int]:
    """Heading and decimals: the suite's, else the metric's own, read from its source.

    "SSIM (llamagen)", "Usage (last 65,536)", "LPIPS (squeeze)": what sets a number apart from the usual one of that
    name is said in brackets, and a network that is not the usual one even after a title of the suite's own.
    """
    base = asked.name.removesuffix("_window")
    metric, keywords = _metric(asked, sample)
    known = next((a for m in (metric, asked.name, base) if m and (a := attributes(m))), {})
    own = metric or base
    title, brackets = str(known.get("title", own)), []
    if base != own:
        if base.startswith(own + "_"):
            brackets.append(base.removeprefix(own + "_").replace("_", " "))
        else:
            title = base.replace("_", " ")
    networks = unusual_networks(own, keywords)
    brackets += [n for n in networks if n.lower() not in f"{title} {' '.join(brackets)}".lower()]
    if asked.protocol:
        brackets.append(asked.protocol)
    window = keywords.get("window")
    if isinstance(window, int) and not isinstance(window, bool):
        brackets.append(f"last {window:,}")
    elif base != asked.name and metric is None:
        brackets.append("window")
    if key.title is not None:
        title, brackets = key.title, [n for n in networks if n.lower() not in key.title.lower()]
    if brackets:
        title += f" ({', '.join(brackets)})"
    unit = str(sample.unit if sample is not None else known.get("unit", ""))
    direction = sample.direction if sample is not None else known.get("direction", "none")
    decimals = key.decimals
    if decimals is None:
        decimals = 2 if unit == "share" else int(known.get("decimals", 4))
    return Column(key.key, title, direction if direction in ARROWS else "none", unit), decimals


def _metric(asked: Asked, sample: Value | None) -> tuple[str | None, Mapping[str, Any]]:
    """The metric of a column and its keywords, from what was measured, else from what its protocol says."""
    if sample is not None:
        return sample.metric, sample.keywords
    if asked.wish is not None:
        return asked.wish.metric.name, asked.wish.metric.kwargs
    return None, {}


def unusual_networks(metric: str, keywords: Mapping[str, Any]) -> list[str]:
    """Networks that a metric's keywords choose, unless it is the one that the metric takes by itself."""
    if not attributes(metric):
        return [str(keywords[k]) for k in NETWORKS if keywords.get(k) is not None]
    own = signature("metric", metric).keywords
    return [str(keywords[k]) for k in NETWORKS
            if keywords.get(k) is not None and not (k in own and own[k].default == keywords[k])]
