"""The branch (section 3.2): so small that only what images share fits into it, and its map without a loss (3.3).

With `stages` above 1 it sees the places of finer maps of earlier stages beside those of the last, which are enlarged to
the finest (ours). A projection of features side by side is the sum of one of each, and enlarging commutes with it: the
K maps are enlarged, which are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import RationaleConfig

EPSILON = 1e-12


class RationaleHead(nn.Module):
    """The branch, so small that only what images share fits into it: the maximum of K 1x1 projections, norm, ReLU.

    `channels` are those of the last map and of the finer ones together.
    """

    def __init__(self, channels: int, config: RationaleConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Conv2d(channels, config.projections, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(config.projections) if config.branch_norm == "batch" else nn.Identity()
        if config.combine == "linear":  # softplus of it is 1 / K: begins as the mean
            start = math.log(math.expm1(1 / config.projections))
            self.readout = nn.Parameter(torch.full((config.projections,), start))

    def projections(self, feature_map: Tensor, finer: Sequence[Tensor] = ()) -> Tensor:
        """The K maps: (N, C, H, W) -> (N, K, H, W), not negative; with finer maps beside it as large as the finest."""
        if len(finer) != self.config.stages - 1:
            raise ValueError(f"a branch of {self.config.stages} stages takes as many maps, not {1 + len(finer)}")
        # outside autocast: a 1x1 convolution costs nothing, and small maps need their precision
        with torch.autocast(feature_map.device.type, enabled=False):
            if finer:
                return torch.relu(self.norm(self._joint((feature_map, *finer))))
            return torch.relu(self.norm(self.project(feature_map.float())))

    def _joint(self, maps: Sequence[Tensor]) -> Tensor:
        """The projection of the places of all maps side by side: (N, K, h, w) of the last of them."""
        weights = torch.split(self.project.weight, [each.shape[1] for each in maps], 1)
        parts = [functional.conv2d(each.float(), own) for each, own in zip(maps, weights, strict=True)]
        enlarged = [functional.interpolate(part, maps[-1].shape[2:], mode="bilinear") for part in parts[:-1]]
        return torch.stack([*enlarged, parts[-1]]).sum(0)

    def forward(self, feature_map: Tensor, finer: Sequence[Tensor] = ()) -> Tensor:
        """The branch's map a: (N, C, H, W) -> (N, H, W) float32, not negative; sizes as in `projections`."""
        maps = self.projections(feature_map, finer)
        if self.config.combine == "linear":
            return torch.einsum("nkhw,k->nhw", maps, functional.softplus(self.readout))
        return maps.amax(1)


def attention_map(head: RationaleHead, feature_map: Tensor, finer: Sequence[Tensor] = ()) -> Tensor:
    """The test-time map, per image: (N, C, H, W) -> (N, H, W), not negative, summing to 1; uniform where it is dead.

    The distribution that was fitted: a softmax where the fit was one over the whole unnormalised map, otherwise the map
    itself, normalised per image (shifted to a least value of 0 where the fit was a divergence). With finer maps beside
    it, of the finest one's size.
    """
    prediction, config = head(feature_map, finer), head.config
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
