"""One run, complete and checked: what a suite expands to and a job executes. Torch-free."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import BadInput
from bench.image_cache import OpenSplit, open_split
from bench.places import Places
from bench.registry import signature
from bench.resources import Resources
from bench.results import Component, DataRecord, Value
from bench.spec import ComponentSpec, LoopSettings, Spec, TrainSpec, ValueSpec

if TYPE_CHECKING:
    from bench.evaluate import Measured


class Wanted(Spec):
    """One number a run is asked for: the column's name, and all that can change it."""

    name: str
    protocol: str
    spec: ValueSpec

    @functools.cached_property
    def value_id(self) -> str:
        return self.spec.value_id

    def model_copy(self, **how: Any) -> Wanted:
        """As pydantic's, but without the id that is kept here: a changed copy is another number."""
        copied = super().model_copy(**how)
        copied.__dict__.pop("value_id", None)
        return copied

    def settings(self) -> dict[str, Any]:
        """What is in the value id besides the metric's keywords, for the record."""
        spec = self.spec
        return {"revision": spec.metric.revision, "weights": spec.weights, "split": spec.split, "limit": spec.images,
                "prepare": spec.prepare, "networks": spec.networks}

    def value(self, found: Measured) -> Value:
        """What a record keeps of the number that was measured."""
        metric = self.spec.metric
        attributes = signature("metric", metric.name).attributes
        return Value(
            name=self.name, metric=metric.name, number=found.number, unit=attributes["unit"],
            direction=attributes["direction"], images=found.images, protocol=self.protocol,
            keywords=metric.content()["kwargs"], settings=self.settings(), details=found.details, reason=found.reason,
        )


class Start(Spec):
    """Where the weights are that a run begins with; `TrainSpec.init_from` says which ones they are."""

    label: str                                  # of the run that they come from, or the checkpoint as it was written
    checkpoint: str | None = None               # None: in the folder of that run
    format: str | None = None


class Run(Spec):
    """One run of a suite, complete and checked; travels to a job as JSON."""

    suite: str
    label: str
    train: TrainSpec
    values: tuple[Wanted, ...]
    loop: LoopSettings
    monitors: tuple[ComponentSpec, ...] = ()
    fields: dict[str, Any]                      # dotted key -> scalar: what tables show and group by
    components: dict[str, Component]
    data: dict[str, DataRecord]
    resources: Resources = Resources()
    start: Start | None = None

    @functools.cached_property
    def train_id(self) -> str:
        return self.train.train_id

    @property
    def parent(self) -> str | None:
        """Train id of the run whose weights it begins with."""
        return None if self.train.init_from is None else self.train.init_from.run


@dataclass(frozen=True, slots=True)
class Checked:
    """What a meta build found out about a run."""

    problem: str | None = None                  # the user must mend it
    key: str | None = None                      # the setting at fault, dotted
    skip: str | None = None                     # this combination makes no sense; the others go on
    parameters: int = 0
    lasting: bool = True                        # no: it is about files of this machine, which may be there tomorrow


def describe(component: ComponentSpec) -> Component:
    """Name, title and source file of a component, as a record keeps them."""
    sig = signature(component.kind, component.name)
    parts = sig.file.parts
    root = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] in ("bench", "implementations")), None)
    source = None if sig.outside or root is None else "/".join(parts[root:])
    return Component(name=component.name, title=sig.title, source=source)


def open_images(run: Run, split: Literal["train", "test"], places: Places) -> OpenSplit:
    """The data set of a run, opened. Raises BadInput when it is not on this machine or not the one planned."""
    dataset = run.train.dataset
    try:
        opened = open_split(dataset.partial(), split, places)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from error
    if opened.record.fingerprint != run.data[split].fingerprint:
        raise BadInput(f"{dataset.name} ({split}): these are not the images this run was planned with: fingerprint "
                       f"{opened.record.fingerprint} instead of {run.data[split].fingerprint}; run `bench plan` again")
    return opened


def streams(run: Run, opened: OpenSplit) -> bool:
    """Whether the training images are decoded on the fly: random crops, or too many for the cache."""
    size = run.train.dataset.kwargs["image_size"]
    return opened.dataset.random or len(opened.dataset) * 3 * size * size > run.loop.cache_gib * 2**30


def data_key(dataset: ComponentSpec) -> str:
    """The preprocessing part of the decoded cache's key."""
    return json.dumps(dataset.content(), sort_keys=True, default=str)
