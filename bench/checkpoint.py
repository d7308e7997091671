"""Atomic checkpoints: written aside, fsynced, renamed; the last two kept; the newest valid one is found."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from bench.files import write_atomic

log = logging.getLogger(__name__)

KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """folder/step-000010000.pt; older ones beyond the last two are removed after this one is safe."""
    path = folder / f"step-{step:09d}.pt"
    write_state(path, state)
    for old in checkpoints(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Serialise in memory, then write atomically. Raises OSError when the disk is full; nothing is damaged then."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def saved_step(folder: Path) -> int:
    """Of the newest checkpoint by its name, 0 without one; whether it is whole is seen when it is read."""
    return max((int(path.stem.partition("-")[2]) for path in checkpoints(folder)), default=0)


def newest_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint whose checksums hold; a damaged one is reported and passed over."""
    return next((state for path in checkpoints(folder) if (state := read_state(path, device)) is not None), None)


def read_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """None, with a warning, when the file is absent or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {bad} does not hold")
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:      # whatever a damaged archive raises: an older checkpoint is better than none
        log.warning("%s is damaged (%s); using an older checkpoint", path.name, error)
        return None
