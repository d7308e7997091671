"""Quantizers compute in fp32 whatever the surrounding autocast says, and whatever `train.tf32` allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def without_autocast(like: Tensor) -> Iterator[None]:
    """Inside, operations on the device of `like` keep their own precision, and fp32 products are fp32, not TF32."""
    if like.is_meta:
        yield                                   # there is no autocast for shapes without numbers
        return
    products = torch.get_float32_matmul_precision()
    if products != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(like.device.type, enabled=False):
            yield
    finally:
        if products != "highest":
            torch.set_float32_matmul_precision(products)
