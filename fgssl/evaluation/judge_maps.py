"""The maps of an encoder judged as explanations, beside maps that know nothing: one row a map."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgssl.data.cache.pixels import open_pixels
from fgssl.data.images import ImageSet, Subset
from fgssl.encoder import Encoder, evaluated
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.controls import random_window, seen_masks
from fgssl.evaluation.embed import image_batches, reject_unreadable
from fgssl.evaluation.map_scores import (
    agreement,
    energy_inside,
    entropy_relative_to_uniform,
    pointing_hit,
    similarity_curves,
)
from fgssl.evaluation.maps import MapOf, control_maps, own_maps
from fgssl.evaluation.subject import Subject, open_split
from fgssl.rationale import cut_windows

CROP = 0.8  # side of the crop that a map has to be steady under, of the view's
MEANINGS = {
    "object_ratio": "energy inside the object's mask, relative to a flat map's (Score-CAM's proportion)",
    "object_hit": "share of pictures whose hottest place is in the object's mask (pointing game)",
    "parts_ratio": "as object_ratio, of the parts that tell the class",
    "parts_hit": "as object_hit, of the parts that tell the class",
    "deletion": "area under the similarity of the embedding as the hottest places are blurred: low is good",
    "insertion": "area under it as they come back into a blurred picture: high is good",
    "flip": "correlation with the map of the mirrored picture: 1 is steady",
    "crop": "correlation with the map of a crop of 0.8 of the side: 1 is steady",
    "shuffled": "correlation with the map of shuffled weights: near 0 is good, 1 owes nothing to what was learned",
    "entropy": "of the map, relative to a flat one: 1 says nothing",
}


class MapTable(NamedTuple):
    """Rows by map, and what they were measured on."""

    rows: list[dict[str, Any]]  # "map", then what of `MEANINGS` is known
    data: str
    images: int
    masks: int  # images whose object somebody has marked


def judge_maps(subject: Subject, *, split: str | None, count: int, seed: int = 0) -> MapTable:
    """Score every map of the encoder, and controls, on `count` pictures spread evenly over a split (default: test).

    Raises FgsslError where there is no such split or too little of it can be read.
    """
    if count < 1:
        raise SettingError(f"--count is {count}", "it must be at least 1")
    images, encoder = open_split(subject.data, split, "test"), subject.encoder
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)).tolist()
    batch, rows = _views(subject, images, chosen)
    with torch.no_grad(), evaluated(encoder):
        shuffled = _shuffled(encoder, seed)
        maps = own_maps(encoder) | control_maps(encoder, batch, seed=seed)
        others = own_maps(shuffled) | control_maps(shuffled, batch, seed=seed)
        drawn = {name: _drawn(encoder, map_of, batch, subject) for name, map_of in maps.items()}
        scores: dict[str, dict[str, Tensor]] = {}
        for done, (name, map_of) in enumerate(maps.items()):
            subject.reporter.progress("scoring maps", done, len(maps))
            found = _steadiness(encoder, map_of, batch, rows, drawn[name], subject)
            found["shuffled"] = agreement(drawn[name], _drawn(shuffled, others[name], batch, subject))
            scores[name] = found | _curves(encoder, batch, drawn[name], subject)
            scores[name]["entropy"] = entropy_relative_to_uniform(drawn[name])
    marked = _mask_scores(encoder, images, rows, drawn)
    table = [
        {"map": name, **marked.get(name, {}), **{key: float(value.mean()) for key, value in scores[name].items()}}
        for name in maps
    ]
    return MapTable(
        [{"map": row["map"], **{key: row[key] for key in MEANINGS if key in row}} for row in table],
        f"{images.source} [{images.split}]", len(rows), sum(images.has_mask(row) for row in rows),
    )  # fmt: skip


def _views(subject: Subject, images: ImageSet, chosen: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Evaluation views (N, 3, S, S) uint8 of the chosen images that can be read, and their rows."""
    part = Subset(images, list(chosen))
    pixels = open_pixels(part, subject.encoder.view(), cache="off")
    batches = list(image_batches(pixels, subject.batch_size))
    faults = [fault.reason for batch in batches for fault in batch.faults]
    reject_unreadable(faults, part)
    rows = [chosen[place] for batch in batches for place in batch.index.tolist()]
    if not rows:
        raise FgsslError(f"{images.source} [{images.split}] has no picture to score maps on", "name another --split")
    return torch.cat([batch.images for batch in batches if len(batch.index)]).to(subject.encoder.device), rows


def _parts(subject: Subject, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(each, subject.batch_size) for each in tensors), strict=True))


def _drawn(encoder: Encoder, map_of: MapOf, images: Tensor, subject: Subject) -> Tensor:
    """The map of each picture, (N, H, W) on the CPU."""
    found = []
    for (part,) in _parts(subject, images):
        feature_map = encoder.backbone(encoder.normalize(part))
        found.append(map_of(feature_map, part).detach().float().cpu())
    return torch.cat(found)


def _steadiness(
    encoder: Encoder, map_of: MapOf, images: Tensor, rows: Sequence[int], drawn: Tensor, subject: Subject
) -> dict[str, Tensor]:
    """Agreement with the maps of the mirrored picture and of a crop, each brought back onto the picture."""
    mirrored = _drawn(encoder, map_of, images.flip(-1), subject).flip(-1)
    windows = torch.stack([random_window(row, CROP) for row in rows])
    centres, sides = windows[:, :2], windows[:, 2]
    device = images.device
    crops = cut_windows(images, centres.to(device), images.shape[-1], sides=sides.to(device))
    of_crops = _drawn(encoder, map_of, crops, subject)
    # the part of the picture's own map that the crop shows, at as many places
    own = cut_windows(drawn[:, None], centres, of_crops.shape[-1], sides=sides)[:, 0]
    return {"flip": agreement(drawn, mirrored), "crop": agreement(own, of_crops)}


def _curves(encoder: Encoder, images: Tensor, drawn: Tensor, subject: Subject) -> dict[str, Tensor]:
    found = []
    for part, maps in _parts(subject, images, drawn.to(images.device)):
        whole = encoder(part, "gap")

        def similarity(seen: Tensor, whole: Tensor = whole) -> Tensor:
            features: Tensor = encoder(seen, "gap")
            return (features * whole).sum(1)

        found.append(similarity_curves(similarity, part, maps))
    return {name: torch.cat([getattr(each, name) for each in found]).cpu() for name in ("deletion", "insertion")}


def _shuffled(encoder: Encoder, seed: int) -> Encoder:
    """A copy whose weights are the same numbers at other places (after Adebayo et al. 2018, section 3)."""
    other, generator = copy.deepcopy(encoder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.parameters():
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return other.eval()


def _mask_scores(
    encoder: Encoder, images: ImageSet, rows: Sequence[int], drawn: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Means over the pictures whose objects are marked and in sight, by map; relative to the uniform map."""
    view, found = encoder.view(), dict[str, dict[str, list[list[float]]]]()
    for place, row in enumerate(rows):
        masks = images.masks(row)
        for layer, mask in zip(("object", "parts"), () if masks is None else seen_masks(masks, view), strict=False):
            if not mask.any():
                continue
            inside = torch.from_numpy(mask)
            for name, maps in drawn.items():
                scores = [float(score(maps[place], inside)) for score in (energy_inside, pointing_hit)]
                found.setdefault(name, {}).setdefault(layer, []).append([*scores, float(mask.mean())])
    return {name: _ratios(layers) for name, layers in found.items()}


def _ratios(layers: dict[str, list[list[float]]]) -> dict[str, float]:
    told: dict[str, float] = {}
    for layer, scores in layers.items():
        energy, hits, area = np.mean(scores, axis=0)
        told |= {f"{layer}_ratio": float(energy / area), f"{layer}_hit": float(hits)}
    return told
