"""Where the objects are, in closed form: the direction that the places of many pictures share (ours for windows).

Places on objects and places on backgrounds differ in the same way from picture to picture, so the first principal
direction of all places' features tells one from the other (deep descriptor transforming, Wei et al., IJCAI 2017). It is
the rationale without a loss: one 1x1 projection, fitted to what a set has in common.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_VARIANCE = 1e-10  # of features of unit length: below it is rounding


class Colocalizer(nn.Module):
    """A map of where objects are, by the direction (C,) of the places' l2-normalised features about their mean (C,)."""

    mean: Tensor
    direction: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("direction", torch.zeros(channels))

    @property
    def finds(self) -> bool:
        """Whether there is a direction: without one it finds nothing, and windows stay in the middle."""
        return bool(self.direction.any())

    def forward(self, feature_map: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H, W) float32, not negative; nothing where no place is of an object."""
        with torch.autocast(feature_map.device.type, enabled=False):
            unit = functional.normalize(feature_map.float(), dim=1)
            along = torch.einsum("nchw,c->nhw", unit, self.direction) - self.mean @ self.direction
        return torch.relu(along)


class PlaceScatter:
    """The scatter of the places of any number of pictures, batch by batch, and the direction that they share."""

    def __init__(self, channels: int) -> None:
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._sum, self._border = torch.zeros(2, channels, dtype=torch.float64)
        self._places = self._borders = 0

    def add(self, feature_map: Tensor) -> None:
        """The places of (N, C, H, W)."""
        unit = functional.normalize(feature_map.float(), dim=1).cpu().double()
        edge = torch.ones(unit.shape[2:], dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        places, border = (of.flatten(2).transpose(1, 2).reshape(-1, unit.shape[1]) for of in (unit, unit[:, :, edge]))
        self._products += places.T @ places
        self._sum, self._border = self._sum + places.sum(0), self._border + border.sum(0)
        self._places, self._borders = self._places + len(places), self._borders + len(border)

    def colocalizer(self) -> Colocalizer | None:
        """Of at least two places that differ; objects are on the side that the pictures' borders are not on."""
        if self._places < 2:
            return None
        mean = self._sum / self._places
        values, vectors = torch.linalg.eigh(self._products / self._places - torch.outer(mean, mean))
        if not values[-1] > LEAST_VARIANCE:
            return None
        direction = vectors[:, -1]
        if (self._border / self._borders - mean) @ direction > 0:
            direction = -direction
        made = Colocalizer(len(mean))
        made.load_state_dict({"mean": mean.float(), "direction": direction.float()})
        return made
