"""Weights & Biases: offline unless WANDB_MODE says otherwise; `wandb sync` uploads an offline run later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.registry import register


@register("tracker", "wandb")
class WandB:
    """One W&B run per run, found again when it resumes: its id is the train id.

    folder: <runs>/<train_id>/<any name>. Project and entity come from W&B's variables (WANDB_PROJECT, ...).
    """

    def __init__(self, folder: Path, label: str, spec: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise BadInput(
                "tracker wandb: not installed; pip install tokenizer-bench[trackers], or leave it out"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            dir=str(folder), id=folder.parent.name, resume="allow", name=label, config=spec,
            project=os.environ.get("WANDB_PROJECT", "tokenizer-bench"),
            mode=None if "WANDB_MODE" in os.environ else "offline",
        )

    def log(self, step: int, row: dict[str, float]) -> None:
        self.run.log(dict(row), step=step)

    def close(self) -> None:
        self.run.finish()
