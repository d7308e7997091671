"""What would stop runs tonight, said before anything starts. Torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from bench.catalogue import locate
from bench.errors import BadInput
from bench.places import Places
from bench.run import Run, open_images
from bench.weights import missing, sentence, trained_without


def writable(places: Places) -> None:
    """Raises BadInput naming the first folder that cannot be written, and how to choose another."""
    for folder, option in ((places.results, "--results or BENCH_RESULTS"), (places.runs, "--runs or BENCH_RUNS"),
                           (places.reports, "--reports or BENCH_REPORTS"), (places.cache, "BENCH_CACHE")):
        _writable(folder, option)


def preflight(todo: Sequence[Run], places: Places) -> None:
    """Everything that would stop a run tonight, said now: images and pretrained weights. Raises BadInput."""
    for run in {json.dumps(r.train.dataset.content(), default=str, sort_keys=True): r for r in todo}.values():
        for split in ("train", "test"):
            open_images(run, split, places)
    for given, label in {run.start.checkpoint: run.label for run in todo if run.start is not None and run.start.checkpoint}.items():
        try:
            locate(given, places)
        except BadInput as error:
            raise BadInput(f"{label} begins with other weights (train.init_from): {error}") from error
    networks = sorted({name for run in todo for w in run.values for name in w.spec.networks})
    training = sorted({name for run in todo for name in run.train.networks})
    if absent := missing(training, places):
        raise BadInput(trained_without(absent, places))
    if absent := missing(networks, places):
        values = dict.fromkeys(w.name for run in todo for w in run.values if set(absent) & set(w.spec.networks))
        raise BadInput(sentence(absent, places, values))


def _writable(folder: Path, option: str) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another folder with {option}") from error
