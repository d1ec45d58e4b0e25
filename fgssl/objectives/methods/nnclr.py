"""NNCLR: the positive of a view is the nearest neighbour of its other view (Dwibedi et al. 2021).

The neighbour is searched in a queue of projections of other pictures, so that what a class shares is drawn together;
negatives are the predictions of the batch's other pictures. As in the paper there is no momentum encoder: it is SimCLR
with a predictor and another positive.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.defaults import Draft, RunFacts
from fgssl.config.schema import ObjectiveConfig, filled
from fgssl.objectives.base import ObjectiveOutput, gather, gather_with_gradient, pool_map
from fgssl.objectives.methods.simclr import SimCLR
from fgssl.objectives.queue import info_nce, require_batch
from fgssl.registry import OBJECTIVES

LARGEST_QUEUE = 98_304  # the paper's


@OBJECTIVES.register("nnclr")
class NNCLR(SimCLR):
    """NNCLR with the paper's projector (three layers, BatchNorm after each) and predictor."""

    uses = (*SimCLR.uses, "queue_size", "predictor_hidden")
    projector_layers, projector_norm = 3, (True, True)

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """Temperature and widths of the paper for ResNet-50 (2048-2048-256, 4096-256), in proportion."""
        batch = require_batch(draft)
        draft.derive("objective.queue_size", max(batch, min(LARGEST_QUEUE, run.images)), "an epoch of keys")
        draft.derive("objective.temperature", 0.1, "paper")
        draft.derive("objective.projector_dim", 256, "paper")
        draft.derive("objective.predictor_hidden", 2 * run.channels, "twice the map's channels")
        super().derive(draft, run)

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """InfoNCE of each view's neighbour and the other view's prediction, among those of all processes' images."""
        assert self.predictor is not None
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        projected = [self.projector(pool_map(feature_map, self.pool)) for feature_map in maps]
        keys = [functional.normalize(own.detach().float(), dim=1) for own in projected]  # 2 of (N, D)
        predicted = [functional.normalize(self.predictor(own).float(), dim=1) for own in projected]
        pictures, losses, similarities = gather(index), list[Tensor](), list[Tensor]()
        for key, prediction in zip(keys, reversed(predicted), strict=True):
            neighbour, owner = nearest_key(key, index, self.queue, self.queue_index)
            # neither the picture itself nor the one that is the positive is a negative
            own = (index[:, None] == pictures) | (owner[:, None] == pictures)  # (N, world * N)
            everything = gather_with_gradient(prediction)
            loss, similarity = info_nce(neighbour, prediction, everything, own, temperature=self.temperature)
            losses.append(loss)
            similarities.append(similarity)
        if self.training:
            self._enqueue(gather(keys[0]), pictures)
            self.candidates.fill_(len(pictures))
        metrics = {"positive_similarity": torch.stack(similarities).mean()}
        return ObjectiveOutput(torch.stack(losses).mean(), maps, metrics)

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """InfoNCE of a picture against the key nearest to its mirror image, with the other keys as negatives."""
        assert keys is not None
        nearest = (positive @ keys.T).argmax(1)  # (N,)
        own = nearest[:, None] == torch.arange(len(keys), device=keys.device)
        loss, _ = info_nce(anchor, keys[nearest], keys, own, temperature=filled(config.temperature))
        return loss * len(anchor)


@torch.no_grad()
def nearest_key(key: Tensor, index: Tensor, queue: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Each key's (N, D) nearest of a queue (K, D) that stems from another picture, and which picture that is, (N,).

    All l2-normalised; `owners` (K,) is negative where a key of the queue stems from none. Where there is no other
    picture's, as in the first step, the key itself.
    """
    others = (owners >= 0) & (owners != index[:, None])  # (N, K)
    best, place = (key @ queue.T).masked_fill(~others, -torch.inf).max(1)
    found = best > -torch.inf
    return torch.where(found[:, None], queue[place], key), torch.where(found, owners[place], index)
