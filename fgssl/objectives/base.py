"""The seam between objectives and everything else: two views in, a loss and the feature maps it came from out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.schema import ObjectiveConfig

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
    """Base class: owns the trained backbone and its heads; knows nothing of the rationale.

    Args:
        backbone: The encoder to train, or a stand-in where it is frozen and the views are its feature maps.
        config: Objective settings with every derived value filled in.

    Attributes:
        projector: Pooled map (N, C) to projection (N, D).
        predictor: Projection to a prediction (N, D) of the other view's; None in objectives without one.
        pool: Of the maps before the projector; None is global average pooling.
        update_target: Whether the next forward moves a momentum encoder: once a step that is taken in parts.
        progress: Share of the run that is done, 0 to 1, for what follows a schedule.
        needs_keys: Whether GradCAM of the loss of a single picture needs a sample of keys as negatives.
    """

    needs_keys: ClassVar[bool] = False

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.pool: Pooling | None = None
        self.update_target, self.progress = True, 0.0
        self.projector = self.build_projector(backbone.channels, config)
        self.predictor = self.build_predictor(config)

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """One step.

        Args:
            views: Two of (N, 3, S, S), normalised float images.
            index: (N,) int64, the images' positions in the split.
        """
        raise NotImplementedError

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """A new projector: of a run about to start, or of an encoder file about to be read."""
        raise NotImplementedError

    @classmethod
    def build_predictor(cls, config: ObjectiveConfig) -> nn.Sequential | None:
        """A new predictor, for objectives that have one."""
        return None

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """The loss that GradCAM explains for single pictures, summed over them: no picture depends on another.

        Args:
            anchor: (N, D) l2-normalised outputs of the last head for the pictures.
            positive: (N, D) l2-normalised projections of their mirror images, constants.
            keys: (M, D) l2-normalised projections of training images, where `needs_keys`.
            config: Of the run.
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

    def chance_level(self) -> float | None:
        """The loss of an encoder that knows nothing, in nats; None where the loss does not tell."""
        return None

    def sample_keys(self, count: int) -> Tensor | None:
        """Up to `count` l2-normalised projections of training images, (M, D), kept with the encoder; None: no need."""
        return None


def build_mlp(widths: list[int], *, norm: bool, norm_last: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, (N, widths[0]) -> (N, widths[-1]).

    Args:
        widths: Of the input, the hidden layers and the output.
        norm: BatchNorm before every ReLU.
        norm_last: BatchNorm without weights after the last layer, too.
    """
    layers: list[nn.Module] = []
    for number, (inside, outside) in enumerate(itertools.pairwise(widths), start=1):
        last = number == len(widths) - 1
        normed = norm_last if last else norm
        layers.append(nn.Linear(inside, outside, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(outside, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def build_two_layers(config: ObjectiveConfig) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, linear, from projection to projection: the predictor of BYOL and SimSiam."""
    assert config.predictor_hidden is not None and config.projector_dim is not None
    return build_mlp([config.projector_dim, config.predictor_hidden, config.projector_dim], norm=True)


def pool_map(feature_map: Tensor, pool: Pooling | None = None) -> Tensor:
    """Pooling (None: global average): (N, C, H, W) -> (N, C)."""
    return feature_map.mean((2, 3)) if pool is None else pool(feature_map)


def project(
    feature_map: Tensor, projector: nn.Module, pool: Pooling | None = None, predictor: nn.Module | None = None
) -> Tensor:
    """Pooling (None: global average), projector, predictor if any, l2: (N, C, H, W) -> (N, D) float32."""
    out: Tensor = projector(pool_map(feature_map, pool))
    return functional.normalize((out if predictor is None else predictor(out)).float(), dim=1)


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


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`, with the gradient of every process's loss for this process's share.

    Distributed training averages the gradients of the processes: with this sum below them it is the gradient of the
    mean of their losses, as if one process had computed it.
    """
    if not is_distributed():
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
