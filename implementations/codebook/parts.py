"""The seven choices that make a codebook: contracts of the parts that `codebook_vq` is composed of.

Letters: N latent vectors of a batch, K codes, D their width. Every tensor a part is given is fp32, on one device.
Parts keep no step statistics: the quantizer counts, adds up across processes and hands over the totals, so that
accumulation and processes change nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from implementations.search.entropy import assignment_entropy
from implementations.search.nearest import nearest_codes


class Distance:
    """Which code is nearest, and in which form latents and codes are handed on. This class is squared distance."""

    def latents(self, z: Tensor) -> Tensor:
        """[N, D] -> what is quantized and enters the losses."""
        return z

    def codes(self, table: Tensor) -> Tensor:
        """[K, D] -> what the decoder gets of a code, and what enters the losses."""
        return table

    def compared(self, vectors: Tensor) -> Tensor:
        """Latents or codes [*, D] as they are compared."""
        return vectors

    def nearest(self, z: Tensor, among: Tensor) -> Tensor:
        """[N, D], [K, D] -> int64 [N]: for each row the nearest of the others, lowest index on ties."""
        return nearest_codes(self.compared(z), self.compared(among))

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """[n, D], [m, D] -> [n, m], larger is nearer; for small blocks."""
        a, b = self.compared(a), self.compared(b)
        return 2 * a @ b.T - a.square().sum(1)[:, None] - b.square().sum(1)

    def entropy(self, z: Tensor, table: Tensor, temperature: float) -> Tensor:
        """Assignment entropy (see search/entropy.py) of soft assignments by this distance; a scalar."""
        return assignment_entropy(self.compared(z), self.compared(table), temperature)


class Table(nn.Module, ABC):
    """Where codes come from. `codebook` holds K rows: the codes themselves, or what codes are computed from."""

    codebook: Tensor            # [K, width], a parameter where it learns by gradient, else a buffer
    movable = False             # rows are the codes, and updates and restarts may overwrite them
    writable = True             # an initialisation may fill the rows

    @abstractmethod
    def forward(self) -> Tensor:
        """The codes [K, D], differentiable to whatever they are computed from."""

    def fix(self) -> None:
        """No gradient will reach the rows: keep them as a buffer."""
        codebook = self.codebook.detach()
        del self.codebook
        self.register_buffer("codebook", codebook)

    def start(self, rows: Tensor) -> None:
        """Fill the rows. Raises ValueError where there are others of another shape."""
        if rows.shape != self.codebook.shape:
            raise ValueError(f"the initial codes are {' x '.join(map(str, rows.shape))}, this table needs "
                             f"{' x '.join(map(str, self.codebook.shape))}")
        with torch.no_grad():
            self.codebook.copy_(rows)


class Update(nn.Module, ABC):
    """How codes follow the latents that chose them."""

    loss_weights: Mapping[str, float] = {}
    by_gradient = False         # emits a loss that moves the table
    sums = False                # `apply` needs counts and sums per code; the table must be movable

    @abstractmethod
    def losses(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        """Which of mse(z, sg q) and mse(sg z, q) are emitted."""

    def begin(self, codebook: Tensor, *, first_batch: bool) -> None:
        """The rows [K, D] have just been filled, from the first batch or before it."""

    def apply(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Once per step, without gradient: move the rows, given hits [K] and sums [K, D] over all processes."""

    def restarted(self, dead: Tensor, codebook: Tensor) -> None:
        """The rows where dead [K] is true were overwritten."""


class Restart(nn.Module, ABC):
    """What becomes of codes that nothing chooses."""

    active = True               # overwrites rows; the table must be movable
    latents = False             # `apply` needs the latents of some steps

    def looks(self, step: int) -> bool:
        """Whether `apply` needs the latents of this step: they are gathered from all processes only then."""
        return self.latents

    @abstractmethod
    def apply(self, codebook: Tensor, counts: Tensor, latents: Tensor | None, distance: Distance,
              step: int) -> Tensor | None:
        """Once per step, without gradient: overwrite rows of codebook [K, D], given hits [K] and, at steps where it
        `looks`, latents [N, D] over all processes. Returns which rows are new codes, bool [K]; None where rows only drifted or none moved."""


class Gradient(ABC):
    """What the encoder learns through the arg-min."""

    moves_table = False         # its gradient also reaches the codes

    @abstractmethod
    def handed(self, z: Tensor, q: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        """z [N, D], q = table[codes] with the straight-through gradient -> what the decoder gets in training [N, D]."""


class Init(ABC):
    """The first rows of a table."""

    from_latents = False        # drawn from the first training batch

    @abstractmethod
    def draw(self, codebook_size: int, dim: int) -> Tensor:
        """[K, D] float32, before anything was seen."""

    def draw_from(self, latents: Tensor, codebook_size: int) -> Tensor:
        """latents [N, D] of this process -> [K, D], the same on every process."""
        raise NotImplementedError


class Alignment(nn.Module, ABC):
    """A loss that brings the whole codebook and the distribution of latents together."""

    loss_weights: Mapping[str, float] = {}
    moves_table = False
    latents = False             # `after_step` needs the latents of the step

    @abstractmethod
    def forward(self, z: Tensor, table: Tensor, distance: Distance) -> dict[str, Tensor]:
        """z [N, D], table [K, D] -> losses by name, unweighted scalars."""

    def after_step(self, latents: Tensor | None) -> None:
        """Latents [N, D] of the step over all processes."""
