"""Pooling by the rationale (section 3.3): the branch's map as weights, the feature map's places as one embedding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.rationale.branch import RationaleHead
from fgssl.rationale.fit import EPSILON, normalize_map

GEM_EXPONENT = 3.0  # of the generalised mean, as in Radenovic et al. 2018


def attention_map(head: RationaleHead, feature_map: Tensor) -> Tensor:
    """The test-time map, per image: (N, C, H, W) -> (N, H, W), not negative, summing to 1.

    The distribution that was fitted: a softmax where the fit was one over the whole unnormalised map, otherwise the map
    itself, normalised per image (shifted to a least value of 0 where the fit was a divergence). A branch that is dead
    on an image gives uniform weights.
    """
    prediction, config = head(feature_map), head.config
    if config.fit == "kl" and config.normalization == "none" and config.axis == "all":
        return torch.softmax(prediction.flatten(1) / config.prediction_temperature, -1).view_as(prediction)
    own = config.fit == "regression" and config.normalization == "none"
    weights = (prediction if own else normalize_map(prediction, "image")).flatten(1)
    total = weights.sum(-1, keepdim=True)
    uniform = torch.full_like(weights, 1 / weights.shape[-1])
    return torch.where(total > EPSILON, weights / total.clamp(min=EPSILON), uniform).view_as(prediction)


def pool_places(feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """The places of the feature map (N, C, H, W) as one feature (N, C) float32 of any length.

    Args:
        feature_map: (N, C, H, W).
        attention: (N, H, W), their weights; None for equal ones.
        pool: "mean", or generalised mean ("gem"), which takes negative features as 0: for maps that end in a ReLU.
    """
    features = feature_map.float()
    if pool == "mean":
        return features.mean((2, 3)) if attention is None else torch.einsum("nchw,nhw->nc", features, attention)
    flat = features.flatten(2)
    weights = torch.full_like(flat[:, :1], 1 / flat.shape[2]) if attention is None else attention.flatten(1)[:, None]
    # relative to the largest, so that no power overflows; the clamp, as at zero a root has an infinite slope
    peak = flat.detach().amax((1, 2), keepdim=True).clamp(min=EPSILON)
    powered = (weights * (flat / peak).clamp(min=0).pow(GEM_EXPONENT)).sum(2)
    root = torch.where(powered > 0, powered.clamp(min=1e-30).pow(1 / GEM_EXPONENT), 0.0)
    return peak[:, :, 0] * root


def attention_pool(feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """`pool_places`, l2-normalised: (N, C) float32 of unit length."""
    return functional.normalize(pool_places(feature_map, attention, pool=pool), dim=1)
