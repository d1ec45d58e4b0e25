"""How well a map explains: what of it lies inside a mask, how steady it is, and what the embedding owes to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.errors import FgsslError

STEPS = 10  # of deletion and insertion
BLUR = 16  # pixels of the picture that become one before they are enlarged again
FLAT = 1e-6  # deviation of a map that says nothing, of its largest value


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


def agreement(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of two maps of each picture, both (N, H, W) -> (N,) float64, from -1 to 1.

    Two flat maps agree (1); a flat one has nothing to do with one that is not (0).
    """
    one, other = (each.detach().double().flatten(1) for each in (maps, others))
    one, other = (each - each.mean(1, keepdim=True) for each in (one, other))
    lengths = [each.norm(dim=1) / max(1.0, each.shape[1] ** 0.5) for each in (one, other)]
    flat = [length < FLAT * each.detach().double().abs().amax((1, 2)).clamp(min=1e-30)
            for length, each in zip(lengths, (maps, others), strict=True)]  # fmt: skip
    found = functional.cosine_similarity(one, other, dim=1)
    return torch.where(flat[0] & flat[1], 1.0, torch.where(flat[0] | flat[1], 0.0, found))


class Curves(NamedTuple):
    """Areas under the similarity to the whole picture, (N,) float64 each, from 0 to 1 for similarities that are."""

    deletion: Tensor  # as the hottest places are blurred: small where the map knows what the embedding depends on
    insertion: Tensor  # as they come back into a blurred picture: large there


def similarity_curves(similarity: Callable[[Tensor], Tensor], images: Tensor, maps: Tensor) -> Curves:
    """Deletion and insertion (Petsiuk et al. 2018, RISE, section 4.3) of an embedding's similarity, tenth by tenth.

    What is away is blurred, not black: a hole is nothing that the encoder has ever seen. Places that are equally hot go
    in an order by chance, the same for all maps.

    Args:
        similarity: Of pictures (N, 3, S, S) float32 to the whole ones: (N,).
        images: The whole ones, (N, 3, S, S).
        maps: (N, H, W), resized bilinearly.
    """
    whole = images.float()
    small = functional.interpolate(whole, scale_factor=1 / BLUR, mode="area")
    blurred = functional.interpolate(small, whole.shape[2:], mode="bilinear")
    rank = _ranks(functional.interpolate(maps.detach().float()[:, None], whole.shape[2:], mode="bilinear")[:, 0])
    found: dict[str, list[Tensor]] = {"deletion": [], "insertion": []}
    for step in range(STEPS + 1):
        hottest = (rank < step / STEPS)[:, None]
        found["deletion"].append(similarity(torch.where(hottest, blurred, whole)))
        found["insertion"].append(similarity(torch.where(hottest, whole, blurred)))
    return Curves(*(torch.trapezoid(torch.stack(each, 1).double(), dx=1 / STEPS, dim=1) for each in found.values()))


def _ranks(maps: Tensor) -> Tensor:
    """(N, S, S) -> the share of places that are hotter, ties in an order by chance."""
    flat = maps.flatten(1)
    chance = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = chance[flat[:, chance].argsort(dim=1, descending=True, stable=True)]  # (N, P) places, hottest first
    places = torch.arange(flat.shape[1], device=flat.device, dtype=flat.dtype).expand_as(flat) / flat.shape[1]
    return torch.empty_like(flat).scatter_(1, order, places).view_as(maps)
