"""Records of runs: what is kept for ever. Torch-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(Frozen):
    """One measured number and what it means."""

    name: str                               # the column's name in the protocol: psnr, usage_window, ...
    metric: str                             # the registered metric
    number: float | None                    # None: could not be measured; `reason` says why
    unit: str
    direction: Literal["higher", "lower", "none"]
    images: int                             # each counted once
    protocol: str
    keywords: dict[str, Any] = {}           # the metric's keywords, as the protocol gave them
    details: dict[str, float] = {}          # a window's fill and ceiling
    reason: str | None = None


class DataRecord(Frozen):
    """Which images were really used."""

    fingerprint: str                        # "official", or the hash of the listing
    images: int
    of: int | None = None                   # images of the complete published split
    left_out: tuple[str, ...] = ()          # unreadable files the user chose to leave out


class Component(Frozen):
    """How a part of the run is called and where its source is, for table cells and links."""

    name: str
    title: str
    source: str | None                      # path relative to the repository, or None from outside


class Record(Frozen):
    """One run: spec, identities, numbers, cost, provenance. One line of records.jsonl."""

    train_id: str
    label: str
    state: Literal["trained", "done", "failed", "skipped"]
    reason: str | None = None               # one line, of a failed or skipped run
    debug: bool = False
    spec: dict[str, Any]                    # the resolved TrainSpec as JSON
    fields: dict[str, Any]                  # the suite's view, dotted key -> scalar: what tables show and group by
    components: dict[str, Component] = {}   # dotted key ("tokenizer", "tokenizer.quantizer") -> Component
    layout: dict[str, Any] = {}             # num_tokens, vocab_sizes, dims, grids, bits_per_image
    parameters: dict[str, int] = {}         # total, tokenizer parts, codebook
    values: dict[str, Value] = {}           # by value_id
    data: dict[str, DataRecord] = {}        # "train", "test"
    monitors: dict[str, float] = {}         # last logged scalars
    cost: dict[str, float] = {}             # seconds, images_per_second, peak_memory_bytes, ...
    provenance: dict[str, Any] = {}         # commit, dirty, versions, device, finished (ISO date), source digest
