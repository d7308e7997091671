"""Synthetic records for the tests of tables, figures and results. Torch-free."""

from __future__ import annotations

from typing import Any

from bench.results import Component, DataRecord, Record, Value

#: value name -> metric, unit, direction, keywords
METRICS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "psnr": ("psnr", "dB", "higher", {}),
    "ssim": ("ssim", "", "higher", {}),
    "lpips": ("lpips", "", "lower", {}),
    "rfid": ("rfid", "", "lower", {}),
    "usage": ("usage", "share", "higher", {}),
    "perplexity": ("perplexity", "", "higher", {}),
    "usage_window": ("usage", "share", "higher", {"window": 65536}),
    "perplexity_window": ("perplexity", "", "higher", {"window": 65536}),
    "tokens": ("tokens", "", "none", {}),
}
CELEBA = {
    "train": DataRecord(fingerprint="0123456789ab", images=2822, of=162770),
    "test": DataRecord(fingerprint="ba9876543210", images=705, of=19962),
}


def value(name: str, number: float | None, **changes: Any) -> Value:
    """A measured value as the harness writes it."""
    metric, unit, direction, keywords = METRICS[name]
    known: dict[str, Any] = {
        "name": name,
        "metric": metric,
        "number": number,
        "unit": unit,
        "direction": direction,
        "images": 705,
        "protocol": "ours-1",
        "keywords": keywords,
    }
    return Value.model_validate(known | changes)


def record(
    train_id: str,
    values: dict[str, Any] | None = None,
    *,
    size: int = 512,
    dim: int = 64,
    seed: int = 1,
    quantizer: str = "vq",
    quantizer_title: str | None = None,
    fields: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """One run of a VQ-VAE. `values`: name -> number or Value; `fields` are added to the usual ones."""
    made = {
        f"{train_id}-{name}": v if isinstance(v, Value) else value(name, v)
        for name, v in (values or {}).items()
    }
    title = quantizer_title or {"vq": "VQ", "ema_vq": "EMA VQ"}.get(quantizer, quantizer)
    known: dict[str, Any] = {
        "train_id": train_id,
        "label": f"{quantizer} {dim}/{size} seed {seed}",
        "state": "done",
        "spec": {"seed": seed},
        "fields": {
            "tokenizer.name": "vqvae",
            "tokenizer.hidden": 32,
            "tokenizer.quantizer.name": quantizer,
            "tokenizer.quantizer.codebook_size": size,
            "tokenizer.quantizer.codebook_dim": dim,
            "train.steps": 1000,
            "train.seed": seed,
            **(fields or {}),
        },
        "components": {
            "tokenizer": Component(name="vqvae", title="SimpleCNN", source="implementations/vqvae.py"),
            "tokenizer.quantizer": Component(
                name=quantizer, title=title, source=f"implementations/quantizers/{quantizer}.py"
            ),
        },
        "layout": {"bits_per_image": 2304.0, "num_tokens": 256, "vocab_sizes": [size]},
        "parameters": {"total": 1234567},
        "values": made,
        "data": CELEBA,
        "cost": {"seconds": 61.5, "images_per_second": 812.25 + seed, "peak_memory_bytes": 2.0**29},
        "provenance": {
            "commit": "0123456789abcdef0123",
            "dirty": False,
            "finished": "2025-03-01T12:00:00+00:00",
        },
    }
    return Record.model_validate(known | changes)
