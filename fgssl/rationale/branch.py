"""The branch that learns the common rationale (section 3.2): so small that only what images share fits into it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import RationaleConfig


class RationaleHead(nn.Module):
    """K shared 1x1 projections, norm, ReLU, and the maximum of the K maps (or their learned sum).

    Args:
        channels: C of the feature map.
        config: Of the branch, of its fit, and of the pooling by its map.
    """

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
