"""Objectives with a second encoder that follows the trained one as a moving average: MoCo's keys, BYOL's targets."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.defaults import Draft, RunFacts
from fgssl.config.schema import ObjectiveConfig, filled
from fgssl.objectives.base import Objective, process_mean, project


class MomentumObjective(Objective):
    """Base class: backbone and projector with a frozen copy that follows them."""

    uses: ClassVar[tuple[str, ...]] = ("momentum", "momentum_end", "key_norm")
    longest_average: ClassVar[float] = 1000.0  # steps that the momentum averages over at most, as in the paper
    momentum_rises: ClassVar[bool] = False  # to 1 over the run
    averaged_norms: ClassVar[bool] = False  # whatever `key_norm` says

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """The paper's 0.999 averages over a fifth of its 4,600 steps on CUB; shorter runs need a quicker average."""
        horizon = min(cls.longest_average, max(10.0, run.total_steps / 5))
        reason = f"averages over a fifth of the run, at most {cls.longest_average:,.0f} steps"
        draft.derive("objective.momentum", round(1 - 1 / horizon, 5), reason)
        if cls.momentum_rises:
            draft.derive("objective.momentum_end", 1.0, "as published")
        draft.derive("objective.momentum_end", draft["objective.momentum"], "stays as it begins")
        super().derive(draft, run)

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__(backbone, config)
        self.momentum, self.running = filled(config.momentum), self.averaged_norms or config.key_norm == "running"
        self.momentum_end = self.momentum if config.momentum_end is None else config.momentum_end
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.train()  # a new module is in train mode, but the key encoder's norms must not be

    def train(self, mode: bool = True) -> MomentumObjective:
        """Key encoder: in train mode as a whole (some models cache weights in eval mode), its norms and dropout not."""
        super().train(mode)
        if mode:
            for module in (*self.key_backbone.modules(), *self.key_projector.modules()):
                is_norm = isinstance(module, _BatchNorm) and self.running
                if is_norm or "drop" in type(module).__name__.lower():
                    module.eval()
        return self

    def restart(self) -> None:
        """The key encoder is a copy again."""
        self._move(0.0, buffers=True)

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
            self._move(self.current_momentum(), buffers=self.running)

    def _move(self, momentum: float, *, buffers: bool) -> None:
        update_momentum(self.backbone, self.key_backbone, momentum, buffers=buffers)
        update_momentum(self.projector, self.key_projector, momentum, buffers=buffers)


@torch.no_grad()
def update_momentum(source: nn.Module, target: nn.Module, momentum: float, *, buffers: bool = False) -> None:
    """target <- momentum * target + (1 - momentum) * source, in place, parameters and optionally float buffers."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(target.parameters(), source.parameters(), strict=True))
    if buffers:
        floats = [(t, s) for t, s in zip(target.buffers(), source.buffers(), strict=True) if t.is_floating_point()]
        # each process has seen its own images: the average keeps the key encoders of all processes equal; at once, as
        # every exchange takes its time
        together = process_mean(torch.cat([s.flatten() for _, s in floats])) if floats else torch.empty(0)
        means = torch.split(together, [s.numel() for _, s in floats])
        pairs += [(t, mean.view_as(t)) for (t, _), mean in zip(floats, means, strict=True)]
    if pairs:
        torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1 - momentum)
