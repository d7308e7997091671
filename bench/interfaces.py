"""The contracts a participant fulfils. The harness knows these and no class by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from bench.errors import Incompatible as Incompatible
from bench.types import Batch, QuantizerOutput, Stages, TokenizerOutput, TokenLayout, Update
from bench.types import LatentShape as LatentShape


class Quantizer(nn.Module, ABC):
    """Latents to codes and back. Losses are returned by name and unweighted."""

    loss_weights: Mapping[str, float] = {}      # every loss it emits, with the paper's weight
    layout: TokenLayout                         # set in __init__
    input_dim: int                              # width it wants from the encoder
    output_dim: int                             # width it hands to the decoder
    depends_on_batch: bool = False              # in eval an image's codes change with the other images of its batch
    stages: Stages | None = None                # set in __init__ where `lookup_stages` can take `lookup` apart

    @abstractmethod
    def forward(self, latents: Tensor) -> QuantizerOutput:
        """latents [B, P, input_dim], any float dtype; distances are computed in fp32 whatever it is."""

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B, N, L] -> quantized [B, P, output_dim]; what `forward` hands to the decoder in eval."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def lookup_stages(self, codes: Tensor, chosen: Collection[int]) -> Tensor:
        """`lookup` of these of its `stages` alone, counted from 0; zero stands for the others. All of them: `lookup`."""
        raise Incompatible(f"{type(self).__name__} is not made of levels, scales or groups that can be decoded alone")

    def codebooks(self) -> tuple[Tensor, ...]:
        """Effective table per level, each [K, D]; () where codes are implicit (FSQ, LFQ, KL)."""
        return ()

    def tables(self) -> tuple[nn.Parameter | None, ...]:
        """Learned parameter behind each level's codebook, whose rows are codes; None where none is learned."""
        return (None,) * len(self.layout.vocab_sizes)

    def fixed_codes(self) -> int:
        """How many numbers of the codebooks are in no learned table."""
        return sum(book.numel() for book, table in zip(self.codebooks(), self.tables(), strict=False) if table is None)

    def before_step(self, step: int) -> None:
        """Before the first forward of a step: temperatures and schedules, from a Python int."""

    def after_step(self, step: int) -> None:
        """After the optimizers moved, without gradient: EMA codebooks, restarts.

        In training `forward` only *adds* to step statistics; here they are summed across processes, applied
        once and cleared. So accumulation and processes change nothing.
        """

    def quantize(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stand-alone use: features [B, D, H, W] or [B, P, D] -> (quantized of the same shape, loss, codes).

        `loss` is the sum of the quantizer's losses with their declared weights. While training, call
        `after_step(step)` after the optimizer has stepped.
        """
        grid = features.dim() == 4
        latents = rearrange(features, "b d h w -> b (h w) d") if grid else features
        out = self(latents)
        loss = sum((self.loss_weights[name] * value for name, value in out.losses.items()), latents.new_zeros(()))
        quantized = out.quantized
        if grid:
            quantized = rearrange(quantized, "b (h w) d -> b d h w", h=features.shape[2])
        return quantized, loss, out.codes


class Tokenizer(nn.Module, ABC):
    """A pure map: encode, quantize, decode. It never scores or trains itself."""

    loss_weights: Mapping[str, float] = {}      # losses of its own, beyond the quantizer's
    compiled: ClassVar[tuple[str, ...]] = ("encode", "decode")      # methods that `train.compile` compiles
    quantizer: Quantizer

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> latents [B, P, input_dim]."""

    @abstractmethod
    def decode(self, quantized: Tensor) -> Tensor:
        """quantized [B, P, output_dim] -> reconstruction [B, 3, H, W], not clamped."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight that writes the pixels."""

    @property
    def layout(self) -> TokenLayout:
        return self.quantizer.layout

    def forward(self, images: Tensor) -> TokenizerOutput:
        latents = self.encode(images)
        q = self.quantizer(latents)
        return TokenizerOutput(self.decode(q.quantized), latents, q.quantized, q.codes, q.losses)

    def tokenize(self, images: Tensor) -> Tensor | None:
        """images [B, 3, H, W] in [-1, 1] -> codes [B, N, L]."""
        return self.quantizer(self.encode(images)).codes

    def detokenize(self, codes: Tensor) -> Tensor:
        """codes [B, N, L] -> reconstruction [B, 3, H, W]."""
        return self.decode(self.quantizer.lookup(codes))

    def before_step(self, step: int) -> None:
        self.quantizer.before_step(step)

    def after_step(self, step: int) -> None:
        self.quantizer.after_step(step)


class Loss(nn.Module, ABC):
    """One named summand of an objective. May own a trained head."""

    def begin(self, model: Tokenizer) -> None:
        """Once, after construction: a head whose shape depends on the tokenizer is built here."""

    @abstractmethod
    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        """A scalar, unweighted."""


class Discriminator(nn.Module, ABC):
    """Tells images from reconstructions. Its constructor gets the side of the images, in pixels."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> logits [B, ...], larger for real ones."""


class Objective(nn.Module, ABC):
    """A training recipe: who learns, from which losses, in which order.

    Never `yield` inside a `with` block, and never step an optimizer inside `updates`.
    """

    def begin(self, image_size: int) -> None:
        """Once, after construction: networks whose shape depends on the images are built here."""

    @abstractmethod
    def players(self, model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named learnable parameters of each player; disjoint."""

    @abstractmethod
    def updates(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Update]: ...

    @abstractmethod
    def terms(self, batch: Batch, output: TokenizerOutput) -> dict[str, Tensor]:
        """Every loss of one output by name, unweighted scalars; for validation, where nobody moves."""

    @abstractmethod
    def loss_names(self, model: nn.Module) -> tuple[set[str], set[str]]:
        """(names that may be weighted, names that are weighted); `bench check` compares them."""

    def after_step(self, step: int) -> None: ...


class Monitor(ABC):
    """Looks inside while the model trains and changes nothing: with and without it the weights are bit-equal.

    Tensors stay on the device; the trainer reads all scalars in one transfer.
    """

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Once, before the first step: allocate, so that no step does."""

    def observe(self, output: TokenizerOutput, step: int) -> None:
        """Every micro-batch, after its backward."""

    def observe_gradients(self, tokenizer: Tokenizer, step: int) -> None:
        """On watched steps: gradients are averaged over processes, not yet clipped, nobody has moved."""

    @abstractmethod
    def scalars(self) -> dict[str, Tensor]:
        """Zero-dimensional, on the device; called on logged steps. The same names every time."""

    def arrays(self) -> dict[str, Tensor]:
        """On watched steps, what figures need per code; written to arrays/<step>.npz of the run."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Called on every process, and what the main one returns is loaded by all: what each of them has seen of its
        own is brought together here."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Metric(ABC):
    """One measured value, from sums that can be added over batches and processes.

    Its keywords are the protocol's, never the tokenizer's. Class attributes are literals: the report reads
    them from the source without importing torch.
    """

    title: ClassVar[str]                        # column heading: "PSNR"
    unit: ClassVar[str]                         # "dB", "" or "share" (shown as per cent)
    direction: ClassVar[Literal["higher", "lower", "none"]]
    decimals: ClassVar[int] = 4                 # shown; records keep every digit
    needs: ClassVar[tuple[str, ...]] = ()       # names in bench/weights.py; {keyword} stands for a keyword's value
    caveats: ClassVar[tuple[str, ...]] = ()     # sentences: traps, and what it is not comparable with
    originals: ClassVar[tuple[str, ...]] = ()   # names of `sums` that depend on the original images alone

    def begin(self, layout: TokenLayout, images: int, device: torch.device) -> None:
        """Once, before the first batch. `images` is the number in the whole split."""

    def reference(self) -> str | None:
        """After `begin`: what decides the sums named in `originals`, beside the pixels (networks, resizing). With it
        they are computed once for all tokenizers and kept. None: they are not worth keeping."""
        return None

    def take_originals(self, sums: Mapping[str, Tensor] | None) -> None:
        """The sums named in `originals` are known: begin with these (None: another process has them, begin with
        zeros) and do not look at `images` any more."""

    @abstractmethod
    def update(self, images: Tensor, output: TokenizerOutput, indices: Tensor) -> Tensor | None:
        """images and output.reconstruction are [B, 3, H, W] in 0..255, clamped: uint8 where the protocol rounds to 8
        bits, else float32. indices [B] are positions in the split. Returns per-image values, float64 [B], where they
        exist."""

    @abstractmethod
    def sums(self) -> dict[str, Tensor]:
        """Statistics to be added across processes: float64 or int64, or a float32 row an image, zero where it is
        another process's."""

    @abstractmethod
    def compute(self, sums: Mapping[str, Tensor]) -> float: ...

    def details(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """What a reader needs beside the value (a window's fill and ceiling)."""
        return {}
