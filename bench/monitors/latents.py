"""A sample of latents, of what replaced them and of the codes, for pictures in two dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.distributed import derived_seed, rank, sum_across, world_size
from bench.interfaces import Monitor, Tokenizer
from bench.monitors.codebook_usage import level_name
from bench.registry import register
from bench.types import TokenizerOutput


@register("monitor", "latents")
class Latents(Monitor):
    """On watched steps at most `n` tokens of the step's first micro-batch, drawn once with a seed of its own.

    Arrays, with m <= n tokens in ascending order of image and position:
    latents [m, D] before quantization and quantized [m, output_dim], float32;
    latent_codes [m, L], int32, where each position has one token (not for multi-scale codes);
    per level with an explicit codebook, `/level<i>` where there are several:
      code_sample [c], int32: at most n of its K codes, drawn once; code_vectors [c, D]: those rows of the codebook;
      token_vectors [m, D]: the row each sampled token chose; only of several levels.
    All of one moment: before the step moves anything. Labels of images are not known here, so nothing is pooled per
    image. Raises ValueError for n below 1.
    """

    def __init__(self, *, n: int = 1024) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.n = n

    def begin(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.device = device
        self.picked: dict[str, Tensor] = {}         # which of how many, by what they are drawn from
        self.codes_of = [self._drawn("codes", k) for k in tokenizer.layout.vocab_sizes]
        self.output: TokenizerOutput | None = None
        self.step = -1
        self.found: dict[str, Tensor] = {}
        self.own: set[str] = set()                  # of those: what each process has some rows of

    def observe(self, output: TokenizerOutput, step: int) -> None:
        """Keeps three tensors of the last step alive, no copies."""
        if step != self.step:
            codes = None if output.codes is None else output.codes.detach()
            empty = output.latents.new_zeros(0)
            self.output = TokenizerOutput(empty, output.latents.detach(), output.quantized.detach(), codes)
            self.step = step

    @torch.no_grad()
    def observe_gradients(self, tokenizer: Tokenizer, step: int) -> None:
        output, self.output = self.output, None
        if output is None:
            return
        size = output.latents.shape[0] * output.latents.shape[1]                        # tokens on this process
        places = self._drawn("tokens", size * world_size()) - rank() * size
        ours = ((places >= 0) & (places < size))[:, None]
        places = places.clamp(0, size - 1)

        def rows(values: Tensor) -> Tensor:
            """Ours [m, ...], zero where another process has them."""
            picked = values.flatten(0, 1)[places]
            return picked.where(ours, torch.zeros_like(picked))

        self.found = {"latents": rows(output.latents).float(), "quantized": rows(output.quantized).float()}
        books = [book.float() for book in tokenizer.quantizer.codebooks()]
        if output.codes is not None and output.codes.shape[1] == output.latents.shape[1]:
            self.found["latent_codes"] = codes = rows(output.codes).int()
            if len(books) > 1:
                vectors = [book[codes[:, i]].where(ours, book.new_zeros(())) for i, book in enumerate(books)]
                self.found |= {level_name("token_vectors", i, len(books)): v for i, v in enumerate(vectors)}
        self.own = set(self.found)
        self.found |= {level_name("code_vectors", i, len(books)): book[self.codes_of[i]] for i, book in enumerate(books)}
        self.found |= {level_name("code_sample", i, len(books)): self.codes_of[i].int() for i in range(len(books))}

    def scalars(self) -> dict[str, Tensor]:
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """Of the last observed step; processes exchange their rows here."""
        return {name: sum_across(rows) if name in self.own else rows for name, rows in self.found.items()}

    def _drawn(self, what: str, count: int) -> Tensor:
        """At most n of range(count), ascending; the same every time, from a random state of its own."""
        key = f"{what}/{count}"
        if key not in self.picked:
            generator = torch.Generator().manual_seed(derived_seed("latents", what, count))
            drawn = torch.randperm(count, generator=generator)[: self.n].sort().values
            self.picked[key] = drawn.to(self.device)
        return self.picked[key]
