"""SimSiam: predict the other view's projection by oneself, without gradient through it (Chen and He 2021).

The predictor and the stopped gradient keep the encoder from collapsing, not always on small sets: watch the effective
rank. A collapsed encoder has the best loss, -1, so there is no chance level. All layers share one learning rate.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.base import Objective, ObjectiveOutput, pool_map
from fgssl.registry import OBJECTIVES


@OBJECTIVES.register("simsiam")
class SimSiam(Objective):
    """SimSiam with a three-layer projector and a predictor with a bottleneck."""

    uses = ("predictor_hidden",)
    paper = Recommended("sgd", 0.05, 256, 1e-4, 0.0)
    projector_layers, projector_norm = 3, (True, True)

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """Widths of the paper for ResNet-50 (2048-2048-2048, 2048-512-2048), in proportion."""
        draft.derive("objective.projector_dim", run.channels, "the map's channels")
        narrow = max(1, draft["objective.projector_dim"] // 4)
        draft.derive("objective.predictor_hidden", narrow, "a quarter of its input")
        super().derive(draft, run)

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """Mean of both views' negative cosines to the other's projection (Chen and He, equation 2)."""
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        targets = tuple(self.projector(pool_map(feature_map, self.pool)) for feature_map in maps)  # 2 of (N, D)
        assert self.predictor is not None
        first, second = (self.predictor(target) for target in targets)
        loss = (negative_cosine(first, targets[1]) + negative_cosine(second, targets[0])) / 2
        return ObjectiveOutput(loss, maps, {"positive_similarity": -loss.detach()})

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """How badly a picture predicts its mirror image's projection."""
        return negative_cosine(anchor, positive) * len(anchor)


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the images of -cos of (N, D) of any length, in float32; no gradient through `target` (equation 1)."""
    return -functional.cosine_similarity(prediction.float(), target.detach().float(), dim=1).mean()
