"""Image metrics beside the libraries they agree with: how far apart, and how long they take. Prints Markdown.

    python tests/benchmarks/metrics_side_by_side.py [--images 320] [--rounds 7] [--threads 2] [--only ssim] [--cpu]

Images are those of ../shared (or $BENCH_SHARED), else smooth noise; the others are their JPEG versions of quality 20.
All in one process: one call of every case a round, in reversed order every other round; medians, and ratios between
them. A case whose library takes long is timed on fewer images, and marked "extrapolated". LPIPS is the SqueezeNet
one, and needs its weights (see bench/weights.py). On a busy machine --cpu with --threads 1 tells more: processor time.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from bench.errors import BadInput
from bench.registry import resolve
from bench.types import TokenizerOutput, TokenLayout

ROOT = Path(__file__).resolve().parents[2]
SETS = {64: ("celeba", 140), 256: ("imagenet-sample", 0)}      # crop; 0: the largest square
FEW = 64                                                       # images of a slow case
Function = Callable[[Tensor, Tensor], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A metric of ours beside one library."""

    metric: str
    keywords: dict
    library: str
    theirs: Function
    slow: bool = False
    sizes: tuple[int, ...] = (64, 256)

    @property
    def name(self) -> str:
        return self.metric + "".join(f", {v}" if isinstance(v, str) else f", {k} {v}" for k, v in self.keywords.items())


def originals(size: int, count: int) -> Tensor:
    """uint8 [count, 3, size, size], real ones where they are."""
    name, crop = SETS[size]
    folder = Path(os.environ.get("BENCH_SHARED") or ROOT.parent / "shared") / "data" / name
    found: list[Tensor] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if len(found) == count:
                    return torch.stack(found)
                if not member.isfile():
                    continue
                picture = Image.open(tar.extractfile(member)).convert("RGB")
                side = crop or min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                picture = picture.crop((left, top, left + side, top + side))
                picture = picture.resize((size, size), Image.Resampling.BICUBIC)
                found.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous())
    print(f"({count - len(found)} of the images of {size} pixels are smooth noise: there are no more in {folder})\n")
    coarse = torch.rand(count - len(found), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").mul_(255).clamp_(0, 255)
    return torch.cat([*(f[None] for f in found), made.to(torch.uint8)])


def jpeg(images: Tensor, quality: int = 20) -> Tensor:
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(found).contiguous()


# -- ours and theirs: two uint8 [B, 3, H, W] -> [B] ----------------------------------------------------------------


def ours(case: Case) -> Function:
    nothing = torch.empty(0)

    def run(images: Tensor, others: Tensor) -> np.ndarray:
        metric = resolve("metric", case.metric)(**case.keywords)
        metric.begin(TokenLayout(4, (8,)), len(images), torch.device("cpu"))
        return np.concatenate([
            metric.update(images[i : i + 64], TokenizerOutput(others[i : i + 64], nothing, nothing, None), None).numpy()
            for i in range(0, len(images), 64)])

    return run


def loop(function: Callable[..., float], **keywords) -> Function:
    """One image at a time, as papers' scripts call scikit-image."""
    return lambda images, others: np.array(
        [function(a, b, **keywords) for a, b in zip(images.numpy(), others.numpy(), strict=True)])


def batched(function: Callable[[Tensor, Tensor], Tensor], scale: float = 1.0) -> Function:
    """In batches of 16, as floats."""
    return lambda images, others: torch.cat([
        function(a.float() * scale, b.float() * scale).flatten().double()
        for a, b in zip(images.split(16), others.split(16), strict=True)]).numpy()


def cases() -> list[Case]:
    import piqa
    import pytorch_msssim
    import torchmetrics.functional.image as tm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyiqa

    paper = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    default = {"window": "uniform", "size": 7, "sample_covariance": True}
    luma_psnr = pyiqa.create_metric("psnr", test_y_channel=True, data_range=1.0, color_space="ycbcr", device="cpu")
    luma_ssim = pyiqa.create_metric("ssim", device="cpu")
    piqa_ssim = piqa.SSIM(reduction="none")
    listed = [
        Case("psnr", {}, "scikit-image, loop", loop(peak_signal_noise_ratio, data_range=255)),
        Case("psnr", {}, "torchmetrics", batched(lambda a, b: tm.peak_signal_noise_ratio(
            b, a, data_range=255.0, reduction="none", dim=(1, 2, 3)))),
        Case("psnr", {"channel": "y", "epsilon": 1e-8}, "pyiqa", batched(luma_psnr, 1 / 255)),
        Case("ssim", {}, "scikit-image, loop", loop(structural_similarity, data_range=255, **paper)),
        Case("ssim", default, "scikit-image's default, loop", loop(structural_similarity, data_range=255, channel_axis=0)),
        Case("ssim", {**default, "data_range": 510.0}, "scikit-image, loop",
             loop(structural_similarity, data_range=510, channel_axis=0)),
        Case("ssim", {}, "torchmetrics (other windows)", batched(lambda a, b: tm.structural_similarity_index_measure(
            b, a, data_range=255.0, reduction="none")), slow=True),
        Case("ssim", {}, "piqa, float32 in [0, 1]", batched(piqa_ssim, 1 / 255), slow=True),
        Case("ssim", {}, "pytorch_msssim, float32", batched(lambda a, b: pytorch_msssim.ssim(a, b, size_average=False)),
             slow=True),
        Case("ssim", {"channel": "luma", "clip_contrast": True}, "pyiqa", batched(luma_ssim, 1 / 255), slow=True),
        Case("ms_ssim", {}, "pytorch_msssim, float32", batched(lambda a, b: pytorch_msssim.ms_ssim(a, b, size_average=False)),
             slow=True, sizes=(256,)),
        Case("ms_ssim", {}, "piqa, float32 in [0, 1]", batched(piqa.MS_SSIM(reduction="none"), 1 / 255), slow=True,
             sizes=(256,)),
        Case("l1", {"scale": 255}, "NumPy, loop", loop(lambda a, b: np.abs(a.astype(np.float64) - b).mean())),
        Case("mse", {"scale": 255}, "NumPy, loop", loop(lambda a, b: np.square(a.astype(np.float64) - b).mean())),
    ]
    try:
        resolve("metric", "lpips")(net="squeeze").begin(TokenLayout(4, (8,)), 1, torch.device("cpu"))
    except BadInput as error:
        print(f"(LPIPS is left out: {error})\n")
    else:
        import lpips

        package = lpips.LPIPS(net="squeeze", verbose=False)
        listed.append(Case("lpips", {"net": "squeeze"}, "lpips", batched(lambda a, b: package(a - 1, b - 1), 1 / 127.5),
                           slow=True))
    return listed


# -- tables --------------------------------------------------------------------------------------------------------


def agreement(listed: list[Case], images: dict[int, Tensor], others: dict[int, Tensor]) -> None:
    print("| metric | beside | pixels | images | largest difference | mean difference |\n|---|---|---|---|---|---|")
    for case in listed:
        for size in case.sizes:
            x, y = images[size][:FEW], others[size][:FEW]
            apart = np.abs(ours(case)(x, y) - case.theirs(x, y))
            print(f"| {case.name} | {case.library} | {size} | {len(x)} | {apart.max():.1e} | {apart.mean():.1e} |", flush=True)


def times(listed: list[Case], images: dict[int, Tensor], others: dict[int, Tensor], rounds: int,
          clock: Callable[[], float]) -> None:
    print("\n| metric | pixels | ours, ms/image | beside | ms/image | ours / theirs | images |\n|---|---|---|---|---|---|---|")
    for size in images:
        x, y = images[size], others[size]
        runs: dict[tuple[str, str], tuple[Function, int]] = {}
        for case in (c for c in listed if size in c.sizes):
            runs["ours", case.name] = ours(case), len(x)
            runs[case.library, case.name] = case.theirs, min(FEW, len(x)) if case.slow else len(x)
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
        for number in range(rounds + 1):                # the first is not counted
            for key in list(runs) if number % 2 else reversed(list(runs)):
                function, count = runs[key]
                start = clock()
                function(x[:count], y[:count])
                if number:
                    taken[key].append((clock() - start) / count * 1e3)
        for case in (c for c in listed if size in c.sizes):
            mine, other = (statistics.median(taken[key, case.name]) for key in ("ours", case.library))
            count = runs[case.library, case.name][1]
            note = f"{len(x)}" if count == len(x) else f"{len(x)}; beside: {count}, extrapolated"
            print(f"| {case.name} | {size} | {mine:.3f} | {case.library} | {other:.3f} | {mine / other:.3f} (1/{other / mine:.1f}) "
                  f"| {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], choices=list(SETS))
    parser.add_argument("--only", default="", help="metrics whose name begins so")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of the clock on the wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = {size: originals(size, arguments.images) for size in arguments.sizes}
    others = {size: jpeg(x) for size, x in images.items()}
    with torch.inference_mode():
        listed = [replace(case, sizes=tuple(size for size in case.sizes if size in images))
                  for case in cases() if case.metric.startswith(arguments.only)]
        print(f"{arguments.images} images a size, JPEG of quality 20; {arguments.threads} threads; median of {arguments.rounds} "
              f"rounds of {'processor' if arguments.cpu else 'wall'} time; load {os.getloadavg()[0]:.1f}\n")
        agreement(listed, images, others)
        times(listed, images, others, arguments.rounds, time.process_time if arguments.cpu else time.perf_counter)


if __name__ == "__main__":
    main()
