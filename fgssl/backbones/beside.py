"""A last feature map that brings finer ones of earlier stages along, for whoever asks.

Objectives pass the last map on and pool it, knowing of no other; so the finer ones ride on the tensor itself. A map
derived from it (detached, cut) has none until it is given them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shape = tuple[int, ...]


def bring_finer(feature_map: Tensor, finer: Sequence[Tensor]) -> Tensor:
    """The map itself, with finer ones (N, c, h, w) beside it, the nearest stage's first."""
    if finer:
        feature_map._fgssl_finer = tuple(finer)  # type: ignore[attr-defined]
    return feature_map


def finer_maps(feature_map: Tensor) -> tuple[Tensor, ...]:
    """What was brought along, if anything."""
    found: tuple[Tensor, ...] = getattr(feature_map, "_fgssl_finer", ())
    return found


def packed(feature_map: Tensor) -> Tensor:
    """The map (N, C, H, W) as float32; with finer ones beside it all of them in a row, (N, F)."""
    finer = finer_maps(feature_map)
    return torch.cat([each.float().flatten(1) for each in (feature_map, *finer)], 1) if finer else feature_map.float()


def unpacked(row: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """The maps of shapes (C, H, W) in `packed` rows (N, F)."""
    parts = torch.split(row, [math.prod(shape) for shape in shapes], 1)
    return [part.reshape(len(row), *shape) for part, shape in zip(parts, shapes, strict=True)]
