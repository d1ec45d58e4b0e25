"""MoCo v2: a query against the key of its other view and a queue of older keys (He et al. 2020, Chen et al. 2020).

Two departures. Fine-grained sets are small, so the queue is sized from the data, and keys of the query's own image are
no negatives. From scratch the negatives are the keys of the same step (`objective.batch_negatives`): while weights move
fast, a query tells its positive from older keys by their age alone. On a part of the demo set (1,024 images, 512 steps)
rank-1 of gap pooling was 11.3 and 38.3 with half an epoch of older keys (seeds 1, 2), 37.9 and 53.5 without.

MoCo shuffles images between GPUs, so that a query cannot find its key by the BatchNorm statistics they share; one
process cannot. `objective.key_norm: running` (Cai et al. 2021) uses averaged ones, which leak nothing but lag behind:
on 2,936 photographs (grocery, resnet18, 64 px, 4 epochs, one seed) rank-1 was 26.6 with them, 30.9 with the batch's.
"""

from __future__ import annotations

import math

from torch import Tensor

from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.objectives.base import ObjectiveOutput, gather, project
from fgssl.objectives.momentum import MomentumObjective
from fgssl.objectives.queue import KeyQueue, info_nce, require_batch
from fgssl.registry import OBJECTIVES

LARGEST_QUEUE = 65_536


@OBJECTIVES.register("mocov2")
class MoCo(MomentumObjective, KeyQueue):
    """MoCo v2 with a data-sized ring buffer of keys and a two-layer projector (section 4: 2048-2048-256)."""

    uses = (*MomentumObjective.uses, *KeyQueue.uses, "queue_size", "batch_negatives")
    paper = Recommended("sgd", 0.03, 128, 1e-4, 0.0)
    step_forwards = 4

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """Queue and negatives: from scratch of the same step, as older keys are told by their age."""
        batch = require_batch(draft)
        if draft["objective.batch_negatives"] is False or run.started:
            half = max(batch, min(LARGEST_QUEUE, run.images // 2))
            draft.derive("objective.queue_size", half, "keys of half an epoch, as negatives")
        draft.derive("objective.queue_size", batch, "one batch, from scratch: older keys are told by their age")
        reason = "as published: older keys alone" if run.started else "from scratch older keys are told by their age"
        draft.derive("objective.batch_negatives", not run.started, reason)
        super().derive(draft, run)

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """InfoNCE of view 0 (query) against view 1 (key) and the queue, which takes in the batch's keys."""
        feature_map = self.backbone(views[0])  # (N, C, H, W)
        query = project(feature_map, self.projector, self.pool)  # (N, D)
        self.follow()
        key = self.keys(views[1])  # (N, D)
        negatives, owners = self.queue, self.queue_index
        if not self.config.batch_negatives:
            negatives, owners = negatives.clone(), owners.clone()
        if self.training:
            self._enqueue(gather(key), gather(index))
        own = index[:, None] == owners  # (N, K)
        loss, positive = info_nce(query, key, negatives, own, temperature=self.temperature)
        return ObjectiveOutput(loss, (feature_map,), {"positive_similarity": positive})

    def chance_level(self) -> float:
        """log of the number of candidates, among them the positive, which with batch negatives is in the queue."""
        return math.log(len(self.queue) + (not self.config.batch_negatives))
