"""Plausibility gates: which numbers cannot be, or hardly can, and why. Pure functions of records; torch-free.

A gate only compares numbers that were measured under equal conditions on the same test images. What it finds is
shown beside the number, not instead of it: the reader decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.report.grouping import canonical
from bench.results import Record, Value

#: the best number that exists whatever the images, and how far rounding may go beyond it
BEST: Mapping[str, tuple[float, float]] = {
    "psnr": (100.0, 1e-6), "ssim": (1.0, 1e-6), "ms_ssim": (1.0, 1e-6),
    "lpips": (0.0, 1e-6), "rfid": (0.0, 1e-6), "mse": (0.0, 1e-12), "l1": (0.0, 1e-12),
}
SLACK = 1e-6                # of sums in float64, relative
SIGMAS = 6.0                # above what even use reaches on average
#: rFID against LPIPS and PSNR: a run that is better in both by so much has no rFID of more than TWICE the other's
TWICE, LPIPS_SHARE, PSNR_GAP = 2.0, 0.95, 0.25
#: nor one of more than thrice, when it is hardly worse in either
THRICE, LPIPS_ABOUT, PSNR_ABOUT = 3.0, 1.1, 0.25

Doubts = dict[str, dict[str, list[str]]]


def suspicions(records: Sequence[Record], sanity: Sequence[Record]) -> Doubts:
    """Train id -> name of the value -> sentences, of the runs that ended well. `sanity`: rows of sanity.jsonl.

    Numbers are held against the originals themselves (row identity, or what the formula allows at best), against one
    colour per image, against what so many codes of so many can show, against each other (usage and perplexity; rFID
    and LPIPS over runs). Values without a number carry their reason already and are not looked at.
    """
    found: Doubts = {}
    runs = [r for r in records if r.trained]
    rows = {name: _numbers([r for r in sanity if r.trained and r.fields.get("sanity") == name])
            for name in ("identity", "mean_colour")}
    for record in runs:
        values = [v for _, v in sorted(record.values.items()) if v.number is not None]
        said = [(v.name, s) for v in values for s in (
            *_bounds(record, v, rows), *_constant(v), *_usage(record, v), *_perplexity(record, v))]
        for name, sentence in (*said, *_codes_agree(record, values)):
            _say(found, record, name, sentence)
    for record, name, sentence in _order(runs):
        _say(found, record, name, sentence)
    return found


def _say(found: Doubts, record: Record, name: str, sentence: str) -> None:
    known = found.setdefault(record.train_id, {}).setdefault(name, [])
    if sentence not in known:
        known.append(sentence)


# -- equal conditions --------------------------------------------------------------------------------------------------


def _conditions(record: Record, value: Value) -> str:
    """Equal for numbers that may be compared: images and all that the metric depends on, whatever was measured."""
    found = {k: v for k, v in value.conditions().items() if k not in ("weights", "limit")}
    test = record.data.get("test")
    return canonical({**found, "test": None if test is None else test.fingerprint})


def _numbers(rows: Sequence[Record]) -> dict[str, float]:
    """By conditions."""
    return {_conditions(r, v): v.number for r in rows for v in r.values.values() if v.number is not None}


# -- one number --------------------------------------------------------------------------------------------------------


def _bounds(record: Record, value: Value, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    if value.metric not in BEST or value.direction == "none":
        return
    best, slack = BEST[value.metric]
    here = _conditions(record, value)
    identity, sign = rows["identity"].get(here), 1 if value.direction == "higher" else -1
    ahead = sign * (value.number - (best if identity is None else identity))
    if ahead > slack:
        than = f"at best it is {best:g}" if identity is None else f"the originals themselves have {identity:g} (row identity)"
        yield f"{_shown(value)} cannot be: {than}"
    elif identity is not None and abs(ahead) <= slack:
        yield (f"{_shown(value)} is that of the originals themselves (row identity): were they compared with the "
               f"reconstructions?")
    colour = rows["mean_colour"].get(here)
    if value.metric == "psnr" and colour is not None and value.number <= colour:
        yield f"{_shown(value)} is no better than one colour per image, which has {colour:.4g}"


def _constant(value: Value) -> Iterator[str]:
    if value.details.get("constant"):
        yield "all reconstructions are one and the same picture"


def _sizes(record: Record) -> list[int]:
    """K of each level; [] where the record does not say or there are none."""
    return [int(k) for k in record.layout.get("vocab_sizes") or []]


def _usage(record: Record, value: Value) -> Iterator[str]:
    if value.metric not in ("usage", "joint_usage"):
        return
    sizes, codes = _sizes(record), value.details.get("codes")
    hard = value.details.get("hard_ceiling")
    if value.metric == "joint_usage":
        hard = hard if value.keywords.get("of", "combinations") == "combinations" else 1.0
    elif hard is None and sizes and codes and not value.keywords.get("at_least") and not value.keywords.get("zero_filled"):
        hard = sum(min(k, codes) / k for k in sizes) / len(sizes)
    if value.number < -SLACK or value.number > (1.0 if hard is None else hard) * (1 + SLACK):
        of = "" if codes is None else f" of {codes:,.0f} codes"
        yield f"{_shown(value)} cannot be: the most{of} is {_per_cent(1.0 if hard is None else hard)}"
    elif value.metric == "usage" and sizes and codes and not value.keywords.get("at_least") and not value.keywords.get("zero_filled"):
        mean, deviation = _even_use(sizes, int(codes))
        if value.number > mean + SIGMAS * deviation + SLACK:
            yield (f"{_shown(value)} is more than {codes:,.0f} independent codes show when all are equally likely "
                   f"({_per_cent(mean)} ± {_per_cent(deviation)})")


def _even_use(sizes: Sequence[int], codes: int) -> tuple[float, float]:
    """Mean and standard deviation of usage, the mean over levels, of `codes` independent even draws at each.

    Occupancy: of K cells after n throws K (1 - 1/K)^n are empty on average, with the variance
    K (K - 1) (1 - 2/K)^n + K (1 - 1/K)^n - K^2 (1 - 1/K)^(2n)  (Feller, vol. 1, IX.10).
    """
    mean = variance = 0.0
    for k in sizes:
        if k == 1:
            mean += 1.0
            continue
        one = math.exp(codes * math.log1p(-1 / k))
        two = math.exp(codes * math.log1p(-2 / k)) if k > 2 else 0.0
        mean += 1 - one
        # (K - 1) two - K one^2 is the difference of nearly equal numbers
        covariance = two * -math.expm1(2 * codes * math.log1p(-1 / k) - codes * math.log1p(-2 / k)) if k > 2 else -one * one
        variance += max(0.0, one / k - two / k + covariance)
    return mean / len(sizes), math.sqrt(variance) / len(sizes)


def _perplexity(record: Record, value: Value) -> Iterator[str]:
    if value.metric not in ("perplexity", "joint_perplexity"):
        return
    sizes, joint = _sizes(record), value.metric == "joint_perplexity"
    most = value.details.get("combinations") if joint else sum(sizes) / len(sizes) if sizes else None
    used = None if _corrected(value) else value.details.get("used")
    if value.number < 1 - SLACK:
        yield f"{_shown(value)} cannot be: one code alone has perplexity 1"
    elif most is not None and value.number > most * (1 + SLACK):
        yield f"{_shown(value)} cannot be: there are {most:,.0f} codes"
    elif used is not None and value.number > used * (1 + SLACK):
        yield f"{_shown(value)} cannot be: {used:,.0f} codes are in use"


def _corrected(value: Value) -> bool:
    """Whether the entropy is corrected for codes that were not seen; then it may exceed that of those in use."""
    return value.keywords.get("correction", "none") != "none"


def _codes_agree(record: Record, values: Sequence[Value]) -> Iterator[tuple[str, str]]:
    """Perplexity is at most the number of codes in use, over the same window."""
    sizes = _sizes(record)
    if len(set(sizes)) != 1:
        return
    for p in values:
        for u in values:
            if (p.metric, u.metric) == ("perplexity", "usage") and not _corrected(p) and not u.keywords.get("at_least") \
                    and (p.window, p.images) == (u.window, u.images) and 0 <= u.number <= 1 and 1 <= p.number <= sizes[0]:
                used = u.number * sizes[0]
                if p.number > used * (1 + 1e-3):            # published numbers have four digits
                    sentence = f"{_shown(p)} and {_shown(u)} contradict each other: that is {used:,.0f} codes in use"
                    yield from ((v.name, sentence) for v in (p, u))


# -- one run against another -------------------------------------------------------------------------------------------


class _Run(NamedTuple):
    record: Record
    value: Value                                # its rFID
    rfid: float
    lpips: float
    psnr: float


def _order(runs: Sequence[Record]) -> Iterator[tuple[Record, str, str]]:
    """Runs whose rFID is far above that of another one that is worse, or hardly better, in LPIPS and PSNR.

    Reconstructions are compared with their own originals; what brings them nearer pixel by pixel and to LPIPS does not
    move their distribution away. A discriminator does improve rFID at the price of the others, and few tokens fail
    otherwise than many: only runs of one objective and one number of tokens are compared.
    """
    groups: dict[tuple[str, ...], list[_Run]] = {}
    for record in runs:
        of = {m: {_conditions(record, v): v for v in record.values.values() if v.metric == m and v.number is not None}
              for m in ("rfid", "lpips", "psnr")}
        kind = canonical([record.layout.get("num_tokens"), {
            k: v for k, v in record.fields.items() if k.startswith("objective.") and k.endswith(("name", "losses"))}])
        for f, rfid in of["rfid"].items():
            for x, lpips in of["lpips"].items():
                for p, psnr in of["psnr"].items():
                    run = _Run(record, rfid, rfid.number, lpips.number, psnr.number)
                    groups.setdefault((kind, f, x, p), []).append(run)
    for group in groups.values():
        for a in group:
            others = [(b, how) for b in group if (how := _out_of_order(a, b))]
            if others:
                b, how = min(others, key=lambda other: other[0].rfid)
                yield a.record, a.value.name, (
                    f"rFID {a.rfid:.4g} is {a.rfid / b.rfid:.1f} times that of {b.record.label} ({b.rfid:.4g}), though LPIPS "
                    f"({a.lpips:.4g} against {b.lpips:.4g}) and PSNR ({a.psnr:.4g} against {b.psnr:.4g} dB) are {how}: was "
                    f"it measured on other images?")


def _out_of_order(a: _Run, b: _Run) -> str | None:
    """How the run of the far higher rFID is otherwise, where that does not go with it: "better" or "much the same"."""
    if b.rfid <= 0 or a.rfid <= TWICE * b.rfid:
        return None
    if a.lpips <= LPIPS_SHARE * b.lpips and a.psnr >= b.psnr + PSNR_GAP:
        return "better"
    alike = a.lpips <= LPIPS_ABOUT * b.lpips and a.psnr >= b.psnr - PSNR_ABOUT
    return "much the same" if alike and a.rfid > THRICE * b.rfid else None


# -- words -------------------------------------------------------------------------------------------------------------


def _shown(value: Value) -> str:
    number: Any = _per_cent(value.number) if value.unit == "share" else f"{value.number:.6g}"
    return f"{value.name} {number}{f' {value.unit}' if value.unit not in ('', 'share') else ''}"


def _per_cent(share: float) -> str:
    return f"{100 * share:.4g} %"
