"""What remains of a run's arrays: one small archive that its figures are drawn from. Torch-free.

    results/<suite>/diagnostics/<train_id>.npz      at most 512 KiB, the same bytes for the same arrays

Names end in `/level<i>` where a quantizer has several levels, as the monitors write them:
source                  what it was made of: names and sizes of the array files
step                    the last watched step
steps [T], int64        watched steps, at most 200, evenly thinned, the last one among them
counts, code_gradient_norms, code_norms, code_ages, code_movement [K]     of the last watched step; or, where that
                        would be too large, what `summary` says of them: `code_norms.active` [100] and so on
norm_edges [101], norms_over_time [T, 100]      number of codes per bin of one range for all steps
use_over_time [T, <= 64]                        share of used codes among neighbours in the codebook
latents_2d, quantized_2d [m, 2], codes_2d, codes_used, plane              principal components, see `_plane`
tsne_2d [p, 2], tsne_tokens [p]                 of codes, per level; see `_embedded`
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.files import replace_file
from bench.places import Places
from bench.run import Run
from bench.runs import RunFolder

log = logging.getLogger(__name__)

FORMAT = 1           # of what an archive holds: another number makes all of them anew
CAP = 512 * 2**10           # bytes of one archive
STEPS, BINS = 200, 100
CELLS = 128 * 128           # of the maps of a run's codes; as many codes are drawn one by one
NEIGHBOURS = 64             # bins of codes whose use is followed over time
POINTS = 600                # of an embedding by t-SNE, which takes a second
PER_CODE = {"counts": np.int32, "code_gradient_norms": np.float32, "code_norms": np.float32,
            "code_ages": np.int32, "code_movement": np.float32}

Arrays = dict[str, np.ndarray]


# -- reading and writing -------------------------------------------------------------------------------------


def collect_diagnostics(name: str, runs: Sequence[Run], places: Places) -> None:
    """An archive for each of these runs whose arrays have changed since it was made."""
    for run in runs:
        folder = RunFolder(places.runs, run.train_id).arrays
        path = diagnostics_folder(places, name) / f"{run.train_id}.npz"
        source = _source(folder)
        if source and str(read_archive(path, "source").get("source", "")) != source and (found := compact(folder)):
            replace_file(path, packed(found))


def diagnostics_folder(places: Places, name: str) -> Path:
    return places.results / name / "diagnostics"


def read_archive(path: Path, *names: str) -> Arrays:
    """These arrays of an archive, all where none is named; nothing where it is absent or cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {n: file[n] for n in names or file.files if n in file.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); taken as absent", path, error)
        return {}


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A compressed .npz without times or owners: the same arrays, the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name], order="C"), allow_pickle=False)
            archive.writestr(entry, content.getvalue(), compresslevel=9)
    return buffer.getvalue()


def _source(folder: Path) -> str:
    files = [(p.name, p.stat().st_size) for p in _files(folder)]
    return json.dumps([FORMAT, files]) if files else ""


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.npz") if p.stem.isdigit())


# -- from a run's arrays -------------------------------------------------------------------------------------


def compact(arrays_folder: Path) -> Arrays:
    """The archive of a run from its arrays/<step>.npz; {} where there are none. See the head of this file."""
    files = _files(arrays_folder)
    last = {}
    while files and not (last := read_archive(files[-1])):
        files.pop()
    if not last:
        return {}
    whole = {n: last[n].astype(kind) for n in last if (kind := PER_CODE.get(n.partition("/")[0]))}
    fixed = {"source": np.array(_source(arrays_folder)), "step": np.array(int(files[-1].stem))} | pictures(last)
    full = fixed | whole | _over_time(files, STEPS)
    if len(packed(full)) <= CAP:
        return full
    levels, shrink = suffixes(whole), 1
    while True:                                     # every turn halves what is left to halve
        small = {f"{part}{suffix}": array for suffix in levels
                 for part, array in summary(level_of(whole, suffix), CELLS // len(levels) // shrink).items()}
        found = fixed | small | _over_time(files, max(2, STEPS // shrink))
        if len(packed(found)) <= CAP or shrink >= CELLS:
            return found
        shrink *= 2


def suffixes(names: Iterable[str]) -> list[str]:
    """'' for one level, '/level0', '/level1', ... for several, in order."""
    found = {n[n.index("/level"):] for n in names if "/level" in n}
    return sorted(found, key=lambda s: int(s.removeprefix("/level"))) or [""]


def level_of(arrays: Mapping[str, np.ndarray], suffix: str) -> Arrays:
    """The arrays of one level, without the level in their names."""
    return {n.removesuffix(suffix): a for n, a in arrays.items() if n.endswith(suffix) and (suffix or "/level" not in n)}


def _over_time(files: Sequence[Path], most: int) -> Arrays:
    """Norms and use at watched steps, over fixed bins."""
    kept = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, min(most, len(files)))})]
    steps = {int(p.stem): a for p in kept if (a := _only(p, ("code_norms", "counts")))}
    names = list(dict.fromkeys(n for a in steps.values() for n in a))
    steps = {step: a for step, a in steps.items() if all(n in a and len(a[n]) for n in names)}
    found: Arrays = {"steps": np.array(list(steps), np.int64)}
    for name in names if steps else ():
        kind, _, level = name.partition("/")
        rows = [a[name] for a in steps.values()]
        end = f"/{level}" if level else ""
        if kind == "code_norms":
            edges = bin_edges(np.concatenate([[r[np.isfinite(r)].min(initial=np.inf), r[np.isfinite(r)].max(initial=0)]
                                              for r in rows]), typical=rows[-1])
            found[f"norm_edges{end}"] = edges
            found[f"norms_over_time{end}"] = np.stack([_histogram(r, edges) for r in rows]).astype(np.uint32)
        else:
            found[f"use_over_time{end}"] = np.stack([_cells(r > 0, NEIGHBOURS) for r in rows])
    return found


def _only(path: Path, kinds: Sequence[str]) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {n: file[n] for n in file.files if n.partition("/")[0] in kinds}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); left out", path, error)
        return {}


# -- what a figure shows of so many codes --------------------------------------------------------------------


def bin_edges(values: np.ndarray, typical: np.ndarray | None = None) -> np.ndarray:
    """101 edges from the least to the largest finite value: equally wide, or equally wide in the logarithm where the
    largest is more than 50 times the median of the positive ones (of `typical`, where given)."""
    values = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    positive = values[values > 0]
    usual = positive if typical is None else typical[np.isfinite(typical) & (typical > 0)]
    if len(usual) and len(positive) and high > 50 * float(np.median(usual)):
        return np.geomspace(positive.min() * (1 - 1e-9), high * (1 + 1e-9), BINS + 1)
    width = max(high - low, 1e-3 * abs(high), 1e-12)        # constants get a width too
    return np.linspace(low, low + width, BINS + 1)


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Finite values per bin; what lies outside counts in the outermost bin."""
    values = values[np.isfinite(values)].astype(np.float64)
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def _cells(values: np.ndarray, most: int) -> np.ndarray:
    """Means of runs of equally many neighbours (the last run may be shorter), float32 [<= most]."""
    m = -(-len(values) // most)
    starts = np.arange(0, len(values), m)
    sums = np.add.reduceat(values.astype(np.float64), starts)
    return (sums / np.diff([*starts, len(values)])).astype(np.float32)


def used_codes(level: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray | None]:
    """(what says so, bool [K]): chosen in the window; without it in the last step; without that by their gradient."""
    for name, used in (("counts", lambda a: a > 0), ("code_ages", lambda a: a == 0), ("code_gradient_norms", lambda a: a > 0)):
        if name in level and len(level[name]):
            return name, used(level[name])
    return "", None


def summary(level: Mapping[str, np.ndarray], cells: int = CELLS) -> Arrays:
    """What figures show of one level's arrays [K], in a size that does not grow with K.

    codes: K. used_by: the array that says which codes are active. used: their number. window: codes counted.
    counts.rank, counts.count: counts sorted descending, all or about 600 ranks evenly spaced in the logarithm.
    For code_gradient_norms, code_norms and code_movement: .edges [101]; .active and .dead [100] codes per bin, zeros
    not among them; .zeros: [active, dead]; .range: [least, median, largest]; .cells: means of neighbouring codes.
    code_ages.age, code_ages.codes: how many codes were used so many steps ago or less, at most about 600 ages.
    """
    source, active = used_codes(level)
    sizes = {len(a) for n, a in level.items() if n in PER_CODE and len(a)}
    found: Arrays = {}
    if not sizes:
        return {f"{n}.none": np.array(True) for n in level if n in PER_CODE}
    codes = max(sizes)
    found |= {"codes": np.array(codes), "used_by": np.array(source)}
    active = np.ones(codes, bool) if active is None else active
    found["used"] = np.array(int(active.sum()))
    for name, values in level.items():
        if name not in PER_CODE:
            continue
        if not len(values):
            found[f"{name}.none"] = np.array(True)
        elif name == "counts":
            ranked = np.sort(values)[::-1]
            ranks = _spread(codes)
            found |= {"window": np.array(values.sum(dtype=np.int64)), "counts.rank": ranks + 1,
                      "counts.count": ranked[ranks]}
        elif name == "code_ages":
            ages, numbers = np.unique(values, return_counts=True)
            kept = _spread(len(ages), 600)
            found |= {"code_ages.age": ages[kept], "code_ages.codes": numbers.cumsum()[kept]}
        elif np.isfinite(values).any():
            there = np.isfinite(values) & (values != 0)
            edges = bin_edges(values[there])
            finite = values[np.isfinite(values)]
            found |= {
                f"{name}.edges": edges, f"{name}.cells": _cells(values, max(1, cells)),
                f"{name}.active": _histogram(values[there & active], edges).astype(np.uint32),
                f"{name}.dead": _histogram(values[there & ~active], edges).astype(np.uint32),
                f"{name}.zeros": np.array([(values[active] == 0).sum(), (values[~active] == 0).sum()], np.uint32),
                f"{name}.range": np.array([finite.min(), np.median(finite), finite.max()], np.float32),
            }
    return found


def _spread(count: int, most: int = 600) -> np.ndarray:
    """Indices below `count`: all, or about so many, dense at the beginning; first and last among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, most)).astype(np.int64)) - 1


# -- in two dimensions ---------------------------------------------------------------------------------------


def pictures(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Projections of the latents monitor's sample; {} without one."""
    if "latents" not in arrays:
        return {}
    found = _plane(arrays)
    levels = [s for s in suffixes(arrays) if f"token_vectors{s}" in arrays]
    for i, suffix in enumerate(levels):
        found |= _embedded(level_of(arrays, suffix), arrays["latent_codes"][:, i], suffix)
    return found


def _plane(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """latents_2d and, where it has the same width, quantized_2d [m, 2]: on the first two principal axes of the latents.

    plane: the share of the latents' variance on each axis. Of one level with codes of that width also codes_2d [c, 2]
    and codes_used [c], whether each is active (without it: nobody knows). Where every code has length 1 the latents are scaled to it first, and `unit` is there.
    """
    latents = arrays["latents"].astype(np.float64)
    keep = np.isfinite(latents).all(1)
    latents, width = latents[keep], latents.shape[1]
    if len(latents) < 2:
        return {}
    found: Arrays = {}
    codes = arrays.get("code_vectors")
    codes = codes if codes is not None and codes.shape[1] == width else None
    if codes is not None and np.abs(np.linalg.norm(codes, axis=1) - 1).max() < 1e-3:
        latents = latents / np.maximum(np.linalg.norm(latents, axis=1, keepdims=True), 1e-12)
        found["unit"] = np.array(True)
    middle = latents.mean(0)
    axes, shares = _principal(latents - middle, 2)

    def flat(points: np.ndarray) -> np.ndarray:
        return ((points - middle) @ axes).astype(np.float32)

    found |= {"plane": shares.astype(np.float32), "latents_2d": flat(latents)}
    if arrays["quantized"].shape[1] == width:
        found["quantized_2d"] = flat(arrays["quantized"][keep])
    if codes is not None:
        found["codes_2d"] = flat(codes)
        if (used := used_codes(arrays)[1]) is not None:
            found["codes_used"] = used[arrays["code_sample"]]
    return found


def _principal(centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(axes [D, count], share of variance of each), the largest entry of each axis positive; zeros where D is less."""
    variances, rows = np.linalg.eigh(centred.T @ centred)           # ascending; a D x D matrix, where D is a few hundred
    variances, rows = variances[::-1][:count], rows.T[::-1][:count]
    rows = rows * np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]
    axes = np.zeros((centred.shape[1], count))
    axes[:, : len(rows)] = rows.T
    shares = np.zeros(count)
    shares[: len(rows)] = np.maximum(variances, 0) / max(float((centred**2).sum()), 1e-300)
    return axes, shares


def _embedded(level: Mapping[str, np.ndarray], chosen: np.ndarray, suffix: str) -> Arrays:
    """t-SNE of one sub-codebook: at most 600 codes, first those of the sampled tokens, most frequent first, then
    others of the codebook's sample. tsne_tokens: how many sampled tokens chose each; 0: none.

    On the first 16 principal components, perplexity 30 (less for fewer than 91 codes), seed 0.
    """
    codes, first, tokens = np.unique(chosen, return_index=True, return_counts=True)
    order = np.argsort(-tokens, kind="stable")[:POINTS]
    others = np.flatnonzero(~np.isin(level["code_sample"], codes))[: POINTS - len(order)]
    vectors = np.concatenate([level["token_vectors"][first[order]], level["code_vectors"][others]]).astype(np.float64)
    numbers = np.concatenate([tokens[order], np.zeros(len(others), np.int64)]).astype(np.int32)
    keep = np.isfinite(vectors).all(1)
    vectors, numbers = vectors[keep], numbers[keep]
    if len(vectors) < 5:
        return {}
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        log.warning("scikit-learn is not installed; no t-SNE of the sub-codebooks")
        return {}
    centred = vectors - vectors.mean(0)
    if not centred.any():
        return {}
    axes, _ = _principal(centred, min(16, vectors.shape[1]))
    shrunk = TSNE(2, perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca", max_iter=500, random_state=0)
    flat = shrunk.fit_transform(centred @ axes)
    return {f"tsne_2d{suffix}": flat.astype(np.float32), f"tsne_tokens{suffix}": numbers}


def levels_of(archive: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Arrays]]:
    """(level's suffix, its summary and what it has over time) of an archive, whichever way it keeps them."""
    levels = suffixes(archive)
    for suffix in levels:
        level = level_of(archive, suffix)
        yield suffix, summary(level, CELLS // len(levels)) | {n: a for n, a in level.items() if n not in PER_CODE}
