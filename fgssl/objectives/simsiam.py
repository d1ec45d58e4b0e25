"""SimSiam: predict the other view's projection by oneself, without gradient through it (Chen and He 2021).

BYOL without the moving average: no negatives, no second encoder. The predictor and the stopped gradient keep the
encoder from collapsing, not always on small sets: watch the effective rank. A collapsed encoder has the best loss, -1;
so there is no chance level. All layers share one learning rate; the authors keep the predictor's constant.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.base import Objective, ObjectiveOutput, build_mlp, build_two_layers, pool_map


class SimSiam(Objective):
    """SimSiam with a three-layer projector and a predictor with a bottleneck.

    Args:
        backbone: The encoder to train.
        config: Widths must be filled in.
    """

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """Three linear layers, BatchNorm after each (ResNet-50: all 2048 wide)."""
        assert config.projector_hidden is not None and config.projector_dim is not None
        hidden = config.projector_hidden
        return build_mlp([channels, hidden, hidden, config.projector_dim], norm=True, norm_last=True)

    @classmethod
    def build_predictor(cls, config: ObjectiveConfig) -> nn.Sequential:
        """Linear, BatchNorm, ReLU, linear, narrow in the middle (2048-512-2048)."""
        return build_two_layers(config)

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
    """Mean over the images of -cos, in float32 (Chen and He, equation 1).

    Args:
        prediction: (N, D), of any length.
        target: (N, D), of any length; takes no gradient.
    """
    return -functional.cosine_similarity(prediction.float(), target.detach().float(), dim=1).mean()
