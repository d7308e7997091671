"""Every registered tokenizer, small: under bf16 its quantizer computes in fp32."""

from __future__ import annotations

import copy

import pytest
import torch
from test_every_tokenizer import TOKENIZERS, pictures, spec_of
from tiny import same
from torch import Tensor

from bench.build import build_model
from bench.types import QuantizerOutput

every = pytest.mark.parametrize("name", TOKENIZERS)


@every
def test_under_bf16_the_quantizer_computes_in_fp32(name: str) -> None:
    model, _ = build_model(spec_of(name, None))
    model.train()
    # VQ-VAE-2 calls the quantizers of its two grids, one after the other
    used = [model.quantizer] if name != "vqvae2" else list(model.quantizer.parts)
    before = copy.deepcopy(used)
    seen: list[tuple[Tensor, QuantizerOutput]] = []
    for quantizer in used:
        quantizer.register_forward_pre_hook(lambda module, inputs: [None, torch.manual_seed(3)][0])
        quantizer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(pictures()).reconstruction.isfinite().all()
    for quantizer, (latents, out) in zip(before, seen, strict=True):
        torch.manual_seed(3)
        plain = quantizer(latents.float())
        assert not same(out.codes, plain.codes)
        assert out.losses.keys() == plain.losses.keys()
        for key, loss in out.losses.items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, plain.losses[key], rtol=1e-5, atol=1e-7)
