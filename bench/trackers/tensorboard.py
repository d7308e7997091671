"""TensorBoard: curves as event files in the run's folder, read by `tensorboard --logdir`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.registry import register


@register("tracker", "tensorboard")
class TensorBoard:
    """Writes event files under `folder`; a resumed run adds one, whose steps win over the older file's."""

    def __init__(self, folder: Path, label: str, spec: dict[str, Any]) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise BadInput(
                "tracker tensorboard: not installed; pip install tokenizer-bench[trackers], or leave it out"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = Writer(str(folder))

    def log(self, step: int, row: dict[str, float]) -> None:
        for name, number in row.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
