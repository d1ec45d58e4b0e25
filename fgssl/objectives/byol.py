"""BYOL: predict the other view's projection by a slowly moving average of oneself (Grill et al. 2020).

No negatives: the predictor and the moving target keep the encoder from collapsing. Each view is predicted from the
other; both predictions count. GradCAM is of this loss and the first view, as in the paper (section 4).

The loss says little of how much was learned: a collapsed encoder has a loss of 0. So there is no chance level; look at
the effective rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.base import ObjectiveOutput, build_mlp, build_two_layers, project
from fgssl.objectives.momentum import MomentumObjective


class BYOL(MomentumObjective):
    """BYOL with projector, predictor and a target whose momentum rises over the run.

    Args:
        backbone: The online encoder; a frozen copy becomes the target.
        config: Widths, `momentum` and `momentum_end` must be filled in.
    """

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """Linear, BatchNorm, ReLU, linear (ResNet-50: 2048-4096-256)."""
        assert config.projector_hidden is not None and config.projector_dim is not None
        return build_mlp([channels, config.projector_hidden, config.projector_dim], norm=True)

    @classmethod
    def build_predictor(cls, config: ObjectiveConfig) -> nn.Sequential:
        """Linear, BatchNorm, ReLU, linear (256-4096-256)."""
        return build_two_layers(config)

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """Prediction of each view's target from the other view, both counted (Grill et al., equation 2)."""
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        first, second = (project(feature_map, self.projector, self.pool, self.predictor) for feature_map in maps)
        self.follow()
        first_target, second_target = (self.keys(view) for view in views[:2])
        loss = prediction_loss(first, second_target) + prediction_loss(second, first_target)
        # the distance of unit vectors is 2 - 2 cos; `loss` is of two pairs
        return ObjectiveOutput(loss, maps, {"positive_similarity": 1 - loss.detach() / 4})

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """How badly a picture predicts its mirror image, whose projection by the online encoder is the positive."""
        return prediction_loss(anchor, positive) * len(anchor)


def prediction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, mean over the images (Grill et al., equation 2).

    Args:
        prediction: (N, D) l2-normalised.
        target: (N, D) l2-normalised; takes no gradient.
    """
    return 2 - 2 * torch.sum(prediction * target.detach(), 1).mean()
