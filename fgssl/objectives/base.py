"""The seam between objectives and everything else: two views in, a loss and the feature maps it came from out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbone import Backbone, GivenMap
from fgssl.config import ObjectiveConfig

Pooling = Callable[[Tensor], Tensor]  # (N, C, H, W) -> (N, C)


class ObjectiveOutput(NamedTuple):
    """What one step of an objective yields.

    The embedding must be pooled FROM `feature_maps[0]`: GradCAM differentiates the loss with respect to it.
    """

    loss: Tensor  # scalar, mean over the images of this process
    feature_maps: tuple[
        Tensor, ...
    ]  # each (N, C, H, W), of the views the loss has a gradient for, the first view first
    metrics: dict[str, Tensor]  # detached scalars to log


class Objective(nn.Module):
    """Base class: owns the trained backbone and projector; knows nothing of the rationale.

    Args:
        backbone: The encoder to train, or a stand-in where it is frozen and the views are its feature maps.
        config: Objective settings with every derived value filled in.
    """

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.pool: Pooling | None = None  # of the maps before the projector; None is global average pooling
        self.both_maps = False  # whether feature_maps[1] is wanted even where it trains nothing by itself
        self.update_target = True  # whether the next forward moves a momentum encoder: once a step of several parts
        self.projector = build_projector(backbone.channels, config.projector_hidden, config.projector_dim)

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """One step.

        Args:
            views: Two of (N, 3, S, S), normalised float images.
            index: (N,) int64, the images' positions in the split.
        """
        raise NotImplementedError

    def backbones(self) -> list[Backbone]:
        """Every backbone that takes part in a step."""
        return [module for module in self.modules() if isinstance(module, Backbone)]

    def compile_backbones(self) -> None:
        """torch.compile the backbones; loss, GradCAM and branch stay as they are, and so do the names of weights."""
        for backbone in self.backbones():
            backbone.compile()

    def forget_compiled(self) -> None:
        """Undo `compile_backbones`: what follows a run has other shapes and would be compiled anew."""
        for backbone in self.backbones():
            backbone._compiled_call_impl = None

    def chance_level(self) -> float:
        """The loss of an encoder that knows nothing, in nats."""
        raise NotImplementedError

    def sample_keys(self, count: int) -> Tensor:
        """Up to `count` l2-normalised projections of training images, (M, projector_dim), kept with the encoder."""
        raise NotImplementedError


def build_projector(channels: int, hidden: int | None, width: int) -> nn.Sequential:
    """MoCo v2's projector: two linear layers, no BatchNorm (paper section 4: 2048-2048-256)."""
    hidden = hidden or channels
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, width))


def project(feature_map: Tensor, projector: nn.Module, pool: Pooling | None = None) -> Tensor:
    """Pooling (None: global average), projector, l2: (N, C, H, W) -> (N, D) float32."""
    pooled = feature_map.mean((2, 3)) if pool is None else pool(feature_map)
    return functional.normalize(projector(pooled).float(), dim=1)


def is_distributed() -> bool:
    """Whether there are other processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(tensor: Tensor) -> Tensor:
    """A detached (N, ...) tensor of every process, in the order the images have in the global batch.

    Processes take every world-th image (`StepSampler`), so the stacked shares are interleaved.
    """
    if not is_distributed():
        return tensor
    world = torch.distributed.get_world_size()
    shares = [torch.empty_like(tensor) for _ in range(world)]
    torch.distributed.all_gather(shares, tensor.contiguous())
    return torch.stack(shares, 1).flatten(0, 1)
