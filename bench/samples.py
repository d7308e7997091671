"""Reconstructions of whole test splits in files that other evaluators read."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.build import build_state, pick_device
from bench.checkpoint import read_state
from bench.errors import BadInput
from bench.evaluate import measure
from bench.image_cache import decoded
from bench.npz import NpzWriter
from bench.places import Places
from bench.run import Run, data_key, open_images
from bench.runs import RunFolder

BATCH = 128             # images at a time


def save_samples(
    runs: Sequence[Run], places: Places, folder: Path, *, device: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Path]:
    """FOLDER/<label>-<train id>.npz of each trained run and, of each set of test images, one
    FOLDER/originals-<data set>-<size>px-<id>.npz, whose id follows from what the images are: uint8 [n, H, W, 3] under
    arr_0, in the order of the test split. `progress(label, images, of images)`.

    Runs that are recorded as impossible are left out. Raises BadInput for one that is not trained, before anything is
    written, and where the folder cannot be written.
    """
    runs = [run for run in runs if not _impossible(run, places)] or runs
    for run in runs:
        if not _final(run, places).is_file():
            raise BadInput(f"{run.label} is not trained yet, so it has no reconstructions to save; `bench run` trains it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another folder with --save-npz") from error
    where = pick_device(device)
    written: dict[Path, None] = {}
    for run in runs:
        opened = open_images(run, "test", places)
        images = decoded(opened, data_key(run.train.dataset), places)
        limit = min((w.spec.images or len(images) for w in run.values), default=len(images))
        images = images[:limit]
        originals = folder / f"originals-{run.train.dataset.name}-{images.shape[-1]}px-{_of_images(run, len(images))}.npz"
        if originals not in written:
            with NpzWriter(originals, *_shape(images)) as file:
                for start in range(0, len(images), BATCH):
                    file.add(start, torch.from_numpy(images[start : start + BATCH].copy()))
            written[originals] = None
        state = build_state(run.train, run.loop, (), where)
        saved = read_state(_final(run, places), where)
        if saved is None:
            raise BadInput(f"{_final(run, places)} cannot be read; `bench retry` trains the run again from its checkpoint")
        state.load_state_dict(saved["train"], where)
        if state.average is not None and any(w.spec.weights == "average" for w in run.values):
            state.average.swap(state.model)
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', run.label)}-{run.train_id}.npz"
        with NpzWriter(path, *_shape(images)) as file:
            measure(state.model, images, {}, device=where, batch_size=BATCH, keep=file.add,
                    progress=None if progress is None else functools.partial(progress, run.label))
        written[path] = None
    return list(written)


def _impossible(run: Run, places: Places) -> bool:
    record = RunFolder(places.runs, run.train_id).record()
    return record is not None and record.state == "skipped"


def _of_images(run: Run, count: int) -> str:
    """Six hex digits that differ for other test images: another crop, other files, fewer of them."""
    text = json.dumps([data_key(run.train.dataset), run.data["test"].fingerprint, count])
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _final(run: Run, places: Places) -> Path:
    return RunFolder(places.runs, run.train_id).checkpoints / "final.pt"


def _shape(images: np.ndarray) -> tuple[int, int, int]:
    count, _, height, width = images.shape
    return count, height, width
