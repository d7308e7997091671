"""Quantizers compute in fp32 whatever the surrounding autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of `like` keep their own precision."""
    if like.is_meta:
        return nullcontext()                    # there is no autocast for shapes without numbers
    return torch.autocast(like.device.type, enabled=False)
