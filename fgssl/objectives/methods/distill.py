"""Distillation: a student learns who is like whom in the features of a frozen teacher (SEED, Fang et al. 2021).

Targets are the teacher's whitened features, the mean over an evaluation view and random crops of a picture, so that
both views of the student are held to the same. A linear layer takes the student's features there: what it could do by
hidden layers the features themselves would not have to. GradCAM is of this loss and the first view.
"""

from __future__ import annotations

import math

from torch import Tensor

from fgssl.config.defaults import Draft, Recommended, RunFacts, derive_views
from fgssl.config.schema import ObjectiveConfig, ViewsConfig
from fgssl.errors import FgsslError
from fgssl.objectives.base import Objective, ObjectiveOutput, project
from fgssl.registry import OBJECTIVES


@OBJECTIVES.register("distill")
class Distill(Objective):
    """Cross entropy of similarities to a bank of the teacher's features, at one projection of the student's."""

    uses = ("teacher", "teacher_backbone", "teacher_pool")
    paper = Recommended("adamw", 3e-4, 128, 0.05, 0.0, "usual for distillation")
    projector_layers = 1

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """The plan, which knows the teacher, fills in `projector_dim`."""
        if draft["objective.projector_hidden"] is not None:
            raise FgsslError("objective.projector_hidden is given, but distill's projector is linear", "leave it out")
        derive_views(draft, "geometric", ViewsConfig.crop_min, "the teacher saw no changed colours")
        draft.decide("objective.projector_hidden", None, "the projector is one linear layer")

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """Mean over both views (SEED, equation 4)."""
        assert self.teacher is not None
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        found = self.teacher([project(feature_map, self.projector, self.pool) for feature_map in maps], index)
        return ObjectiveOutput(found.loss, maps, {"positive_similarity": found.similarity})

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """How far a picture's projection is from its mirror image's: a file holds no targets."""
        return -(anchor * positive).sum()

    def chance_level(self) -> float | None:
        """log of the size of the bank: that of a student to whom all pictures are alike."""
        return None if self.teacher is None else math.log(len(self.teacher.bank))
