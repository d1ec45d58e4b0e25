"""How well a map points: its flatness, and what of it lies inside a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.errors import FgsslError


def entropy_relative_to_uniform(maps: Tensor) -> Tensor:
    """How flat each map is: the entropy of the map scaled to sum 1, over that of the uniform map.

    (N, H, W), not negative -> (N,) float64, from 0 (one place) to 1 (uniform, blank, or of a single place).
    """
    flat = maps.detach().double().flatten(1)
    if not bool(torch.isfinite(flat).all()) or bool((flat < 0).any()):
        raise FgsslError("a map with negative values, NaN or infinity", "give maps after ReLU or softmax")
    if flat.shape[1] == 1:
        return flat.new_ones(len(flat))
    total = flat.sum(1, keepdim=True)
    share = torch.where(total > 0, flat / total, 1 / flat.shape[1])
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy / math.log(flat.shape[1])


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of each map's energy that lies inside its mask (Wang et al. 2020, Score-CAM, section 4.3).

    The map is resized to the mask bilinearly (pixel centres aligned), and negative values count as zero.

    Args:
        maps: (H, W) or (N, H, W).
        masks: (h, w) or (N, h, w), boolean or 0 and 1.

    Returns:
        () or (N,) float64 from 0 to 1; a blank map points nowhere and scores as the uniform one: the mask's area.
    """
    resized, inside = _on_masks(maps, masks)
    energy = resized.clamp_min(0)
    total = energy.sum(dim=(1, 2))
    share = (energy * inside).sum(dim=(1, 2)) / total
    return torch.where(total > 0, share, inside.mean(dim=(1, 2))).reshape(maps.shape[:-2])


def pointing_hit(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the strongest place of each map lies inside its mask (the pointing game, Zhang et al. 2016).

    As `energy_inside`: 1 inside, 0 outside, between for ties across the border; so a flat map scores the mask's area.
    """
    resized, inside = _on_masks(maps, masks)
    strongest = (resized == resized.amax(dim=(1, 2), keepdim=True)).double()
    return ((strongest * inside).sum(dim=(1, 2)) / strongest.sum(dim=(1, 2))).reshape(maps.shape[:-2])


def _on_masks(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps resized to the masks, and the masks, both (N, h, w) float64."""
    if maps.ndim not in (2, 3) or maps.shape[:-2] != masks.shape[:-2]:
        raise FgsslError(
            f"maps of shape {tuple(maps.shape)} for masks of shape {tuple(masks.shape)}", "give one map a mask"
        )
    if not bool(torch.isfinite(maps).all()):
        raise FgsslError("a map with NaN or infinity", "look at the encoder's precision")
    inside = masks.detach().double().reshape(-1, *masks.shape[-2:])
    stacked = maps.detach().double().reshape(-1, 1, *maps.shape[-2:])
    return functional.interpolate(stacked, inside.shape[-2:], mode="bilinear")[:, 0], inside
