"""A map of weights over places made sharper, flatter or its own opposite, before it weights a pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from fgssl.config.schema import RationaleConfig


def shape_attention(weights: Tensor, config: RationaleConfig) -> Tensor:
    """Invert, sharpen and mix a map with the uniform one, in this order; the defaults return it as it is.

    Args:
        weights: (N, P) over places, not negative, summing to 1.
        config: `pool_invert` takes the maximum minus the map, `pool_power` a power of it, `pool_floor` the share of
            the uniform map in the result.

    Returns:
        (N, P), not negative, summing to 1; uniform where nothing is left (the opposite of a flat map).
    """
    places = weights.shape[-1]
    if config.pool_invert:
        weights = _distribution(weights.amax(-1, keepdim=True) - weights)
    if config.pool_power != 1:
        # relative to the largest, so that no power underflows everywhere
        weights = _distribution((weights / weights.amax(-1, keepdim=True)).pow(config.pool_power))
    if config.pool_floor > 0:
        weights = (1 - config.pool_floor) * weights + config.pool_floor / places
    return weights


def _distribution(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    # what a flat map leaves is rounding
    return torch.where(total > 1e-6, weights / total.clamp(min=1e-6), torch.full_like(weights, 1 / weights.shape[-1]))
