"""DINO: say of every view, however small, which prototypes a moving average sees in a whole one (Caron et al. 2021).

Multi-crop: the student sees two whole views and `views.local_count` small ones of small parts, the teacher the whole
ones alone. Centring and sharpening of the teacher's shares of the prototypes keep them from becoming one or all alike.
The centre begins as the first step's mean, not as 0: features of one start are much alike, and all would be drawn to
the same prototype at first.
GradCAM is of this loss and the first whole view.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.config.schema import POSITIVE, SHARE, ObjectiveConfig, Range, filled, knob
from fgssl.objectives.base import ObjectiveOutput, process_mean, project
from fgssl.objectives.momentum import MomentumObjective, update_momentum
from fgssl.registry import OBJECTIVES

MOST_PROTOTYPES = 4096  # the paper's 65,536 are for 1.3 million images
RISE = 0.3  # of the run, in which the teacher's temperature rises: the paper's 30 of 100 epochs


@dataclass(frozen=True)
class DINOConfig(ObjectiveConfig):
    """Settings of this objective alone; None is filled in by `derive`."""

    prototypes: int | None = knob(None, "prototypes (default: as many as images, at most 4,096)", Range(2, 262_144))
    teacher_temperature: float = knob(0.04, "temperature of the teacher's shares when the run begins", POSITIVE)
    teacher_temperature_end: float | None = knob(None, "and from three tenths of the run on (default: alike)", POSITIVE)
    centre_momentum: float = knob(0.9, "momentum of the centre of the teacher's scores", SHARE)
    prototypes_rest: float | None = knob(None, "share of the run before the prototypes learn", SHARE)


@OBJECTIVES.register("dino")
class DINO(MomentumObjective):
    """DINO with a three-layer projector to a bottleneck (appendix C: 2048-2048-2048-256) and unit prototypes."""

    settings = DINOConfig
    uses = (*MomentumObjective.uses, "temperature")
    paper = Recommended("sgd", 0.03, 256, 1e-4, 0.1)  # of the authors' README for ResNet-50
    step_forwards, local_views = 11, 6  # a local view of the usual size costs a fifth of a whole one
    longest_average, momentum_rises = 250.0, True
    projector_layers, needs_keys = 3, True
    centre: Tensor
    score_sum: Tensor
    score_count: Tensor

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """The paper's; prototypes by the number of images."""
        count = max(2, min(MOST_PROTOTYPES, run.images))
        draft.derive("objective.prototypes", count, f"one an image, at most {MOST_PROTOTYPES:,}")
        draft.derive("objective.temperature", 0.1, "paper")
        same = "the authors' advice: raise it (to 0.07) once it works"
        draft.derive("objective.teacher_temperature_end", draft["objective.teacher_temperature"], same)
        epoch = run.images // draft["training.batch_size"] / run.total_steps
        reason = "the first epoch (paper), at most a tenth of the run"
        draft.derive("objective.prototypes_rest", round(min(0.1, epoch), 5), reason)
        super().derive(draft, run)

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__(backbone, config)
        assert isinstance(config, DINOConfig)
        self.own, self.temperature = config, filled(config.temperature)
        count = filled(config.prototypes)
        self.prototypes = nn.Linear(filled(config.projector_dim), count, bias=False)
        self.key_prototypes = copy.deepcopy(self.prototypes).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(count))  # of the teacher's scores
        # of the newest step, whose parts all have the centre that it began with
        self.register_buffer("score_sum", torch.zeros(count))
        self.register_buffer("score_count", torch.zeros(()))

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """As the base class's; biases begin as 0 (authors' code), so that at first the map's scale does not count."""
        projector = super().build_projector(channels, config)
        for name, parameter in projector.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        return projector

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """Cross-entropy of each view to the teacher's shares for the other whole one (Caron et al., equation 3).

        The two whole views may be followed by any number of smaller ones (N, 3, s, s).
        """
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        projections = [project(feature_map, self.projector, self.pool) for feature_map in maps]  # each (N, D)
        if views[2:]:
            local = project(self.backbone(torch.cat(views[2:])), self.projector, self.pool)  # (L * N, D)
            projections += local.chunk(len(views) - 2)
        self.follow()
        weight = self.prototypes.weight
        # a gradient of zeros, as several processes expect one of every weight
        resting = self.progress < filled(self.own.prototypes_rest)
        scores = [prototype_scores(p, weight.detach() + 0 * weight if resting else weight) for p in projections]
        with torch.no_grad():
            targets = [prototype_scores(self.keys(view), self.key_prototypes.weight) for view in views[:2]]
            mean = process_mean(torch.stack(targets).mean((0, 1)))
            centre = torch.where(self.centre.any(), self.centre, mean)
            shares = [torch.softmax((t - centre) / self.teacher_temperature(), 1) for t in targets]
        loss = dino_loss([score / self.temperature for score in scores], shares)
        if self.training:
            self.score_sum += mean
            self.score_count += 1
        similarity = (projections[0].detach() * projections[1].detach()).sum(1).mean()
        return ObjectiveOutput(loss, maps, {"positive_similarity": similarity})

    @torch.no_grad()
    def follow(self) -> None:
        """Once a step, before its keys: the teacher moves, and the centre, by the step before (equation 4)."""
        super().follow()
        if self.training and self.update_target:
            rate = torch.where(self.centre.any(), 1 - self.own.centre_momentum, 1.0)
            weight = rate * (self.score_count > 0)
            self.centre.lerp_(self.score_sum / self.score_count.clamp(min=1), weight)
            self.score_sum.zero_()
            self.score_count.zero_()

    def _move(self, momentum: float, *, buffers: bool) -> None:
        super()._move(momentum, buffers=buffers)
        update_momentum(self.prototypes, self.key_prototypes, momentum)

    def teacher_temperature(self) -> float:
        """Rises linearly over the first three tenths of the run."""
        first, last = self.own.teacher_temperature, filled(self.own.teacher_temperature_end)
        return first + (last - first) * min(1.0, self.progress / RISE)

    def chance_level(self) -> float:
        """log of the number of prototypes: of a student that gives all the same share."""
        return math.log(len(self.centre))

    def sample_keys(self, count: int) -> Tensor:
        """The teacher's unit prototypes, those first that it sees most of in the training images."""
        chosen = self.centre.argsort(descending=True, stable=True)[:count]
        return functional.normalize(self.key_prototypes.weight[chosen].detach(), dim=1)

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """A picture's shares of the prototypes against its mirror image's, sharpened, but not centred: it is alone."""
        assert keys is not None and isinstance(config, DINOConfig)
        shares = torch.softmax(positive @ keys.T / config.teacher_temperature, 1).detach()
        return -(shares * torch.log_softmax(anchor @ keys.T / (config.temperature or 0.1), 1)).sum()


def prototype_scores(projection: Tensor, weight: Tensor) -> Tensor:
    """Cosines of unit projections (N, D) to prototypes (K, D) of any length: (N, K) float32."""
    with torch.autocast(projection.device.type, enabled=False):
        return projection.float() @ functional.normalize(weight.float(), dim=1).T


def dino_loss(logits: list[Tensor], shares: list[Tensor]) -> Tensor:
    """-sum_k share_k log softmax(logits)_k, mean over images and pairs of different views (equation 3), all (N, K).

    `shares` are the teacher's of the first of the views that `logits` are of.
    """
    logs = [torch.log_softmax(scores, 1) for scores in logits]
    pairs = [(t, s) for t in range(len(shares)) for s in range(len(logs)) if t != s]
    return torch.stack([-(shares[t] * logs[s]).sum(1).mean() for t, s in pairs]).mean()
