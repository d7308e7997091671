"""FID, sFID, Inception score, precision and recall of a set of images against a reference, as the ADM evaluator.

Each set is an .npz (bench/npz.py) or a folder of pictures. A reference .npz may hold statistics instead: `mu`, `sigma`
of pooled and `mu_s`, `sigma_s` of spatial features, which then replace those of its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.errors import BadInput, Incompatible
from bench.feature_sets import ScoreSums, coverage, inception_score
from bench.features import InceptionFeatures
from bench.frechet import Gaussian, Moments
from bench.image_dataset import UnreadableImage
from bench.image_files import Folder, decode
from bench.npz import NpzImages, open_images, read_arrays
from bench.places import Places

POOLED, SPATIAL = 2048, 2023
SPLIT = 5000            # images in a split of the Inception score
NEIGHBOURS = 3
TITLES = {"fid": "FID", "sfid": "sFID", "inception_score": "Inception score", "precision": "Precision",
          "recall": "Recall"}
#: names in a file, and numbers an image
STATISTICS = {"pooled": ("mu", "sigma", POOLED), "spatial": ("mu_s", "sigma_s", SPATIAL)}
CAVEATS = (
    "The ADM evaluator runs TensorFlow's graph of 2015; this is torch-fidelity's port of the same weights, close but not "
    "equal: differences in the last digits of published values mean nothing.",
    "All five depend on the number of images: published values are of 50,000 samples, precision and recall against "
    "10,000 reference images.",
    "Stored statistics count only for what made them: those of pytorch-fid or clean-fid (other resizing) give another "
    "FID than those of the ADM reference files.",
    "The Inception score takes 5,000 consecutive samples at a time: samples sorted by class score lower.",
)


@dataclass(frozen=True, slots=True)
class Scores:
    """Values by name (keys of TITLES), or why there is none; exactly one of `values` and `reasons` has each."""

    values: dict[str, float]
    reasons: dict[str, str]
    reference_images: int                       # 0: only statistics
    sample_images: int
    network: str                                # which weights, and how images are resized
    caveats: tuple[str, ...] = field(default=CAVEATS)

    def rows(self) -> list[tuple[str, float | None, str | None]]:
        """(title, value, reason) in the usual order; precision and recall are shares, 0 to 1."""
        return [(title, self.values.get(name), self.reasons.get(name)) for name, title in TITLES.items()]


def score(
    reference: Path, samples: Path, *, places: Places, batch_size: int = 64, device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Compare two sets of images. `progress(done, total)` counts the images of both.

    Memory: 8 kB an image for the tables of precision and recall, and 130 MB for moments; images are read in batches.
    Raises BadInput for files that cannot be read, and where Inception's weights are not on this machine.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = [_Set(path) for path in (reference, samples)]
    network = InceptionFeatures(device=device, places=places)
    total, done = sum(one.count for one in sets), 0

    def seen(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    known, found = (_features(one, network, batch_size, device, seen) for one in sets)
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}

    def enter(name: str, compute: Callable[[], float]) -> None:
        try:
            values[name] = compute()
        except Incompatible as error:
            reasons[name] = str(error)

    enter("fid", lambda: known.gaussian("pooled").distance(found.gaussian("pooled")))
    enter("sfid", lambda: known.gaussian("spatial").distance(found.gaussian("spatial")))
    enter("inception_score", found.score)
    enter("precision", lambda: coverage(found.images(), known.images(), NEIGHBOURS))
    enter("recall", lambda: coverage(known.images(), found.images(), NEIGHBOURS))
    return Scores(values, reasons, sets[0].count, sets[1].count, network.identity)


class _Set:
    """One side: images, statistics, or both."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.stored: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.images: NpzImages | None = None
        self.folder: Folder | None = None
        if self.path.is_dir():
            self.folder = Folder(self.path)
            self.count = len(self.folder.scan(None).names)
            if not self.count:
                raise BadInput(f"{self.path}: there is no picture in this folder")
            return
        self.images = open_images(self.path)
        self.count = self.images.count if self.images is not None else 0
        arrays = read_arrays(self.path, ("mu", "sigma", "mu_s", "sigma_s"))
        for kind, (mean, covariance, width) in STATISTICS.items():
            if mean not in arrays and covariance not in arrays:
                continue
            for name, shape in ((mean, (width,)), (covariance, (width, width))):
                if name not in arrays or arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                    has = f"{list(arrays[name].shape)}" if name in arrays else "missing"
                    raise BadInput(f"{self.path}: {name} is {has}; {list(shape)} finite numbers are expected beside "
                                   f"{mean if name == covariance else covariance}")
            self.stored[kind] = (arrays[mean], arrays[covariance])
        if not self.count and not self.stored:
            raise BadInput(f"{self.path}: holds neither images (arr_0) nor statistics (mu, sigma)")

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 [b, 3, H, W], b at most `size`."""
        if self.images is not None:
            for block in self.images.blocks(size):
                yield torch.from_numpy(block).permute(0, 3, 1, 2)
        if self.folder is not None:
            yield from self._pictures(self.folder, size)

    def _pictures(self, folder: Folder, size: int) -> Iterator[Tensor]:
        held: list[np.ndarray] = []
        for name in folder.scan(None).names:
            try:
                picture = np.asarray(decode(folder.read(name), folder.path(name), name), np.uint8)
            except (UnreadableImage, OSError) as error:
                raise BadInput(f"{folder.path(name)}: cannot be read ({error}); remove it or write it again") from error
            if held and (len(held) == size or held[0].shape != picture.shape):
                yield torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)
                held = []
            held.append(picture)
        yield torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)


class _Features:
    """What one pass over a set leaves."""

    def __init__(self, of: _Set, device: torch.device) -> None:
        self.of = of
        self.table = torch.zeros(of.count, POOLED, device=device)
        self.scores = ScoreSums(of.count, SPLIT, device)
        self.spatial = None if "spatial" in of.stored or not of.count else Moments(SPATIAL, device)

    def images(self) -> Tensor:
        if not self.of.count:
            raise Incompatible(f"{self.of.path.name} holds statistics alone; precision and recall need its images, arr_0")
        return self.table

    def gaussian(self, kind: str) -> Gaussian:
        if kind in self.of.stored:
            return Gaussian.of_statistics(*self.of.stored[kind])
        if self.of.count < 2:
            raise Incompatible(f"{self.of.path.name} holds neither {' and '.join(STATISTICS[kind][:2])} nor two images")
        moments = self.spatial
        if kind == "pooled":
            moments = Moments(POOLED, self.table.device)
            for block in self.table.split(4096):
                moments.add(block)
        assert moments is not None
        return Gaussian.of_sums(moments.total, moments.outer, int(moments.count))

    def score(self) -> float:
        if not self.of.count:
            raise Incompatible(f"{self.of.path.name} holds statistics alone; the Inception score needs its images, arr_0")
        return float(np.mean(inception_score(self.scores.sums())))


def _features(of: _Set, network: InceptionFeatures, batch_size: int, device: torch.device,
              seen: Callable[[int], None]) -> _Features:
    found, start = _Features(of, device), 0
    for batch in of.batches(batch_size) if of.count else ():
        features = network(batch.to(device))
        indices = torch.arange(start, start + len(batch), device=device)
        found.table[indices] = features.pooled
        found.scores.add(features.logits, indices)
        if found.spatial is not None:
            found.spatial.add(features.spatial)
        start += len(batch)
        seen(len(batch))
    return found
