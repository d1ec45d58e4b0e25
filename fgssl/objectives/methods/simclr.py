"""SimCLR: find an image's other view among all views of the batch (Chen et al. 2020).

Negatives are the other images of the batch, of all processes: a larger batch is a harder task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.base import ObjectiveOutput, gather, gather_with_gradient, project
from fgssl.objectives.queue import KeyQueue, info_nce
from fgssl.registry import OBJECTIVES


@OBJECTIVES.register("simclr")
class SimCLR(KeyQueue):
    """SimCLR with a two-layer projector (section 2.1: 2048-2048-128) without BatchNorm, by which images leak."""

    paper = Recommended("lars", 0.3, 256, 1e-6, 0.1)
    candidates: Tensor

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """The paper's width."""
        draft.derive("objective.projector_dim", 128, "as published")
        super().derive(draft, run)

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__(backbone, config)
        self.register_buffer("candidates", torch.zeros((), dtype=torch.int64))  # of the newest step

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """NT-Xent of both views of this process's images, among both views of all processes' images."""
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        first, second = (project(feature_map, self.projector, self.pool) for feature_map in maps)  # (N, D)
        everything = torch.cat([gather_with_gradient(first), gather_with_gradient(second)])  # (2 * world * N, D)
        owners = gather(index)
        loss, positive = nt_xent(first, second, everything, index, owners.repeat(2), temperature=self.temperature)
        if self.training:
            self._enqueue(gather(first.detach()), owners)
            self.candidates.fill_(len(everything) - 1)
        return ObjectiveOutput(loss, maps, {"positive_similarity": positive})

    def chance_level(self) -> float | None:
        """log of the number of candidates of an anchor, all views of the step but its own; None before any step."""
        candidates = int(self.candidates)
        return math.log(candidates) if candidates else None


def nt_xent(
    first: Tensor, second: Tensor, everything: Tensor, index: Tensor, owners: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """NT-Xent (Chen et al. 2020, equation 1), mean over the 2N anchors, whose images are `index` (N,).

    All l2-normalised; `everything` (M, D) is every view of the step, these included, of the images `owners` (M,).
    """
    own = index[:, None] == owners  # (N, M): the anchor itself, its positive, and the image drawn twice
    there, positive = info_nce(first, second, everything, own, temperature=temperature)
    back, _ = info_nce(second, first, everything, own, temperature=temperature)
    return (there + back) / 2, positive
