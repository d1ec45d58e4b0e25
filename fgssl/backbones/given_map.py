"""What stands in for a backbone that does not learn: its feature maps, made before the training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GivenMap(nn.Module):
    """A backbone whose input is already the feature map; without parameters.

    With it an objective, GradCAM and the rationale's fit run as ever: the map is a leaf that takes a gradient, and what
    lies below it is neither differentiated nor copied for a momentum encoder.

    Args:
        channels: Channels C of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, feature_map: Tensor) -> Tensor:
        """The map (N, C, H, W), asking for a gradient where gradients are on."""
        return feature_map.detach().requires_grad_(torch.is_grad_enabled())
