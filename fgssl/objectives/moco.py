"""MoCo v2: a query against the key of its other view and a queue of older keys (He et al. 2020, Chen et al. 2020).

One departure, because fine-grained sets are small: the queue is sized from the data and remembers which image each key
came from. Keys of the query's own image are no negatives (with the usual 65,536 keys on 6,000 images each image is its
own negative ten times).

`objective.batch_negatives` lets a batch's keys join the queue before the loss. In a short run the key encoder moves so
fast that a query can tell its positive from older keys by their age alone; keys of the same step do not have that mark.
It did not help where it was tried (one seed each, 15 epochs of grocery and the demo's run): it is off.

BatchNorm. MoCo shuffles images between GPUs, so that a query cannot find its key by the statistics they share. On one
process shuffling is void. `objective.key_norm: batch` keeps the batch's statistics, over all images of the process, so
that one image moves them little; `running` (Cai et al. 2021, "Exponential Moving Average Normalization") uses averaged
ones, which leak nothing. From scratch the averaged ones lag behind weights that change fast: on 2,936 photographs
(grocery, resnet18, 64 px, 4 epochs, one seed) leave-one-out rank-1 was 26.6 with running and 30.9 with batch, from 18.6
untrained. Hence batch is the default.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.backbone import Backbone, GivenMap
from fgssl.config import ObjectiveConfig
from fgssl.objectives.base import Objective, ObjectiveOutput, gather, is_distributed, project


class MoCo(Objective):
    """MoCo v2 with a data-sized ring buffer of keys.

    Args:
        backbone: The query encoder; a frozen copy becomes the key encoder.
        config: `momentum` and `queue_size` must be filled in.
    """

    queue: Tensor
    queue_index: Tensor
    queue_pointer: Tensor

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__(backbone, config)
        assert config.queue_size is not None and config.momentum is not None and config.temperature is not None
        self.momentum, self.temperature = config.momentum, config.temperature
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        keys = torch.randn(config.queue_size, config.projector_dim)
        self.register_buffer("queue", functional.normalize(keys, dim=1))
        self.register_buffer("queue_index", torch.full((config.queue_size,), -1))  # -1: a random start, of no image
        self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.int64))
        self.train()  # a new module is in train mode, but the key encoder's norms must not be

    def train(self, mode: bool = True) -> MoCo:
        """Key encoder: in train mode as a whole (some models cache weights in eval mode), its norms and dropout not."""
        super().train(mode)
        if mode:
            for module in (*self.key_backbone.modules(), *self.key_projector.modules()):
                is_norm = isinstance(module, _BatchNorm) and self.config.key_norm == "running"
                if is_norm or "drop" in type(module).__name__.lower():
                    module.eval()
        return self

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """InfoNCE of view 0 (query) against view 1 (key) and the queue, which takes in the batch's keys."""
        feature_map = self.backbone(views[0])  # (N, C, H, W)
        query = project(feature_map, self.projector, self.pool)  # (N, D)
        with torch.no_grad():
            if self.training and self.update_target:
                self._update_key_encoder()
            key_map = self.key_backbone(views[1])
        # with `both_maps` the loss has a gradient for the key's map, which ends there: the key encoder learns nothing
        key_map.requires_grad_(self.both_maps)
        with torch.set_grad_enabled(self.both_maps and torch.is_grad_enabled()):
            key = project(key_map, self.key_projector, self.pool)  # (N, D)
        negatives, owners = self.queue, self.queue_index
        if not self.config.batch_negatives:
            negatives, owners = negatives.clone(), owners.clone()
        if self.training:
            self._enqueue(gather(key.detach()), gather(index))
        own = index[:, None] == owners  # (N, K)
        loss, positive = info_nce(query, key, negatives, own, temperature=self.temperature)
        maps = (feature_map, key_map) if self.both_maps else (feature_map,)
        return ObjectiveOutput(loss, maps, {"positive_similarity": positive})

    def chance_level(self) -> float:
        """log of the number of candidates, among them the positive, which with batch negatives is in the queue."""
        return math.log(len(self.queue) + (not self.config.batch_negatives))

    def sample_keys(self, count: int) -> Tensor:
        """The newest keys of the queue that stem from images."""
        order = (self.queue_pointer - 1 - torch.arange(len(self.queue), device=self.queue.device)) % len(self.queue)
        order = order[self.queue_index[order] >= 0]
        return self.queue[order[:count]].detach().clone()

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        update_momentum(self.backbone, self.key_backbone, self.momentum, buffers=self.config.key_norm == "running")
        update_momentum(self.projector, self.key_projector, self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, index: Tensor) -> None:
        """Overwrite the oldest keys, wrapping around; no host synchronisation."""
        size = len(self.queue)
        keys, index = keys[:size], index[:size]
        places = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue.index_copy_(0, places, keys)
        self.queue_index.index_copy_(0, places, index)
        self.queue_pointer.add_(len(keys)).remainder_(size)


def info_nce(
    query: Tensor, key: Tensor, negatives: Tensor, own: Tensor | None = None, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE (MoCo eq. 1): -log softmax of the positive among positive and negatives, mean over the queries.

    Args:
        query: (N, D) l2-normalised.
        key: (N, D) l2-normalised, the positives.
        negatives: (K, D) l2-normalised.
        own: (N, K) bool, negatives that stem from the query's own image and are left out.
        temperature: Divides the similarities.

    Returns:
        The scalar loss and the mean similarity of the positives (detached).
    """
    positive = (query * key).sum(1, keepdim=True)  # (N, 1)
    negative = query @ negatives.T  # (N, K)
    if own is not None:
        negative = negative.masked_fill(own, -torch.inf)
    logits = torch.cat([positive, negative], 1) / temperature
    loss = (torch.logsumexp(logits, 1) - logits[:, 0]).mean()
    return loss, positive.detach().mean()


@torch.no_grad()
def update_momentum(source: nn.Module, target: nn.Module, momentum: float, *, buffers: bool = False) -> None:
    """target <- momentum * target + (1 - momentum) * source, in place, parameters and optionally float buffers."""
    _lerp(list(target.parameters()), list(source.parameters()), 1 - momentum)
    if buffers:
        pairs = [(t, s) for t, s in zip(target.buffers(), source.buffers(), strict=True) if t.is_floating_point()]
        # each process has seen its own images: the average keeps the key encoders of all processes equal
        sources = [_process_mean(s) for _, s in pairs]
        _lerp([t for t, _ in pairs], sources, 1 - momentum)


def _lerp(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    if targets:
        torch._foreach_lerp_(targets, sources, weight)


def _process_mean(buffer: Tensor) -> Tensor:
    if is_distributed():
        buffer = buffer.clone()
        torch.distributed.all_reduce(buffer)
        buffer /= torch.distributed.get_world_size()
    return buffer
