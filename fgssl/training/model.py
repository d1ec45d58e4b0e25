"""The trained module, its optimiser and its schedule: what the loop in `fgssl.training.loop` steps through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgssl.backbones import GivenMap
from fgssl.config.schema import PretrainConfig
from fgssl.encoder import Encoder
from fgssl.errors import TrainingFault
from fgssl.objectives import OBJECTIVES, Objective
from fgssl.rationale import RationaleHead, fit_rationale
from fgssl.training.plan import Plan

FAULT_REMEDY = "states saved before it are kept; lower --lr or use --mixed-precision no, and start again"
KEYS_KEPT = 512  # of the training images, in the encoder file, as GradCAM's negatives


class StepOutput(NamedTuple):
    """Scalars of one step; everything but `total` is detached."""

    total: Tensor
    loss: Tensor
    fit: Tensor
    target_entropy: Tensor
    positive_similarity: Tensor
    features: Tensor  # (N, C) pooled, for their rank and spread


class PretrainModel(nn.Module):
    """Objective and rationale in ONE forward: outside it, distributed gradients would not be synchronised.

    The encoder shares the objective's backbone and projector, and owns the rationale branch and the normalisation.
    """

    def __init__(self, objective: Objective, encoder: Encoder, config: PretrainConfig) -> None:
        super().__init__()
        self.objective, self.encoder, self.config = objective, encoder, config

    @torch.no_grad()
    def feature_maps(self, views: Tensor) -> Tensor:
        """(2, N, 3, S, S) uint8 views to the maps (2, N, C, H, W) float32 of a frozen backbone."""
        return torch.stack([self.encoder.backbone(self.encoder.normalize(view)).float() for view in views])

    def forward(self, views: Tensor, index: Tensor, fit_weight: float) -> StepOutput:
        """One step: views (2, N, 3, S, S) uint8, of a frozen backbone their `feature_maps`; (N,) image positions."""
        frozen = self.encoder.backbone.frozen
        inputs = tuple(views) if frozen else tuple(self.encoder.normalize(view) for view in views)
        output = self.objective(inputs, index)
        total, zero = output.loss, output.loss.detach() * 0
        fit, entropy = zero, zero
        if self.encoder.rationale is not None:
            fitted = fit_rationale(self.encoder.rationale, output.loss, output.feature_maps[0])
            total = total + fit_weight * fitted.loss
            fit, entropy = fitted.loss.detach(), fitted.target_entropy
        similarity = output.metrics.get("positive_similarity", zero)
        features = output.feature_maps[0].detach().float().mean((2, 3))
        return StepOutput(total, output.loss.detach(), fit, entropy, similarity, features)


def mean_output(parts: Sequence[StepOutput]) -> StepOutput:
    """The scalars of a step that was taken in parts, and all of its features."""
    means = [torch.stack(values).mean() for values in zip(*(part[:-1] for part in parts), strict=True)]
    return StepOutput._make([*means, torch.cat([part.features for part in parts])])


def build_model(plan: Plan) -> PretrainModel:
    """Objective, rationale branch and encoder of a plan, on the CPU."""
    config = plan.config
    backbone = GivenMap(plan.backbone.channels) if plan.backbone.frozen else plan.backbone
    objective = OBJECTIVES[config.objective.name](backbone, config.objective)
    head = RationaleHead(plan.backbone.channels, config.rationale) if config.rationale.enabled else None
    encoder = Encoder(plan.backbone, head, projector=objective.projector, predictor=objective.predictor, config=config)
    if head is not None and config.rationale.train_pool == "rationale":
        objective.pool = encoder.objective_pool
    model = PretrainModel(objective, encoder, config)
    if plan.backbone.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def fit_weight(step: int, config: PretrainConfig, *, steps_per_epoch: int) -> float:
    """Weight of the rationale's fit, rising linearly over its warm-up."""
    warmup = config.rationale.warmup_epochs * steps_per_epoch
    return config.rationale.weight * (min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0)


def require_finite(model: nn.Module, step: int) -> None:
    """Raises TrainingFault if `step` left weights that are not finite: its loss, taken before them, does not tell."""
    sums = torch.stack([parameter.detach().float().sum() for parameter in model.parameters()])
    if not torch.isfinite(sums).all():
        raise TrainingFault(f"the weights are not finite after step {step}", FAULT_REMEDY)


class NotFinite(TrainingFault):
    """The loss of a step, counted from 1, is NaN or infinite."""

    def __init__(self, problem: str, remedy: str, *, step: int) -> None:
        super().__init__(problem, remedy)
        self.step = step
