"""Objectives with a second encoder that follows the trained one as a moving average: MoCo's keys, BYOL's targets."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.base import Objective, is_distributed, project


class MomentumObjective(Objective):
    """Base class: backbone and projector with a frozen copy that follows them.

    Args:
        backbone: The trained encoder; a copy becomes the key encoder.
        config: `momentum` and `momentum_end` must be filled in.
    """

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__(backbone, config)
        assert config.momentum is not None
        self.momentum = config.momentum
        self.momentum_end = config.momentum if config.momentum_end is None else config.momentum_end
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.train()  # a new module is in train mode, but the key encoder's norms must not be

    def train(self, mode: bool = True) -> MomentumObjective:
        """Key encoder: in train mode as a whole (some models cache weights in eval mode), its norms and dropout not."""
        super().train(mode)
        if mode:
            for module in (*self.key_backbone.modules(), *self.key_projector.modules()):
                is_norm = isinstance(module, _BatchNorm) and self.config.key_norm == "running"
                if is_norm or "drop" in type(module).__name__.lower():
                    module.eval()
        return self

    def current_momentum(self) -> float:
        """From `momentum` to `momentum_end` by half a cosine over the run (Grill et al. 2020, section 3.2)."""
        left = (1 + math.cos(math.pi * self.progress)) / 2  # 1 at the start, 0 at the end
        return self.momentum_end - (self.momentum_end - self.momentum) * left

    @torch.no_grad()
    def keys(self, views: Tensor) -> Tensor:
        """l2-normalised projections by the key encoder, constants: (N, 3, S, S) -> (N, D)."""
        return project(self.key_backbone(views), self.key_projector, self.pool)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the key encoder towards the trained one: once a training step, before its keys are computed."""
        if self.training and self.update_target:
            momentum, buffers = self.current_momentum(), self.config.key_norm == "running"
            update_momentum(self.backbone, self.key_backbone, momentum, buffers=buffers)
            update_momentum(self.projector, self.key_projector, momentum, buffers=buffers)


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
