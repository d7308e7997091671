"""SF-DiVeQ: quantization to a curve through the codes (arXiv:2509.26469)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.distributed import gather
from bench.interfaces import Quantizer
from bench.registry import register
from bench.types import LatentShape, QuantizerOutput, TokenLayout
from implementations.search.initial import initial_codebook
from implementations.search.nearest import nearest_codes
from implementations.search.precision import without_autocast

BLOCK_BYTES = 4 * 2**20
BLOCK_BYTES_CUDA = 128 * 2**20
FEWEST_ROWS = 16            # products of fewer rows may add up in another order


@register("quantizer", "sf_diveq")
class SFDiVeQ(Quantizer):
    """K codes are the corners of a curve; a token names one of the K - 1 segments between consecutive codes.

    Training: each step draws a point p = (1 - l) e_k + l e_{k+1} on every segment, l ~ U(0, 1); a latent takes the
    segment of its nearest point and hands on z + (1 - l) |e_k - z| sg[u_k] + l |e_{k+1} - z| sg[u_{k+1}], u the unit
    vector along e - z + noise. So the one gradient moves latents and both ends, and there is no loss.

    Evaluation: the token is the segment nearest to the latent, by the distance to its nearest point; where that is the
    corner of two segments, the one whose middle is nearer. The decoder gets the segment's middle, the mean of what
    training handed on for it. The authors' evaluation hands on the nearest point itself, which no token of log2(K - 1)
    bits tells (and finds it among the two segments at the nearest code): with it, bits per image would not be those
    of what was decoded.

    codebook_size: K, at least 2. codebook_dim: width of a code; the tokenizer's where it is not given.
    noise_std: of the noise on the direction. The authors' option of this value is named variance, and used so.
    skip_steps: steps at first without quantization (tokens are reported all the same); the authors use 1000.
    average_steps: codes begin as means of consecutive chunks of the latents of so many last steps of these (of all,
        where they are fewer; 0: codes stay as drawn). Each chunk has floor(latents / K), what remains is left out; codes
        for which there is no latent stay as drawn. Batches of these steps are taken to be equally large.
    init: of the codes: `one_sided` U(0, 1/K) as published, else as in `initial_codebook`.
    `codebooks` gives the middles [K - 1, D]. Raises ValueError for values out of range.
    """

    title = "SF-DiVeQ"
    assignment = "none"

    def __init__(
        self,
        latent: LatentShape,
        *,
        codebook_size: int = 1024,
        codebook_dim: int | None = None,
        noise_std: float = 1e-3,
        skip_steps: int = 0,
        average_steps: int = 50,
        init: Literal["one_sided", "uniform", "kaiming", "variance", "normal"] = "one_sided",
    ) -> None:
        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2 for one segment between codes, got {codebook_size}")
        if noise_std < 0:
            raise ValueError(f"noise_std must be at least 0, got {noise_std}")
        if skip_steps < 0 or average_steps < 0:
            raise ValueError(f"skip_steps and average_steps must be at least 0, got {skip_steps} and {average_steps}")
        dim = latent.dim if codebook_dim is None else codebook_dim
        table = initial_codebook(codebook_size, dim, "uniform" if init == "one_sided" else init)
        self.codebook = nn.Parameter(table.abs() if init == "one_sided" else table)     # [K, D]
        self.input_dim = self.output_dim = dim
        self.layout = TokenLayout(latent.positions, (codebook_size - 1,), (latent.grid,) if latent.grid else ())
        self.noise_std, self.skip_steps = noise_std, skip_steps
        self.average_steps = min(average_steps, skip_steps)
        self.step = 0                           # Python numbers: a tensor in an `if` would synchronise
        self.collected = self.chunk = 0         # latents so far, and how many make a code
        if self.average_steps:
            self.register_buffer("chunk_sums", torch.zeros_like(table))
        self._step_latents: list[Tensor] = []

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with without_autocast(latents):
            z = latents.float().flatten(0, 1)                                           # [N, D]
            if not self.training:
                codes = nearest_segments(z, self.codebook)
                q = F.embedding(codes, self._middles())
            elif self.step < self.skip_steps:
                codes, q = nearest_segments(z, self.codebook), z
                if self.step >= self.skip_steps - self.average_steps:
                    self._step_latents.append(z.detach())
            else:
                codes, q = self._on_the_curve(z)
        shape = latents.shape
        return QuantizerOutput(q.view(shape).to(latents.dtype), codes.view(*shape[:2], 1))

    def _on_the_curve(self, z: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.rand(len(self.codebook) - 1, 1, device=z.device)                  # [K-1, 1]
        e = self.codebook.detach()
        codes = nearest_codes(z, torch.lerp(e[:-1], e[1:], share))
        share = share.index_select(0, codes)                                            # [N, 1]
        q = z
        for end, weight in ((codes, 1 - share), (codes + 1, share)):
            error = self.codebook.index_select(0, end) - z
            towards = error.detach()
            if self.noise_std:
                towards = towards + torch.randn(z.shape, device=z.device) * self.noise_std
            q = q + error.norm(dim=1, keepdim=True) * (weight * F.normalize(towards, dim=1))
        return codes, q

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self._middles())

    def codebooks(self) -> tuple[Tensor, ...]:
        return (self._middles(),)

    def _middles(self) -> Tensor:
        return 0.5 * (self.codebook[:-1] + self.codebook[1:])

    def before_step(self, step: int) -> None:
        self.step = step

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self._step_latents:
            self._collect(gather(torch.cat(self._step_latents)))
            self._step_latents.clear()
            if step == self.skip_steps - 1:
                self._start()
        self.step = step + 1

    def _collect(self, z: Tensor) -> None:
        """Latents [N, D] of all processes of one step, to the sums of the chunks that they lie in."""
        if not self.collected:
            self.chunk = max(1, len(z) * self.average_steps // len(self.codebook))
        chunks = torch.arange(self.collected, self.collected + len(z), device=z.device) // self.chunk
        kept = max(0, min(len(z), self.chunk * len(self.codebook) - self.collected))
        self.chunk_sums.index_add_(0, chunks[:kept], z[:kept])
        self.collected += len(z)

    def _start(self) -> None:
        """First codes, from the chunks that are full."""
        full = min(len(self.codebook), self.collected // self.chunk)
        self.codebook[:full] = self.chunk_sums[:full] / self.chunk

    def get_extra_state(self) -> dict[str, Any]:
        return {"step": self.step, "collected": self.collected, "chunk": self.chunk}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.step, self.collected, self.chunk = state["step"], state["collected"], state["chunk"]


@torch.no_grad()
def nearest_segments(latents: Tensor, codebook: Tensor) -> Tensor:
    """latents [N, D], codebook [K, D] -> int64 [N] in 0..K-2: which segment from code k to k + 1 comes nearest.

    With s = e_{k+1} - e_k and t = (z - e_k).s: the squared distance is that to e_k for t <= 0, that to e_{k+1} for
    t >= |s|^2, and |z - e_k|^2 - t^2 / |s|^2 between them. Both segments at a corner read its distance from one place:
    they are equally near to the last bit, and of them the one with the nearer middle is taken (the first, where that
    is equal too). Rows come in blocks: the N x K table does not exist.
    """
    if latents.is_meta:                         # the products that there are, for whoever counts them
        z, e = latents.float(), codebook.float()
        return (torch.mm(z, e[1:].T) + torch.mm(z, (e[1:] - e[:-1]).T)).argmax(1)
    with without_autocast(latents):
        z, e = latents.detach(), codebook.detach().float()
        along = e[1:] - e[:-1]                                                          # [K-1, D]
        segments = e, along, e.square().sum(1), (e[:-1] * along).sum(1), along.square().sum(1)
        rows = max(FEWEST_ROWS, (BLOCK_BYTES_CUDA if z.is_cuda else BLOCK_BYTES) // (4 * len(e)))
        return torch.cat([_nearest_block(block.float(), *segments) for block in z.split(rows)])


def _nearest_block(rows: Tensor, e: Tensor, along: Tensor, squares: Tensor, begins: Tensor, lengths: Tensor) -> Tensor:
    z = F.pad(rows, (0, 0, 0, max(0, FEWEST_ROWS - len(rows))))
    corners = torch.addmm(squares, z, e.T, alpha=-2)                                    # |z - e|^2 - |z|^2 [n, K]
    t = torch.addmm(begins, z, along.T, beta=-1)                                        # [n, K-1]
    distances = corners[:, :-1] - t.square() / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    distances = torch.where(t >= lengths, corners[:, 1:], distances)
    distances = torch.where(t <= 0, corners[:, :-1], distances)
    first = distances.argmin(1, keepdim=True)                                           # [n, 1]
    second = (first + 1).clamp_max(len(along) - 1)
    equal = distances.gather(1, first) == distances.gather(1, second)
    first, second, equal = first[:, 0], second[:, 0], equal[:, 0]
    gap = [(z - (e[k] + 0.5 * along[k])).square().sum(1) for k in (first, second)]
    return torch.where(equal & (gap[1] < gap[0]), second, first)[: len(rows)]
