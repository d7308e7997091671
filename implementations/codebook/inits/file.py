"""First codes from a file."""

from __future__ import annotations

from torch import Tensor

from bench.registry import register
from implementations.codebook.files import rows_from
from implementations.codebook.parts import Init


@register("init", "file")
class File(Init):
    """file: an .npy, or a .pt with one tensor [K, D]. sha256: of that file, its first 8 or more hex digits."""

    pretrained = ("codes of {file}",)

    def __init__(self, *, file: str, sha256: str) -> None:
        self.file, self.sha256 = file, sha256

    def draw(self, codebook_size: int, dim: int) -> Tensor:
        rows = rows_from(self.file, self.sha256)
        if rows.shape != (codebook_size, dim):
            raise ValueError(f"file = {self.file!r}: it holds {len(rows)} codes of width {rows.shape[1]}, "
                             f"codebook_size and codebook_dim ask for {codebook_size} of {dim}")
        return rows
