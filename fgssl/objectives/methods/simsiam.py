"""SimSiam: predict the other view's projection by oneself, without gradient through it (Chen and He 2021).

BYOL without the moving average: no negatives, no second encoder. The predictor and the stopped gradient keep the
encoder from collapsing, not always on small sets: watch the effective rank. A collapsed encoder has the best loss, -1;
so there is no chance level. All layers share one learning rate; the authors keep the predictor's constant.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.config.schema import ObjectiveConfig, filled
from fgssl.objectives.base import Objective, ObjectiveOutput, build_mlp, pool_map
from fgssl.registry import OBJECTIVES


@OBJECTIVES.register("simsiam")
class SimSiam(Objective):
    """SimSiam with a three-layer projector and a predictor with a bottleneck."""

    uses = ("predictor_hidden",)
    paper = Recommended("sgd", 0.05, 256, 1e-4, 0.0)

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """Widths of the paper for ResNet-50 (2048-2048-2048, 2048-512-2048), in proportion."""
        draft.derive("objective.projector_dim", run.channels, "the map's channels")
        narrow = max(1, draft["objective.projector_dim"] // 4)
        draft.derive("objective.predictor_hidden", narrow, "a quarter of its input")
        super().derive(draft, run)

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """Three linear layers, BatchNorm after each."""
        hidden = filled(config.projector_hidden)
        return build_mlp([channels, hidden, hidden, filled(config.projector_dim)], norm=True, norm_last=True)

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
