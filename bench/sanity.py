"""Sanity rows: what is no tokenizer, measured exactly as the suite's runs are, on the same test images.

    results/<suite>/sanity.jsonl      one Record a row; rows that are no longer asked for leave it
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.baseline import Baseline
from bench.build import build_model, pick_device
from bench.errors import BadInput, Incompatible
from bench.evaluate import Measured, measure
from bench.image_cache import OpenSplit, decoded
from bench.image_dataset import UnreadableImage
from bench.places import Places
from bench.prepare import to_8bit
from bench.provenance import PACKAGES, provenance
from bench.registry import signature
from bench.results import FILE as RECORDS
from bench.results import Component, Record, Value, read_records, write_records
from bench.run import Run, Wanted, data_key, describe, open_images, streams
from bench.spec import ComponentSpec, Spec, bind, flatten, identity
from bench.types import TokenizerOutput, TokenLayout
from bench.weights import FILES, missing, needed

log = logging.getLogger(__name__)

FILE = "sanity.jsonl"
MOST_RATES = 3              # that baselines are matched to: the lowest, the median, the highest
BATCH = 128                 # images; changes no number
LEARNED_FROM = 10_000       # training images that are decoded where no decoded set is kept
NOT_HERE = "not measured: the pretrained network "     # begins a reason that may be gone tomorrow

Progress = Callable[[str, int, int], None]      # (label of the row, images done, of all)


class SanitySpec(Spec):
    """All that can change what a sanity row reconstructs."""

    baseline: ComponentSpec
    dataset: ComponentSpec
    train: str | None                           # fingerprint of the training images, where it learns from them
    test: str

    @property
    def train_id(self) -> str:
        return identity(self)


@dataclass
class _Setting:
    """The runs of a suite that were measured on the same images."""

    run: Run                                    # any of them
    wanted: list[Wanted]                        # all they ask for, each once
    layouts: list[TokenLayout]

    @property
    def rates(self) -> list[float]:
        """Bits per image of the tokenizers, each once, rising."""
        return sorted({layout.bits_per_image for layout in self.layouts if layout.bits_per_image})

    @property
    def size(self) -> int:
        return self.run.train.dataset.kwargs["image_size"]


@dataclass
class _Images:
    """The images of a setting, opened when a row needs them."""

    run: Run
    places: Places
    _kept: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def test(self) -> np.ndarray:
        return self._get("test", lambda: self._decoded(open_images(self.run, "test", self.places)))

    @property
    def train(self) -> np.ndarray:
        """All of them, or an even sample where they are too many, or too random, to be kept decoded."""
        return self._get("train", self._learned_from)

    def _get(self, split: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if split not in self._kept:
            self._kept[split] = make()
        return self._kept[split]

    def _decoded(self, opened: OpenSplit) -> np.ndarray:
        return decoded(opened, data_key(self.run.train.dataset), self.places)

    def _learned_from(self) -> np.ndarray:
        opened = open_images(self.run, "train", self.places)
        if not streams(self.run, opened):
            return self._decoded(opened)
        chosen = np.linspace(0, len(opened.dataset) - 1, min(len(opened.dataset), LEARNED_FROM)).round().astype(int)
        try:
            return np.stack([opened.dataset.load(int(i), np.random.default_rng(int(i))) for i in chosen])
        except UnreadableImage as error:
            raise BadInput(f"{error}; leave it out, or repair it") from error


def bind_baseline(given: str | Mapping[str, Any] | ComponentSpec) -> ComponentSpec:
    """A name, or a mapping with a name and keywords. Raises BadInput with the nearest name."""
    if isinstance(given, ComponentSpec):
        return given

    def fail(path: tuple[str, ...], value: Any, said: str) -> BadInput:
        return BadInput(f"{'.'.join(map(str, path))} = {value!r}: {said}")

    return bind("baseline", given if isinstance(given, str) else dict(given), ("sanity",), fail)


def measure_sanity(
    suite: str, runs: Sequence[Run], asked: Sequence[str | Mapping[str, Any] | ComponentSpec], places: Places,
    *, device: str | None = None, progress: Progress | None = None, forget: bool = True,
) -> list[Record]:
    """Measure the baselines asked for on the test images of these runs, under all values that these runs ask for.

    A baseline with a rate is made once for each rate among the suite's tokenizers, recorded or in `runs` (of more than
    three the lowest, the median and the highest). Rows and values that results/<suite>/sanity.jsonl has are not
    measured again; each row is written as it is known; with `forget`, rows on these images that are not asked for leave
    the file. A baseline that cannot be had for these images gives a record
    that is skipped with the reason, and a value whose pretrained network is not here a reason instead of a number,
    asked again next time. One process does this. Raises BadInput for unknown names, and where the images are not here.
    """
    specs = [bind_baseline(given) for given in asked]
    path = places.results / suite / FILE
    recorded = read_records(places.results / suite / RECORDS)
    found: list[Record] = []
    settings = _settings(runs, recorded)
    for setting in settings:
        images = _Images(setting.run, places)
        for spec in specs:
            for matched in _matched(spec, setting):
                known = {r.train_id: r for r in read_records(path)}
                row = _row(matched, setting)
                record = _measured(row, known.get(row.train_id), setting, images, places, pick_device(device), progress)
                found.append(record)
                if record != known.get(row.train_id):
                    write_records(path, [*known.values(), record])
    if forget:
        _forget(path, {r.train_id for r in found}, [_plain(s.run.train.dataset) for s in settings])
    return found


def _forget(path: Path, asked: set[str], datasets: list[Any]) -> None:
    """Rows on these data sets that nobody asks for any more: other rates, other test images, other baselines."""
    known = read_records(path)
    kept = [r for r in known if r.train_id in asked or r.spec.get("dataset") not in datasets]
    if len(kept) < len(known):
        write_records(path, kept)


# -- what is to be measured --------------------------------------------------------------------------------------------


def _settings(runs: Sequence[Run], recorded: Sequence[Record]) -> list[_Setting]:
    found: dict[tuple[str, str, str], _Setting] = {}
    layouts = _layouts(runs)
    for run in runs:
        data = run.data["train"].fingerprint, run.data["test"].fingerprint
        setting = found.setdefault((data_key(run.train.dataset), *data), _Setting(run, [], []))
        # of whose weights it is does not matter to a row that has none
        values = [w.model_copy(update={"spec": w.spec.model_copy(update={"train_id": "", "weights": "live"})})
                  for w in run.values]
        known = {w.value_id for w in setting.wanted}
        setting.wanted += [w for w in values if w.value_id not in known]
        if (layout := layouts.get(run.train_id)) is not None:
            setting.layouts.append(layout)
    for setting in found.values():
        dataset = _plain(setting.run.train.dataset)
        setting.layouts += [_layout(r) for r in recorded if r.spec.get("dataset") == dataset and r.trained and r.layout]
    return list(found.values())


def _plain(spec: ComponentSpec) -> Any:
    return json.loads(spec.model_dump_json())


def _layouts(runs: Sequence[Run]) -> dict[str, TokenLayout]:
    """By train id, of tokenizers built on the meta device; those that cannot be built have none."""
    found: dict[str, TokenLayout] = {}
    seen: dict[str, TokenLayout | None] = {}
    for run in runs:
        key = repr((run.train.model, run.train.dataset.kwargs["image_size"]))
        if key not in seen:
            try:
                with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
                    seen[key] = build_model(run.train)[0].layout
            except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
                log.debug("%s has no layout: %s", run.label, error)
                seen[key] = None
        if (layout := seen[key]) is not None:
            found[run.train_id] = layout
    return found


def _layout(record: Record) -> TokenLayout:
    said = record.layout
    return TokenLayout(said.get("num_tokens") or 0, tuple(said.get("vocab_sizes", ())),
                       tuple(tuple(g) for g in said.get("grids", ())), said.get("separate", False))


def _matched(spec: ComponentSpec, setting: _Setting) -> list[ComponentSpec]:
    """The baseline at each rate of the tokenizers; as it is where it has none, or the suite has given it one."""
    keys = spec.partial().func.matched
    if not keys or any(spec.kwargs[k] is not None for k in spec.kwargs if k in (*keys, "quality")):
        return [spec]
    rates = setting.rates
    if len(rates) > MOST_RATES:
        rates = [rates[0], rates[(len(rates) - 1) // 2], rates[-1]]
    found: dict[str, ComponentSpec] = {}
    for rate in rates:
        same = [layout for layout in setting.layouts if layout.bits_per_image == rate]
        given = {"bits": rate, **next((g for layout in same if (g := _grid(layout, setting.size))), {})}
        kwargs = {**spec.kwargs, **{k: given[k] for k in keys if k in given}}
        found[repr(kwargs)] = spec.model_copy(update={"kwargs": kwargs})
    return list(found.values()) or [spec]


def _grid(layout: TokenLayout, size: int) -> dict[str, int]:
    """The patch behind each token and its codes, of one level of tokens on one square grid; else nothing."""
    if len(layout.vocab_sizes) != 1 or len(layout.grids) != 1:
        return {}
    (height, width), = layout.grids
    if height != width or height * width != layout.num_tokens or size % height:
        return {}
    return {"patch": size // height, "codebook_size": layout.vocab_sizes[0]}


def _row(baseline: ComponentSpec, setting: _Setting) -> SanitySpec:
    run = setting.run
    learns = baseline.partial().func.learns
    return SanitySpec(baseline=baseline, dataset=run.train.dataset, test=run.data["test"].fingerprint,
                      train=run.data["train"].fingerprint if learns else None)


# -- one row -----------------------------------------------------------------------------------------------------------


class _AsTokenizer(nn.Module):
    """A baseline where the evaluation wants a tokenizer: float images in [-1, 1] in and out."""

    def __init__(self, baseline: Baseline) -> None:
        super().__init__()
        self.baseline, self.layout = baseline, baseline.layout

    def forward(self, images: Tensor) -> TokenizerOutput:
        coded, codes = self.baseline.reconstruct(to_8bit(images).cpu())
        nothing = images.new_zeros(len(images), 0, 0)
        codes = None if codes is None else codes.to(images.device)
        # as the originals become float, so that no rounding comes between
        return TokenizerOutput(coded.to(images.device).float().div_(127.5).sub_(1.0), nothing, nothing, codes)


def _measured(
    row: SanitySpec, known: Record | None, setting: _Setting, images: _Images, places: Places, device: torch.device,
    progress: Progress | None,
) -> Record:
    """The record of a row: the known one, with what it lacks."""
    wanted = {w.value_id: w for w in (
        w.model_copy(update={"spec": w.spec.model_copy(update={"train_id": row.train_id})}) for w in setting.wanted)}
    if known is not None and known.state == "skipped":
        return known
    values = {} if known is None else dict(known.values)
    todo: dict[str, Wanted] = {}
    for value_id, w in wanted.items():
        here = values.get(value_id)
        if here is None or (here.number is None and (here.reason or "").startswith(NOT_HERE)):
            if absent := missing(_networks(w), places):
                images_of_all = setting.run.data["test"].images
                count = min(images_of_all, w.spec.images or images_of_all)
                why = f"{NOT_HERE}{' and '.join(FILES[name].file for name in absent)} was not there; `bench prepare` fetches it"
                values[value_id] = w.value(Measured(None, why, images=count))     # no path: records name no place
            else:
                todo[value_id] = w
    if known is not None and not todo:
        return known if values == known.values else known.model_copy(update={"values": values})
    baseline = row.baseline.partial()()
    began = time.monotonic()
    try:
        baseline.fit(images.train if baseline.learns else None, images.test)
    except Incompatible as error:
        return _record(row, setting, None, {}, str(error))
    tokenizer = _AsTokenizer(baseline)
    for limit in dict.fromkeys(w.spec.images for w in todo.values()):
        now = {i: w for i, w in todo.items() if w.spec.images == limit}
        metrics = {i: w.spec.metric.partial()() for i, w in now.items()}
        tell = None if progress is None else lambda done, total: progress(baseline.label, done, total)
        found = measure(tokenizer, images.test[:limit], metrics, device=device, batch_size=BATCH, cache=places.cache,
                        prepare={i: w.spec.prepare for i, w in now.items()}, progress=tell)
        values |= {i: w.value(_named(found[i], baseline)) for i, w in now.items()}
    return _record(row, setting, baseline, values, seconds=time.monotonic() - began)


def _named(measured: Measured, baseline: Baseline) -> Measured:
    """What metrics say of continuous tokenizers they say of a baseline without codes, too."""
    if measured.reason is None or baseline.layout.vocab_sizes:
        return measured
    return replace(measured, reason=measured.reason.replace("a continuous tokenizer", baseline.title))


def _networks(wanted: Wanted) -> list[str]:
    metric = wanted.spec.metric
    return needed(signature("metric", metric.name).attributes, metric.kwargs)


def _record(
    row: SanitySpec, setting: _Setting, baseline: Baseline | None, values: Mapping[str, Value],
    reason: str | None = None, seconds: float = 0.0,
) -> Record:
    """A row as a record; skipped with its reason where there is no baseline."""
    run, name = setting.run, row.baseline.name
    title = row.baseline.partial().func.title
    target = row.baseline.kwargs.get("bits")
    component = describe(row.baseline)
    notes = [] if baseline is None else list(baseline.notes)
    if target in setting.rates and len(setting.rates) > MOST_RATES:
        notes.append(f"of the {len(setting.rates)} rates of the suite the lowest, the median and the highest are matched")
    label = title if baseline is None else baseline.label
    fields = {k: v for k, v in run.fields.items() if k.startswith("dataset.")}
    fields |= {"tokenizer.name": name, "sanity": name} | flatten(row.baseline.kwargs, "tokenizer")
    facts = provenance(packages=(*PACKAGES, "scikit-learn")) | {
        "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    if notes:
        facts["note"] = "; ".join(notes)
    return Record(
        train_id=row.train_id, label=label, state="skipped" if baseline is None else "done", reason=reason,
        debug=run.train.debug, spec=json.loads(row.model_dump_json()), fields=fields,
        components={"tokenizer": Component(name=name, title=label, source=component.source),
                    "dataset": run.components["dataset"]},
        layout={} if baseline is None else _described(baseline, setting.size, target), values=dict(values),
        parameters={} if baseline is None else _parameters(baseline),
        data={split: data for split, data in run.data.items() if split == "test" or row.train is not None},
        cost={"evaluate_seconds": seconds}, provenance=facts,
    )


def _described(baseline: Baseline, size: int, target: float | None) -> dict[str, Any]:
    layout = baseline.layout
    found: dict[str, Any] = {
        "num_tokens": layout.num_tokens or None, "vocab_sizes": list(layout.vocab_sizes),
        "dims": [baseline.codebook[1]] if baseline.codebook else [], "grids": [list(g) for g in layout.grids],
        "bits_per_image": layout.bits_per_image, "bits_per_pixel": layout.bits_per_image / size**2,
    }
    return found if target is None else found | {"target_bits": target}


def _parameters(baseline: Baseline) -> dict[str, int]:
    """The numbers of the learned table; none where nothing is learned."""
    table = 0 if baseline.codebook is None else baseline.codebook[0] * baseline.codebook[1]
    return {"total": table, "learned": table, "codebook": table}
