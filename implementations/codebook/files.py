"""Codes that come from a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEWEST_DIGITS = 8


def rows_from(file: str, sha256: str) -> Tensor:
    """[K, D] float32 from an .npy file, or from a .pt file that holds one tensor.

    sha256: the file's, or its first 8 or more hex digits: what a run is identified by, since a path says nothing of
    the content. Raises ValueError with one sentence where the file is missing, another one, or no table.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"file = {file!r}: there is no such file of codes on this machine")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(sha256) < FEWEST_DIGITS or not found.startswith(sha256.lower()):
        raise ValueError(f"sha256 = {sha256!r}: the file {file} has {found[:16]}; write its first {FEWEST_DIGITS} or "
                         "more digits, so that the run is known by the file's content")
    with torch.device("cpu"):
        if path.suffix == ".npy":
            rows = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            rows = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(rows, Tensor) or rows.dim() != 2:
        raise ValueError(f"file = {file!r}: expected one tensor [codes, width] in it")
    return rows.float()
