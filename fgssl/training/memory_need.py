"""Which settings take memory by their size alone: known before anything is built, and named where memory runs out.

A lower bound: weights, gradients and one average of the optimiser, and what one step must keep. So whatever is refused
here could not have trained; what passes may still not fit, which the first step finds out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fgssl.backbones import GivenMap
from fgssl.config.schema import PretrainConfig, filled, flatten
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES
from fgssl.rationale import RationaleHead
from fgssl.runtime.machine import free_memory
from fgssl.runtime.memory import is_out_of_memory

COPIES = 3  # of a trained weight
WORTH_NAMING = 0.1  # share of the free memory


def memory_needs(
    config: PretrainConfig, *, channels: int, map_size: tuple[int, int], images: int, world: int = 1
) -> dict[str, float]:
    """Bytes by the setting that decides them.

    Args:
        config: With every derived value filled in.
        channels: Of the backbone's map.
        map_size: Height and width of the map.
        images: In the training split.
        world: Processes that share a batch.
    """
    training, objective, rationale = config.training, config.objective, config.rationale
    batch = filled(training.batch_size) / (world * training.accumulate)
    whole = {key: value for key, value in flatten(objective).items() if isinstance(value, int) and value > 1}
    sizes = {f"objective.{max(whole, key=lambda key: whole[key])}" if whole else "objective.name": 0.0}
    key = next(iter(sizes))
    sizes[key] = _bytes(lambda: OBJECTIVES[objective.name](GivenMap(channels), objective))
    sizes[key] += 4 * batch * (objective.queue_size or 0)  # a similarity for each
    if rationale.enabled:
        maps = 2 * 4 * batch * rationale.projections * math.prod(map_size)
        sizes["rationale.projections"] = maps + _bytes(lambda: RationaleHead(channels, rationale))
    sizes["backbone.image_size"] = 2 * 3 * 4 * batch * float(filled(config.backbone.image_size)) ** 2
    if config.backbone.freeze == "backbone":
        sizes["backbone.cached_views"] = float(config.backbone.cached_views) * images
    return sizes


def _bytes(build: Any) -> float:
    """Of a module that is only planned; infinite where its sizes cannot even be counted."""
    try:
        with torch.device("meta"):
            module: nn.Module = build()
    except Exception as error:  # an objective from elsewhere may not be plannable
        return math.inf if is_out_of_memory(error) else 0.0
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    return COPIES * _size(trained) + _size([*rest, *module.buffers()])


def _size(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def check_memory(needs: Mapping[str, float], values: Mapping[str, Any], device: torch.device) -> None:
    """Raises FgsslError, naming the setting that takes most, where the needs exceed the free memory of the device."""
    free = free_memory(device)
    if free is None or sum(needs.values()) <= free:
        return
    key = max(needs, key=lambda key: needs[key])
    size = f"takes {gigabytes(needs[key])} or more" if math.isfinite(needs[key]) else "takes more than can be counted"
    raise FgsslError(f"{key} {values[key]} {size}, {device} has {gigabytes(free)} free", f"make {key} smaller")


def largest_settings(needs: Mapping[str, float], device: torch.device) -> str:
    """The settings that take a good part of the memory, with their sizes; empty where none does."""
    free = free_memory(device) or 0
    large = [key for key in sorted(needs, key=lambda key: -needs[key]) if needs[key] > WORTH_NAMING * free]
    return ", ".join(f"{key} ({gigabytes(needs[key])})" for key in large)


def gigabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:,.1f} GB"
