"""One pass over a split: each image reconstructed once, prepared once per protocol, seen by each metric."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench import distributed
from bench.errors import BadInput, Incompatible
from bench.files import write_atomic
from bench.interfaces import Metric, Quantizer, Tokenizer
from bench.originals import Originals
from bench.prepare import Prepared

GRID_IMAGES = 32        # first images of the split, as in the reference's sample grid
GRID_COLUMNS = 8        # pictures in a row: four originals, each beside its reconstruction
GRID_BORDER = 2         # pixels around each picture
EIGHT_BITS: Mapping[str, Any] = {"round": "8bit"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One number, or why there is none."""

    number: float | None
    reason: str | None = None                   # one sentence, exactly where `number` is None
    details: dict[str, float] = field(default_factory=dict)
    images: int = 0                             # images of the split, each counted once
    per_image: np.ndarray | None = None         # float64 [images] in split order, where the metric has them


@torch.inference_mode()
def measure(
    tokenizer: Tokenizer,
    images: np.ndarray | Tensor,
    metrics: Mapping[str, Metric],
    *,
    device: torch.device,
    batch_size: int,
    prepare: Mapping[str, Mapping[str, Any]] | None = None,
    cache: Path | None = None,
    grid: Callable[[Tensor, Tensor], None] | None = None,
    samples: Callable[[Tensor, Tensor, Tensor | None], None] | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    others: Sequence[tuple[Tokenizer, np.ndarray | Tensor]] = (),
) -> dict[str, Measured]:
    """Measure a tokenizer on a whole split: uint8 [n, 3, H, W], a memory map or a tensor on any device.

    The tokenizer is on `device`; it runs in eval mode, in its own precision without autocast, and gets its
    training modes back. Every process of the group calls this with the whole split, passes its contiguous
    share, and gets the result for all of it. `prepare` says for each metric how its protocol prepares images
    (default: rounded to 8 bits). `grid` gets, on the main process, the first images and their reconstructions (for
    `write_grid`); `samples` more of them, see `sample_count`, with their codes [n, N, L] or None where there are none.
    `keep(start, reconstructions)` gets each batch of this process, uint8 [b, 3, H, W]. `cache` is a
    folder in which what metrics compute from the originals alone is kept by content, for the next tokenizer.
    `progress(done, total)` follows each batch, in this process's images, and is called equally often on every process.

    others: further images of the split, of other sizes, with the same tokenizer built for each of them; they come after
    `images` in order, and one process measures them all.

    Where all reconstructions of the split are one and the same picture, each value says so in its details: constant.
    Where codes depend on the batch (`depends_on_batch`), each value names the images of one: batch. Shares are then whole
    batches, so that the number of processes changes none.

    A metric that refuses the combination (Incompatible), and reconstructions that are not finite, give a
    reason instead of a number. Raises BadInput for an empty split or a pretrained network that cannot be had.
    """
    count = len(images) + sum(len(more) for _, more in others)
    if not count:
        raise BadInput("there is no image to measure on: the split is empty")
    if others and distributed.world_size() > 1:
        raise ValueError("images of several sizes are measured by one process")
    together = depends_on_batch(tokenizer)
    first, last = share(count, distributed.rank(), distributed.world_size(), batch_size if together else 1)
    where = torch.device("cpu") if device.type == "mps" else device         # MPS has no float64
    reasons: dict[str, str] = {}
    begun: dict[str, Metric] = {}
    for name, metric in metrics.items():
        try:
            metric.begin(tokenizer.layout, count, where)
            begun[name] = metric
        except Incompatible as error:
            reasons[name] = str(error)
    ways = {name: (prepare or {}).get(name, EIGHT_BITS) for name in begun}
    originals = Originals(images, None if others else cache)
    originals.take(begun, ways, where)

    # row 0: whose reconstruction is not finite; row 1: whose is not that of this process's first image; then a row of
    # values per metric; last column: their number
    table = torch.zeros(2 + len(begun), count + 1, dtype=torch.float64, device=where)
    first_seen: list[Tensor] = []
    wanted = max(GRID_IMAGES * (grid is not None), sample_count(*images.shape[-2:]) * (samples is not None))
    first_few = min(len(images), wanted)
    shown = torch.zeros(2, first_few, *images.shape[1:], dtype=torch.uint8, device=where)
    layout = tokenizer.layout
    tokens = (first_few, layout.num_tokens, len(layout.vocab_sizes))
    codes_shown = torch.zeros(tokens, dtype=torch.int64, device=where) if samples and layout.vocab_sizes else None

    def look(tokenizer: Tokenizer, images: np.ndarray | Tensor, offset: int, start: int, stop: int) -> None:
        original = _pixels(images, start - offset, stop - offset).to(device)
        output = tokenizer(original.float().div_(127.5).sub_(1.0))
        if output.reconstruction.shape != original.shape:
            raise ValueError(f"{type(tokenizer).__name__} turned images {tuple(original.shape)} into "
                             f"{tuple(output.reconstruction.shape)}")
        table[0, start:stop] = (~output.reconstruction.isfinite().flatten(1).all(1)).double().to(where)
        original = original.to(where)
        prepared = Prepared(original, output.reconstruction.to(where))
        rounded = prepared(EIGHT_BITS)[1]
        if not first_seen:
            first_seen.append(rounded[0].clone())
        alike = rounded.shape[1:] == first_seen[0].shape
        table[1, start:stop] = (rounded != first_seen[0]).flatten(1).any(1).double() if alike else 1.0
        indices = torch.arange(start, stop, device=where)
        if start < first_few:
            part = slice(start, min(stop, first_few))
            shown[0, part] = original[: part.stop - start]
            shown[1, part] = rounded[: part.stop - start]
            if codes_shown is not None and output.codes is not None:
                codes_shown[part] = output.codes[: part.stop - start].to(where)
        if keep is not None:
            keep(start, rounded)
        for row, (name, metric) in enumerate(begun.items(), start=2):
            if name in reasons:
                continue
            pictures, reconstruction = prepared(ways[name])
            try:
                with _full_precision():
                    values = metric.update(pictures, dataclasses.replace(output, reconstruction=reconstruction), indices)
            except Incompatible as error:
                reasons[name] = str(error)
                continue
            if values is not None:
                table[row, start:stop] = values
                table[row, -1] += len(values)

    most = max(stop - start for start, stop in (            # images of the process that has the most
        share(count, rank, distributed.world_size(), batch_size if together else 1)
        for rank in range(distributed.world_size())))
    last = min(last, len(images))
    for start in range(first, first + most if not others else last, batch_size):
        stop = min(start + batch_size, last)
        if start < stop:
            # apart: a loss that is a mean over processes would wait for one that has no batch left
            with eval_mode(tokenizer), torch.autocast(device.type, enabled=False), distributed.apart():
                look(tokenizer, images, 0, start, min(stop, len(images)))
        if progress is not None:
            progress(stop - first, last - first)

    offset = len(images)
    for other, more in others:
        for start in range(offset, offset + len(more), batch_size):
            with eval_mode(other), torch.autocast(device.type, enabled=False):
                look(other, more, offset, start, min(start + batch_size, offset + len(more)))
            if progress is not None:
                progress(min(start + batch_size, offset + len(more)), count)
        offset += len(more)

    whole = distributed.sum_across(table).cpu().numpy()
    sums = {name: {key: distributed.sum_across(value) for key, value in metric.sums().items()}
            for name, metric in begun.items()}
    if first_few:
        shown = distributed.sum_across(shown)
        if codes_shown is not None:
            codes_shown = distributed.sum_across(codes_shown)
    if grid is not None:
        distributed.from_main(lambda: grid(*shown[:, :GRID_IMAGES]))
    if samples is not None:
        distributed.from_main(lambda: samples(*shown, codes_shown))
    for others in reversed(distributed.gather_objects(reasons)):        # known where one process found it: known to all
        reasons |= others
    originals.keep({name: metric for name, metric in begun.items() if name not in reasons}, ways, sums)
    pictures = {hashlib.sha256(picture.cpu().numpy().tobytes()).digest() for picture in first_seen}
    constant = count > 1 and not whole[1].any() and len(set().union(*distributed.gather_objects(pictures))) == 1

    broken = int(whole[0].sum())
    if broken:
        sentence = f"{broken} of {count} reconstructions hold values that are not finite"
        reasons |= dict.fromkeys(begun, sentence)
    more = ({"constant": 1.0} if constant else {}) | ({"batch": float(min(batch_size, count))} if together else {})
    measured: dict[str, Measured] = {}
    for name in metrics:
        if name not in reasons:
            values_of_all = whole[2 + list(begun).index(name)]
            per_image = values_of_all[:-1].copy() if values_of_all[-1] == count else None
            found = _computed(begun[name], sums[name], count, per_image)
            measured[name] = dataclasses.replace(found, details=found.details | more) if more else found
        else:
            measured[name] = Measured(None, reasons[name], images=count)
    return measured


def _computed(metric: Metric, sums: Mapping[str, Tensor], images: int,
              per_image: np.ndarray | None) -> Measured:
    try:
        number = float(metric.compute(sums))
    except Incompatible as error:
        return Measured(None, str(error), images=images)
    if not math.isfinite(number):
        return Measured(None, f"the result was not finite ({number})", images=images)
    return Measured(number, None, metric.details(sums), images, per_image)


def share(count: int, rank: int, world: int, whole: int = 1) -> tuple[int, int]:
    """First and one past the last image of a process: contiguous, each image once, in groups of `whole`, as even as can
    be."""
    groups = -(-count // whole)
    return min(count, groups * rank // world * whole), min(count, groups * (rank + 1) // world * whole)


def depends_on_batch(tokenizer: Tokenizer) -> bool:
    """Whether a quantizer in it assigns the codes of an evaluated batch together."""
    return any(isinstance(module, Quantizer) and module.depends_on_batch for module in tokenizer.modules())


def sample_count(height: int, width: int) -> int:
    """How many images the reconstruction browser gets: 64, of more than 128 x 128 pixels fewer, but eight."""
    return min(64, max(8, 64 * 128 * 128 // (height * width)))


def write_samples(path: Path, originals: Tensor, reconstructions: Tensor, codes: Tensor | None) -> None:
    """Two uint8 [n, C, H, W] and int64 [n, N, L] -> one .npz: originals, reconstructions [n, H, W, C] and codes int32."""
    arrays = {"originals": originals, "reconstructions": reconstructions}
    found = {name: a.permute(0, 2, 3, 1).cpu().numpy() for name, a in arrays.items()}
    if codes is not None:
        found["codes"] = codes.to(torch.int32).cpu().numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **found)
    write_atomic(path, file.getvalue())


def write_grid(path: Path, originals: Tensor, reconstructions: Tensor) -> None:
    """Two uint8 [n, C, H, W] -> one PNG: original, reconstruction, original, ..., eight in a row."""
    pictures = torch.stack([originals, reconstructions], 1).flatten(0, 1).cpu().permute(0, 2, 3, 1).numpy()
    count, height, width, channels = pictures.shape
    columns = min(GRID_COLUMNS, count)
    tall, wide = height + GRID_BORDER, width + GRID_BORDER
    rows = -(-count // columns)
    canvas = np.zeros((rows * tall + GRID_BORDER, columns * wide + GRID_BORDER, channels), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * tall + GRID_BORDER, i % columns * wide + GRID_BORDER
        canvas[top : top + height, left : left + width] = picture
    file = io.BytesIO()
    Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas).save(file, "PNG")
    write_atomic(path, file.getvalue())


def _pixels(images: np.ndarray | Tensor, start: int, stop: int) -> Tensor:
    if isinstance(images, Tensor):
        return images[start:stop]
    return torch.from_numpy(np.array(images[start:stop]))       # a copy: a memory map may be read-only


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval inside; afterwards every part is in the mode it had (a frozen part of a model stays in eval)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions of metric networks in fp32, not TF32: a metric must not depend on the kind of GPU."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic,
                     allow_tf32=False):
        yield
