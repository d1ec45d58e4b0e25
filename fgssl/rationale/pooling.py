"""The embedding (section 3.3): the places of the feature map, weighted; and the same with earlier stages (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-12
GEM_EXPONENT = 3.0  # of the generalised mean, as in Radenovic et al. 2018


def pool_places(feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """The places of the feature map (N, C, H, W), weighted by (N, H, W), as one feature (N, C) float32 of any length.

    Weights of a finer or coarser map's places are spread over these.
    `pool` is "mean", or generalised mean ("gem"), which takes negative features as 0: for maps that end in a ReLU.
    """
    features = feature_map.float()
    if attention is not None and attention.shape[1:] != feature_map.shape[2:]:
        attention = _spread(attention, feature_map)
    if pool == "mean":
        return features.mean((2, 3)) if attention is None else torch.einsum("nchw,nhw->nc", features, attention)
    flat = features.flatten(2)
    weights = torch.full_like(flat[:, :1], 1 / flat.shape[2]) if attention is None else attention.flatten(1)[:, None]
    # relative to the largest, so that no power overflows; the clamp, as at zero a root has an infinite slope
    peak = flat.detach().amax((1, 2), keepdim=True).clamp(min=EPSILON)
    powered = (weights * (flat / peak).clamp(min=0).pow(GEM_EXPONENT)).sum(2)
    root = torch.where(powered > 0, powered.clamp(min=1e-30).pow(1 / GEM_EXPONENT), 0.0)
    return peak[:, :, 0] * root


def pool_stages(maps: Sequence[Tensor], attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """`pool_places` of the last map, then mean and deviation of each earlier one: (N, C + 2 * their sum) float32."""
    pooled = [pool_places(maps[0], attention, pool=pool)]
    for earlier in maps[1:]:
        weights = None if attention is None else _spread(attention, earlier)
        mean = pool_places(earlier, weights)
        # about the mean: the difference of two squares would lose what small deviations are
        deviation = pool_places((earlier.float() - mean[:, :, None, None]).square(), weights).clamp(min=0).sqrt()
        pooled += [mean, deviation]
    return torch.cat(pooled, 1)


def _spread(attention: Tensor, feature_map: Tensor) -> Tensor:
    """(N, H, W) weights of the places of a map of another size, over the places of this one, summing to 1 again."""
    coarser = attention.shape[1] > feature_map.shape[2]
    mode = "area" if coarser else "bilinear"  # what a place covers together, or between their middles
    spread = functional.interpolate(attention[:, None].float(), feature_map.shape[2:], mode=mode)[:, 0]
    return spread / spread.sum((1, 2), keepdim=True).clamp(min=EPSILON)
