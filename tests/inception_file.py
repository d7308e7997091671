"""A seeded random file of FID's network, in the form of the real one, for tests and side-by-side measurements."""

from __future__ import annotations

import io
from pathlib import Path
from unittest import mock

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.weights import FILES


def write_random_inception(folder: Path) -> Path:
    """Put the file where BENCH_WEIGHTS = folder finds it. Batch norms are random too, or folding them would be idle."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
            network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=nothing)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
        path = folder / FILES["inception"].file
        torch.save(network.state_dict(), path)
    return path


class SmallNetwork(torch.nn.Module):
    """In place of FID's network where the arithmetic around it is tested: the same outputs of any width, at once."""

    def __init__(self, pooled: int = 2048, spatial: int = 2023) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.projections = [torch.randn(48, width, generator=generator) / 4 for width in (pooled, spatial, 1008)]
        self.runs = 0

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.runs += 1
        coarse = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
        return tuple(torch.tanh(coarse @ p) if p.shape[1] != 1008 else 3 * coarse @ p for p in self.projections)
