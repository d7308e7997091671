"""Squared Euclidean distance (VQ-VAE, arXiv:1711.00937, Eq. 1)."""

from __future__ import annotations

from bench.registry import register
from implementations.codebook.parts import Distance


@register("distance", "l2")
class L2(Distance):
    """k = argmin_j |z - e_j|^2; latents and codes are handed on as they are."""
