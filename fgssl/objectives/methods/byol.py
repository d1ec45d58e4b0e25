"""BYOL: predict the other view's projection by a slowly moving average of oneself (Grill et al. 2020).

No negatives: the predictor and the moving target keep the encoder from collapsing. GradCAM is of this loss and the
first view, as in the paper (section 4). A collapsed encoder has a loss of 0, so there is no chance level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.base import ObjectiveOutput, project
from fgssl.objectives.momentum import MomentumObjective
from fgssl.registry import OBJECTIVES


@OBJECTIVES.register("byol")
class BYOL(MomentumObjective):
    """BYOL with projector, predictor and a target whose momentum rises over the run."""

    uses = (*MomentumObjective.uses, "predictor_hidden")
    paper = Recommended("lars", 0.3, 256, 1.5e-6, 0.1)
    step_forwards = 8
    projector_norm = (True, False)
    longest_average, momentum_rises = 250.0, True

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """Widths of the paper for ResNet-50 (2048-4096-256, 256-4096-256), in proportion."""
        draft.derive("objective.projector_hidden", 2 * run.channels, "twice the map's channels")
        draft.derive("objective.predictor_hidden", draft["objective.projector_hidden"], "the projector's")
        super().derive(draft, run)

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
    """Squared distance of unit vectors (N, D), 2 - 2 cos, mean over the images; none through `target` (equation 2)."""
    return 2 - 2 * torch.sum(prediction * target.detach(), 1).mean()
