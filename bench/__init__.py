"""tokenizer-bench: train, measure and compare visual tokenizers under one harness."""

from __future__ import annotations

from typing import Any

__all__ = ["load_records", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name == "load_records":
        from bench.results import load_records

        return load_records
    if name == "load_tokenizer":
        from bench.load import load_tokenizer

        return load_tokenizer
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
