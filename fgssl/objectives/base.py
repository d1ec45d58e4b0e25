"""The seam between objectives and everything else: two views in, a loss and the feature maps it came from out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.defaults import Draft, Recommended, RunFacts
from fgssl.config.schema import ObjectiveConfig, filled
from fgssl.objectives.relations import Relations

Pooling = Callable[[Tensor], Tensor]  # (N, C, H, W) -> (N, C)


class ObjectiveOutput(NamedTuple):
    """What one step yields. The embedding must be pooled FROM `feature_maps[0]`: GradCAM differentiates by it."""

    loss: Tensor  # scalar, mean over the images of this process
    feature_maps: tuple[Tensor, ...]  # each (N, C, H, W), of the views that the loss has a gradient for, in order
    metrics: dict[str, Tensor]  # detached scalars to log


class Objective(nn.Module):
    """Base class: owns the trained backbone (a stand-in where it is frozen) and its heads; knows no rationale.

    A new objective is a file in `fgssl/objectives/methods/`, its class decorated by `@OBJECTIVES.register("name")`.
    """

    settings: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig  # or one derived from it, with settings of its own
    uses: ClassVar[tuple[str, ...]] = ()  # optional settings of `ObjectiveConfig` that it has; others are refused
    paper: ClassVar[Recommended] = Recommended("sgd", 0.03, 128, 1e-4, 0.0)  # optimiser on trained weights
    step_forwards: ClassVar[int] = 6  # work of a step on an image; a backward pass counts as two forward passes
    arranges: ClassVar[bool] = False  # whether it says in which order an epoch's pictures come
    local_views: ClassVar[int] = 0  # small views of small parts that it learns from unless told otherwise; 0: never
    needs_keys: ClassVar[bool] = False  # whether `picture_loss` takes a sample of keys as negatives
    projector_layers: ClassVar[int] = 2
    projector_norm: ClassVar[tuple[bool, bool]] = (False, False)  # BatchNorm inside it, and after it

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.pool: Pooling | None = None  # of the maps before the projector; None is global average pooling
        self.teacher: Relations | None = None  # where `uses` has one: given before the first step
        self.update_target = True  # whether the next forward moves a momentum encoder: once a step taken in parts
        self.progress = 0.0  # share of the run that is done, for what follows a schedule
        self.projector = self.build_projector(backbone.channels, config)  # (N, C) -> (N, D)
        self.predictor = self.build_predictor(config)  # (N, D) -> (N, D), of the other view's projection

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """Fill in what was left open; a subclass fills in its own before it calls this."""
        draft.derive("objective.projector_hidden", run.channels, "the map's channels")
        draft.derive("objective.projector_dim", 256, "usual")

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """One step on two normalised views (N, 3, S, S) of the images at positions `index` (N,) of the split.

        Where it has `local_views`, those (N, 3, s, s) follow the two.
        """
        raise NotImplementedError

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """A new projector, of a run about to start or of an encoder file about to be read."""
        hidden = [config.projector_hidden or channels] * (cls.projector_layers - 1)
        inside, after = cls.projector_norm
        return build_mlp([channels, *hidden, filled(config.projector_dim)], norm=inside, norm_last=after)

    @classmethod
    def build_predictor(cls, config: ObjectiveConfig) -> nn.Sequential | None:
        """Where `predictor_hidden` is used: linear, BatchNorm, ReLU, linear, from projection to projection."""
        if "predictor_hidden" not in cls.uses:
            return None
        width = filled(config.projector_dim)
        return build_mlp([width, filled(config.predictor_hidden), width], norm=True)

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """The loss that GradCAM explains for single pictures, summed over them: no picture depends on another.

        All l2-normalised: the last head's (N, D), those of mirror images, and (M, D) training keys if `needs_keys`.
        """
        raise NotImplementedError

    def arrange(self, pictures: Tensor, epoch: int) -> Tensor:
        """The positions (M,) of an epoch's pictures, given in random order, in the order of its steps: if `arranges`.

        Asked for when the epoch begins and again where a run is resumed in the middle of it: the same answer then, so
        what decides it is kept in the state, and on every process. Nothing is fetched ahead beyond an epoch's end.
        """
        return pictures

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

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """The backbones as they are for the block: in evaluation they would be compiled once more, for minutes."""
        compiled = [(backbone, backbone._compiled_call_impl) for backbone in self.backbones()]
        self.forget_compiled()
        try:
            yield
        finally:
            for backbone, call in compiled:
                backbone._compiled_call_impl = call

    def restart(self) -> None:
        """Begin anew, except for the weights of backbone and heads, which were just replaced."""

    def chance_level(self) -> float | None:
        """The loss of an encoder that knows nothing, in nats; None where the loss does not tell."""
        return None

    def sample_keys(self, count: int) -> Tensor | None:
        """Up to `count` l2-normalised projections of training images, (M, D), kept with the encoder; None: no need."""
        return None


def build_mlp(widths: list[int], *, norm: bool, norm_last: bool = False) -> nn.Sequential:
    """Linear layers with (BatchNorm and) ReLU between them; `norm_last` is a BatchNorm without weights at the end."""
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inside, outside, bias=not norm), *[nn.BatchNorm1d(outside)] * norm, nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not norm_last))
    return nn.Sequential(*layers, *[nn.BatchNorm1d(widths[-1], affine=False)] * norm_last)


def project(
    feature_map: Tensor, projector: nn.Module, pool: Pooling | None = None, predictor: nn.Module | None = None
) -> Tensor:
    """Pooling (None: global average), projector, predictor if any, l2: (N, C, H, W) -> (N, D) float32."""
    out: Tensor = projector(pool_map(feature_map, pool))
    return functional.normalize((out if predictor is None else predictor(out)).float(), dim=1)


def pool_map(feature_map: Tensor, pool: Pooling | None = None) -> Tensor:
    """Pooling (None: global average): (N, C, H, W) -> (N, C)."""
    return feature_map.mean((2, 3)) if pool is None else pool(feature_map)


def is_distributed() -> bool:
    """Whether there are other processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(tensor: Tensor) -> Tensor:
    """A (N, ...) tensor of every process, without gradient: (world * N, ...)."""
    if not is_distributed():
        return tensor
    shares = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, tensor.detach().contiguous())
    return _interleaved(shares)


def process_mean(tensor: Tensor) -> Tensor:
    """The mean over the processes."""
    return gather(tensor[None]).mean(0) if is_distributed() else tensor


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`, with the gradient of every process's loss, summed: averaged, it is that of their mean loss."""
    if not is_distributed():
        return tensor
    from torch.distributed.nn.functional import all_gather  # not in builds of torch without processes

    return _interleaved(all_gather(tensor.contiguous()))  # type: ignore[no-untyped-call]


def _interleaved(shares: Sequence[Tensor]) -> Tensor:
    """Processes take every world-th image (`StepSampler`)."""
    return torch.stack(list(shares), 1).flatten(0, 1)
