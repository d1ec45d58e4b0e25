"""What of a backbone does not learn: frozen layers, resting BatchNorm, and what stands in for a frozen whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.backbones.module import Backbone
from fgssl.errors import FgsslError

NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class GivenMap(nn.Module):
    """A backbone whose input is already the feature map (N, C, H, W), which takes a gradient; without parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, feature_map: Tensor) -> Tensor:
        """The map, asking for a gradient where gradients are on."""
        return feature_map.detach().requires_grad_(torch.is_grad_enabled())


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that learn, by timm's layer groups: stem, then stages or blocks; empty without groups."""
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        return []
    groups = [names for _, names in sorted(group_parameters(model, matcher(coarse=True)).items())]
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    return [list(names) for names in groups if learning.intersection(names)]


def freeze_backbone(backbone: Backbone, groups: int | None = None) -> None:
    """Stop layers from learning, in place: no gradients, and their BatchNorm and dropout as in evaluation.

    The first so many of `layer_groups`, FgsslError where it has not so many; None for the whole backbone.
    """
    names = [name for name, _ in backbone.model.named_parameters()]
    if groups is not None:
        known = layer_groups(backbone.model)
        if groups >= len(known):  # all of them would be the whole backbone
            remedy = f"use 1 to {len(known) - 1}, or backbone for all" if len(known) > 1 else "use none or backbone"
            raise FgsslError(f"--freeze {groups}: {backbone.name} has {len(known)} layer groups", remedy)
        names = [name for group in known[:groups] for name in group]
    for name in names:
        backbone.model.get_parameter(name).requires_grad_(False)
    backbone.frozen = groups is None
    backbone.resting = frozenset(_resting(backbone.model, set(names)))
    backbone.parameters_trained = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    backbone.train(backbone.training)


def rest_batch_norm(backbone: Backbone) -> None:
    """Keep BatchNorm's running statistics, in place: it normalises by them in training, too; its weights still learn.

    Statistics of small batches of strongly augmented crops are not those of the pictures that trained weights came
    with: they alone ruin the features before a gradient does (docs/trained-weights.md).
    """
    backbone.resting |= {name for name, part in backbone.model.named_modules() if isinstance(part, _BatchNorm)}
    backbone.train(backbone.training)


def _resting(model: nn.Module, frozen: set[str]) -> Iterator[str]:
    """BatchNorm and dropout whose surroundings, the smallest that have parameters, are frozen as a whole."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or "drop" in type(module).__name__.lower():
            place = name
            while place and not any(True for _ in model.get_submodule(place).parameters()):
                place = place.rpartition(".")[0]
            prefix = f"{place}." if place else ""
            inside = [f"{prefix}{key}" for key, _ in model.get_submodule(place).named_parameters()]
            if inside and frozen.issuperset(inside):
                yield name


def norm_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics, on the CPU: what differs between processes that see different images."""
    return {name: value.cpu() for name, value in model.named_buffers() if name.endswith(NORM_BUFFERS)}


@contextlib.contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics as they were before the block: a forward computed again would count its images twice."""
    kept = [(value, value.clone()) for name, value in model.named_buffers() if name.endswith(NORM_BUFFERS)]
    yield
    for value, before in kept:
        value.copy_(before)
