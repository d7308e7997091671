"""VQGAN-LC: frozen features of another network as codes, behind a learned projector (arXiv:2406.11837)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bench.registry import register
from implementations.codebook.files import rows_from
from implementations.codebook.parts import Table


@register("table", "loaded")
class Loaded(Table):
    """e_k = P f_k: rows f_k [K, width] are read from a file and never change, only P learns (section 3.2).

    file, sha256: an .npy, or a .pt with one tensor, and the first 8 or more hex digits of its hash. The rows are not
        part of a checkpoint. (Rows that learn: `free` with `init: file`.)
    projector: `linear`, weights N(0, 1/D); `mlp`: two layers, 256 wide between (both as the authors' code);
        `none` (width = D). The authors weight commitment with 1 and codebook with 0.33.
    """

    writable = False
    pretrained = ("codes of {file}",)

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        file: str,
        sha256: str,
        projector: Literal["linear", "mlp", "none"] = "linear",
    ) -> None:
        super().__init__()
        found = rows_from(file, sha256)
        width = found.shape[1]
        if len(found) != codebook_size:
            raise ValueError(f"codebook_size = {codebook_size}: the file {file} holds {len(found)} codes")
        if projector == "none" and width != dim:
            raise ValueError(f"projector = 'none': the file's codes have width {width}, codebook_dim is {dim}")
        rows = torch.empty(codebook_size, width)
        self.register_buffer("codebook", rows if rows.is_meta else rows.copy_(found), persistent=False)
        if projector == "linear":
            self.projector: nn.Module = nn.Linear(width, dim)
            nn.init.normal_(self.projector.weight, std=dim**-0.5)
        elif projector == "mlp":
            self.projector = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, dim))
        else:
            self.projector = nn.Identity()

    def forward(self) -> Tensor:
        return self.projector(self.codebook)
