"""rFID beside torch-fidelity, torchmetrics and pytorch-fid: values, time and memory, as Markdown.

    OMP_NUM_THREADS=2 python tests/benchmarks/rfid_side_by_side.py [--pictures FOLDER] [--images 300] [--size 64]
        [--only network,step,memory,folders]

FID's own weights are used where BENCH_WEIGHTS has them, else a seeded random file of the same form: time, memory and
agreement do not depend on them. Originals are the first pictures of FOLDER (default: patterns), reconstructions their
JPEGs. Every case of a group runs in each round, in turn; quote ratios, since machines are noisy.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inception_file import write_random_inception

from bench.features import InceptionFeatures, tensorflow_resize
from bench.frechet import Moments, frechet_distance
from bench.metrics.rfid import RFID
from bench.places import Places
from bench.types import TokenizerOutput, TokenLayout
from bench.weights import find

CPU = torch.device("cpu")
GROUPS = ("network", "step", "memory", "folders")


def pictures(folder: Path | None, count: int, size: int) -> tuple[Tensor, Tensor]:
    """uint8 [count, 3, size, size]: originals, and what JPEG of quality 20 leaves of them."""
    files = [] if folder is None else sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if folder is not None and len(files) < count:
        sys.exit(f"{folder}: holds {len(files)} pictures, --images {count} are wanted")
    random = np.random.default_rng(0)
    originals, others = [], []
    for i in range(count):
        if files:
            picture = Image.open(files[i]).convert("RGB")
            side = min(picture.size)
            left, top = ((s - side) // 2 for s in picture.size)
            picture = picture.crop((left, top, left + side, top + side))
        else:
            picture = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=20)
        originals.append(np.asarray(picture))
        others.append(np.asarray(Image.open(buffer).convert("RGB")))
    return tuple(torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous() for x in (originals, others))


def timed(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds, of the clock and of the processor, of cases that take turns; the order turns round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for i in range(rounds):
        for name in list(cases)[:: 1 if i % 2 == 0 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            cases[name]()
            found[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: tuple(statistics.median(x) for x in zip(*times, strict=True)) for name, times in found.items()}


def table(heading: str, header: list[str], rows: list[list[str]], notes: list[str] = ()) -> None:
    print(f"\n### {heading}\n")
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    for note in notes:
        print(f"\n{note}")
    sys.stdout.flush()


def compared(times: dict[str, tuple[float, float]], per: int, unit: str = "ms") -> list[list[str]]:
    base = next(iter(times.values()))
    scale = {"ms": 1e3, "s": 1.0}[unit] / per
    return [[name, f"{clock * scale:.2f}", f"{clock / base[0]:.2f}", f"{processor * scale:.2f}", f"{processor / base[1]:.2f}"]
            for name, (clock, processor) in times.items()]


def random_features(count: int, seed: int, width: int = 2048) -> np.ndarray:
    """Like pooled features: above 0, with a spectrum that falls."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(256, width)) * np.geomspace(1, 0.05, 256)[:, None]
    return np.abs(rng.normal(size=(count, 256)) @ mixing / 8 + 0.3 + rng.normal(size=(count, width)) * 0.05)


# -- groups ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def network(args: argparse.Namespace, weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
    ours = InceptionFeatures()
    for size in (64, 256):
        images = pictures(args.pictures, args.batch, size)[0]
        found, wanted = ours(images).pooled, theirs(images)[0]
        times = timed({"torch-fidelity": lambda images=images: theirs(images),
                       "ours": lambda images=images: ours(images.clone())}, args.rounds)
        table(f"Inception features, {args.batch} images of {size} px, ms per image, {args.rounds} rounds",
              ["", "clock", "ratio", "processor", "ratio"], compared(times, args.batch),
              [f"Pooled features: largest difference {float((found - wanted).abs().max()):.1e} at a standard deviation of "
               f"{float(wanted.std()):.2f}."])
        floats = images.float()
        again = interpolate_bilinear_2d_like_tensorflow1x(floats, size=(299, 299), align_corners=False)
        difference = float((tensorflow_resize(floats, 299) - again).abs().max()) / 128
        times = timed({"torch-fidelity": lambda floats=floats: interpolate_bilinear_2d_like_tensorflow1x(
            floats, size=(299, 299), align_corners=False), "ours": lambda floats=floats: tensorflow_resize(floats, 299)},
            args.rounds)
        table(f"TensorFlow's resize alone, {size} to 299 px, ms per image", ["", "clock", "ratio", "processor", "ratio"],
              compared(times, args.batch), [f"Largest difference {difference:.1e} of the range [-1, 1]."])


def step(args: argparse.Namespace, weights: Path) -> None:
    import scipy.linalg
    from torchmetrics.image.fid import _compute_fid

    sides = []
    for seed in (0, 1):
        moments = Moments(2048, CPU)
        moments.add(torch.from_numpy(random_features(4000, seed)))
        sides.append((moments.total, moments.outer, 4000))
    statistic = [(s / n, (o / n - torch.outer(s / n, s / n)) * n / (n - 1)) for s, o, n in sides]
    values: dict[str, float] = {}

    def keep(name: str, compute: Callable[[], float]) -> Callable[[], None]:
        return lambda: values.__setitem__(name, float(compute()))

    def root() -> float:
        (m1, c1), (m2, c2) = ((m.numpy(), c.numpy()) for m, c in statistic)
        return np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)

    ours = keep("ours", lambda: frechet_distance(*sides))
    cases = {"torchmetrics (eigvals)": keep("torchmetrics (eigvals)", lambda: _compute_fid(*statistic[0], *statistic[1])),
             "ours": ours}
    times = timed(cases, 3)
    times |= timed({"SciPy's sqrtm (pytorch-fid)": keep("SciPy's sqrtm (pytorch-fid)", root)}, 1)
    rows = [[*row, f"{values[row[0]]:.8f}"] for row in compared(times, 1, "s")]
    table("Fréchet step, D = 2048, covariances of full rank, s", ["", "clock", "ratio", "processor", "ratio", "value"], rows)


PROBE = """
import json, sys, torch
sys.path.insert(0, {folder!r})
from rfid_side_by_side import *
print(json.dumps({call}))
"""


def memory(args: argparse.Namespace, weights: Path) -> None:
    """Each case in a process of its own: rise of the resident high-water mark after imports and loading."""

    def probe(call: str) -> dict[str, float]:
        done = subprocess.run([sys.executable, "-c", PROBE.format(folder=str(Path(__file__).parent), call=call)],
                              capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    streamed, kept = probe("stream(50_000, keep=False)"), probe("stream(50_000, keep=True)")
    rows = [["ours: sums", f"{streamed['rise']:.0f}", f"{streamed['value']:.6f}"],
            ["all features kept, then numpy.cov (torch-fidelity's way)", f"{kept['rise']:.0f}", f"{kept['value']:.6f}"]]
    table("Statistics of 50,000 feature vectors a side, with the distance, MiB above the start", ["", "peak", "value"], rows)
    count = args.memory_images
    whole = probe(f"whole({str(args.pictures) if args.pictures else None!r}, {count}, {args.size})")
    few = probe(f"whole({str(args.pictures) if args.pictures else None!r}, {count // 5}, {args.size})")
    table(f"The whole path on images of {args.size} px (Inception, sums, distance), batches of 50, MiB above the start",
          ["images a side", "peak"], [[str(count // 5), f"{few['rise']:.0f}"], [str(count), f"{whole['rise']:.0f}"]])


def high_water(reset: bool = False) -> float:
    """MiB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def stream(count: int, keep: bool) -> dict[str, float]:
    def blocks(seed: int):
        for start in range(0, count, 500):
            yield torch.from_numpy(random_features(500, seed * 1000 + start // 500)).float()

    for _ in blocks(0):                         # what making them costs is no part of it
        break
    before = high_water(reset=True)
    if keep:
        from torch_fidelity.metric_fid import fid_features_to_statistics

        sides = [fid_features_to_statistics(torch.cat(list(blocks(seed)))) for seed in (0, 1)]
        after = high_water()
        from bench.frechet import Gaussian

        value = Gaussian.of_statistics(sides[0]["mu"].astype(np.float64), sides[0]["sigma"]).distance(
            Gaussian.of_statistics(sides[1]["mu"].astype(np.float64), sides[1]["sigma"]))
        return {"rise": max(after, high_water()) - before, "value": value}
    moments = [Moments(2048, CPU) for _ in range(2)]
    for seed, of in enumerate(moments):
        for block in blocks(seed):
            of.add(block)
    value = frechet_distance(*((of.total, of.outer, int(of.count)) for of in moments))
    return {"rise": high_water() - before, "value": value}


@torch.inference_mode()
def whole(folder: str | None, count: int, size: int) -> dict[str, float]:
    images, others = pictures(Path(folder) if folder else None, count, size)
    metric = RFID()
    metric.begin(TokenLayout(4, (8,), ()), count, CPU)
    before = high_water(reset=True)
    value = run_ours(metric, images, others)
    return {"rise": high_water() - before, "value": value}


@torch.inference_mode()
def run_ours(metric: RFID, images: Tensor | None, others: Tensor) -> float:
    for start in range(0, len(others), 50):
        block = others[start : start + 50]
        original = None if images is None else images[start : start + 50]
        metric.update(original, TokenizerOutput(block, block, block, None), torch.arange(start, start + len(block)))
    return metric.compute(metric.sums())


def folders(args: argparse.Namespace, weights: Path) -> None:
    import torch_fidelity
    from torch_fidelity import metric_fid

    images, others = pictures(args.pictures, args.images, args.size)
    layout, values = TokenLayout(4, (8,), ()), {}
    first, seen, summarise = RFID(), [], metric_fid.fid_features_to_statistics

    def watched(features: Tensor) -> dict[str, np.ndarray]:
        seen.append(features)
        return summarise(features)

    metric_fid.fid_features_to_statistics = watched
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("originals", "reconstructions")]

        def theirs() -> None:
            for path, side in zip(paths, (images, others), strict=True):
                path.mkdir(exist_ok=True)
                for i, picture in enumerate(side):
                    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path / f"{i:06d}.png")
            values["torch-fidelity, PNG folders"] = torch_fidelity.calculate_metrics(
                input1=str(paths[0]), input2=str(paths[1]), fid=True, cuda=False, cache=False, verbose=False,
                save_cpu_ram=True, feature_extractor_weights_path=str(weights))["frechet_inception_distance"]

        def ours() -> None:
            first.begin(layout, args.images, CPU)
            values["ours, first"] = run_ours(first, images, others)

        def again() -> None:
            metric = RFID()
            metric.begin(layout, args.images, CPU)
            metric.take_originals({name: first.sums()[name] for name in first.originals})
            values["ours, originals known"] = run_ours(metric, None, others)

        times = timed({"torch-fidelity, PNG folders": theirs, "ours, first": ours, "ours, originals known": again},
                      args.folder_rounds)
    sides = []
    for features in seen[:2]:
        moments = Moments(2048, CPU)
        moments.add(features)
        sides.append((moments.total, moments.outer, args.images))
    exact = frechet_distance(*sides)
    rows = [[*row, f"{values[row[0]]:.6f}"] for row in compared(times, 1, "s")]
    per = times["ours, first"][0] / args.images
    table(f"rFID of {args.images} images of {args.size} px, everything, s, {args.folder_rounds} rounds",
          ["", "clock", "ratio", "processor", "ratio", "value"], rows,
          [f"The exact distance between torch-fidelity's own features is {exact:.6f}: below 2,049 images its covariances are "
           f"singular, and square roots of eigenvalues that should be 0 are in its value.",
           f"Extrapolated to CelebA's 19,962 test images at this pace: torch-fidelity "
           f"{times['torch-fidelity, PNG folders'][0] / args.images * 19962 / 60:.0f} min, ours {per * 19962 / 60:.0f} min, "
           f"with the originals known {times['ours, originals known'][0] / args.images * 19962 / 60:.0f} min (its "
           f"eigenvalues, which do not grow with the images, are in torch-fidelity's)."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--memory-images", type=int, default=500)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder-rounds", type=int, default=1)
    parser.add_argument("--only", default=",".join(GROUPS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = find("inception", Places.find())
        said = f"weights {weights.name}" if weights else "seeded random weights of FID's network"
        if weights is None:
            weights = write_random_inception(Path(folder))
            os.environ["BENCH_WEIGHTS"] = folder
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {said}, "
              f"{'patterns' if args.pictures is None else args.pictures.name}")
        for name in args.only.split(","):
            globals()[name](args, weights)


if __name__ == "__main__":
    main()
