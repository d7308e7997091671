"""MaskGIT's tokenizer begins and sees pixels as published (google-research/maskgit), where asked; else as before."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import truncnorm
from tiny import small
from torch import nn

from implementations.maskgit_vqgan import CUT_DEVIATION
from implementations.search.initial import initial_codebook


def test_convolutions_begin_with_variance_one_over_fan_in_within_two_deviations() -> None:
    assert np.isclose(CUT_DEVIATION, truncnorm.std(-2, 2), rtol=1e-12)
    torch.manual_seed(0)
    model = small("tokenizer", "maskgit_vqgan", init="lecun").partial()(16)
    layers = [layer for part in (model.encoder, model.decoder) for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    scaled = torch.cat([(layer.weight * layer.weight[0].numel() ** 0.5).flatten() for layer in layers]).detach().double()
    assert len(scaled) > 1e5 and abs(float(scaled.var()) - 1) < 0.02 and abs(float(scaled.mean())) < 0.01
    assert 1.9 / CUT_DEVIATION < scaled.abs().max() <= 2.001 / CUT_DEVIATION
    assert not any(layer.bias is not None and layer.bias.any() for layer in layers)
    torch.manual_seed(0)
    before = small("tokenizer", "maskgit_vqgan").partial()(16)
    assert any(layer.bias is not None and layer.bias.any() for layer in before.modules() if isinstance(layer, nn.Conv2d))


def test_the_first_codebook_has_the_variance_of_a_layer_that_takes_one_hot_codes() -> None:
    table = initial_codebook(1024, 64, "fan_in_uniform")
    assert abs(float(table.var()) * 1024 - 1) < 0.02 and table.abs().max() <= (3 / 1024) ** 0.5


def test_the_network_sees_pixels_from_zero_to_one() -> None:
    torch.manual_seed(0)
    model = small("tokenizer", "maskgit_vqgan", pixels="unit").partial()(16).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    out = model(images)
    torch.testing.assert_close(seen[0], (images + 1) / 2)
    torch.testing.assert_close(out.reconstruction, 2 * seen[1] - 1)
