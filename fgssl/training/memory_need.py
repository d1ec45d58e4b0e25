"""Which settings take memory by their size alone: known before anything is built, and named where memory runs out.

A lower bound: weights, gradients and one average of the optimiser, and what one step must keep. So whatever is refused
here could not have trained; what passes may still not fit, which the first step finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fgssl.backbones import GivenMap
from fgssl.config.schema import PretrainConfig, filled, flatten
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES
from fgssl.rationale import RationaleHead
from fgssl.runtime.machine import free_memory, is_out_of_memory

COPIES = 3  # of a trained weight
WORTH_NAMING = 0.1  # share of the free memory


def memory_needs(
    config: PretrainConfig, *, channels: int, map_size: tuple[int, int], images: int, world: int = 1
) -> dict[str, float]:
    """Bytes by the setting that decides them, of a config without gaps and a map (channels, *map_size)."""
    objective, rationale = config.objective, config.rationale
    batch = filled(config.training.batch_size) / (world * config.training.accumulate)
    whole = {key: value for key, value in flatten(objective).items() if isinstance(value, int)}
    heads = _bytes(lambda: OBJECTIVES[objective.name](GivenMap(channels), objective))
    similarities = 4 * batch * (objective.queue_size or 0)
    sizes = {f"objective.{max(whole, key=lambda key: whole[key])}": heads + similarities}
    if rationale.enabled:
        maps = 2 * 4 * batch * rationale.projections * math.prod(map_size)
        sizes["rationale.projections"] = maps + _bytes(lambda: RationaleHead(channels, rationale))
    sizes["backbone.image_size"] = 2 * 3 * 4 * batch * float(filled(config.backbone.image_size)) ** 2
    if config.backbone.freeze == "backbone":
        sizes["backbone.cached_views"] = float(config.backbone.cached_views) * images
    return sizes


def _bytes(build: Callable[[], nn.Module]) -> float:
    """Of a module that is only planned; infinite where its sizes cannot even be counted."""
    try:
        with torch.device("meta"):
            module = build()
    except Exception as error:  # an objective from elsewhere may not be plannable
        return math.inf if is_out_of_memory(error) else 0.0
    weights = sum((COPIES if weight.requires_grad else 1) * weight.nbytes for weight in module.parameters())
    return float(weights + sum(buffer.nbytes for buffer in module.buffers()))


def check_memory(needs: Mapping[str, float], values: Mapping[str, Any], device: torch.device) -> None:
    """Raises FgsslError, naming the setting that takes most, where the needs exceed the free memory of the device."""
    free = free_memory(device)
    if sum(needs.values()) <= free:
        return
    key = max(needs, key=lambda key: needs[key])
    size = f"{needs[key] / 1e9:,.1f} GB or more" if math.isfinite(needs[key]) else "more than can be counted"
    problem = f"{key} {values[key]} takes {size}, {device} has {free / 1e9:,.1f} GB free"
    raise FgsslError(problem, f"make {key} smaller")


def largest_settings(needs: Mapping[str, float], device: torch.device) -> str:
    """The settings that take a good part of the memory, with their sizes; empty where none does."""
    large = sorted(needs, key=lambda key: -needs[key])
    least = WORTH_NAMING * free_memory(device)
    return ", ".join(f"{key} ({needs[key] / 1e9:,.1f} GB)" for key in large if needs[key] > least)
