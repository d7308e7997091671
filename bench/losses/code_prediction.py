"""Cross-entropy of a decoder's logits against the codes of a frozen tokenizer: the first stage of TiTok."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interfaces import Loss
from bench.pretrained import Frozen, tokenizer
from bench.registry import register
from bench.types import Batch, TokenizerOutput

RANDOM_CODES, RANDOM_WIDTH = 1024, 4


@register("loss", "code_prediction")
class CodePrediction(Loss):
    """Mean over batch and positions of -log softmax(logits)[code], for `logits` [B, K, h, w] of the tokenizer's output and
    the teacher's codes of the same images (arXiv:2406.07550, Section 3.3; ReconstructionLoss_Stage1 of
    bytedance/1d-tokenizer).

    teacher: `maskgit_vqgan`, the published tokenizer of MaskGIT with K = 1,024 and a position for each 16 pixels; `random`
        is a linear map of each patch to 4 numbers and the nearest of 1,024 codes to them, all drawn once and always the same
        ones: they tell its colours roughly and nothing else, and are for tests and for trying a suite out.
    Raises BadInput where the teacher's weights are not on this machine, ValueError for a tokenizer without logits, or with
    others than the teacher's codes need.
    """

    needs = ("{teacher}",)

    def __init__(self, *, teacher: Literal["maskgit_vqgan", "random"] = "maskgit_vqgan") -> None:
        super().__init__()
        on_meta = torch.get_default_device().type == "meta"         # where only shapes are checked
        self.teacher = None if on_meta else RandomCodes() if teacher == "random" else Frozen(tokenizer(teacher, "maskgit"))

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        logits = output.logits
        if logits is None:
            raise ValueError("code_prediction needs a tokenizer whose decoder predicts codes: titok with head: proxy and predicts: true")
        if self.teacher is None:
            return logits.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            wanted = self.codes(batch.images, logits)
        return F.cross_entropy(logits.float().flatten(2), wanted)

    def codes(self, images: Tensor, logits: Tensor) -> Tensor:
        """The teacher's, [B, h * w]."""
        if isinstance(self.teacher, RandomCodes):
            found, known = self.teacher(images, logits.shape[-1]), RANDOM_CODES
        else:
            output = self.teacher(images)
            found, known = output.codes[..., 0], self.teacher.network.layout.vocab_sizes[0]
        if known != logits.shape[1] or found.shape[1] != logits[0, 0].numel():
            raise ValueError(f"the teacher has {known} codes at {found.shape[1]} positions, the tokenizer predicts "
                             f"{logits.shape[1]} at {logits[0, 0].numel()}")
        return found


class RandomCodes(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> codes [B, side * side] of square patches, without weights of its own in a checkpoint.

    Lengths count, not only directions: a patch twice as bright has twice the numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(RANDOM_CODES, RANDOM_WIDTH, generator=_generator(0), device="cpu") / 2
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("offset", table.square().sum(1) / 2, persistent=False)

    def forward(self, images: Tensor, side: int) -> Tensor:
        patch = images.shape[-1] // side
        seen = F.conv2d(images.float(), _kernel(patch, images.device), stride=patch).flatten(2).mT
        return (seen @ self.table.T - self.offset).argmax(2)


@functools.cache
def _kernel(patch: int, device: torch.device) -> Tensor:
    """Drawn and moved to the device once, not at every step."""
    return (torch.randn(RANDOM_WIDTH, 3, patch, patch, generator=_generator(1), device="cpu") / (3**0.5 * patch)).to(device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
