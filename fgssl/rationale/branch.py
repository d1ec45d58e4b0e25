"""The branch (section 3.2): so small that only what images share fits into it, and its map without a loss (3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import RationaleConfig

EPSILON = 1e-12


class RationaleHead(nn.Module):
    """The branch, so small that only what images share fits into it: the maximum of K 1x1 projections, norm, ReLU."""

    def __init__(self, channels: int, config: RationaleConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Conv2d(channels, config.projections, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(config.projections) if config.branch_norm == "batch" else nn.Identity()
        if config.combine == "linear":  # softplus of it is 1 / K: begins as the mean
            start = math.log(math.expm1(1 / config.projections))
            self.readout = nn.Parameter(torch.full((config.projections,), start))

    def projections(self, feature_map: Tensor) -> Tensor:
        """The K maps: (N, C, H, W) -> (N, K, H, W), not negative."""
        # outside autocast: a 1x1 convolution costs nothing, and small maps need their precision
        with torch.autocast(feature_map.device.type, enabled=False):
            return torch.relu(self.norm(self.project(feature_map.float())))

    def forward(self, feature_map: Tensor) -> Tensor:
        """The branch's map a: (N, C, H, W) -> (N, H, W) float32, not negative."""
        maps = self.projections(feature_map)
        if self.config.combine == "linear":
            return torch.einsum("nkhw,k->nhw", maps, functional.softplus(self.readout))
        return maps.amax(1)


def attention_map(head: RationaleHead, feature_map: Tensor) -> Tensor:
    """The test-time map, per image: (N, C, H, W) -> (N, H, W), not negative, summing to 1; uniform where it is dead.

    The distribution that was fitted: a softmax where the fit was one over the whole unnormalised map, otherwise the map
    itself, normalised per image (shifted to a least value of 0 where the fit was a divergence).
    """
    prediction, config = head(feature_map), head.config
    if config.fit == "kl" and config.normalization == "none" and config.axis == "all":
        return torch.softmax(prediction.flatten(1) / config.prediction_temperature, -1).view_as(prediction)
    own = config.fit == "regression" and config.normalization == "none"
    weights = (prediction if own else normalize_map(prediction, "image")).flatten(1)
    total = weights.sum(-1, keepdim=True)
    uniform = torch.full_like(weights, 1 / weights.shape[-1])
    return torch.where(total > EPSILON, weights / total.clamp(min=EPSILON), uniform).view_as(prediction)


def normalize_map(maps: Tensor, mode: str) -> Tensor:
    """Shift the least value to 0 and scale the largest to 1, over the batch ("batch") or each image ("image")."""
    if mode == "none":
        return maps
    places = (0, 1, 2) if mode == "batch" else (1, 2)
    shifted = maps - maps.amin(places, keepdim=True)
    return shifted / shifted.amax(places, keepdim=True).clamp(min=EPSILON)
