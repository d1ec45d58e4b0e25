"""Where archives say that the object and its parts are: boxes, points and segmentations, image by image."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgssl.data.decoding import upright_turn
from fgssl.data.images import Masks

Bools = NDArray[np.bool_]

PART_RADIUS = 0.05  # of the longer side of the box: as near as counts as found in PCK@0.05 (Yang and Ramanan 2013)


class Regions(NamedTuple):
    """What an archive draws over the images of a split; coordinates in pixels of the stored picture."""

    boxes: NDArray[np.float32] | None = None  # (N, 4) left, top, right, bottom; NaN without
    parts: NDArray[np.float32] | None = None  # (N, P, 2) x and y of P points; NaN where not visible
    segmentations: Sequence[str] = ()  # (N,) pictures of where the object is, paths relative to the archive's folder
    inside: Callable[[NDArray[np.uint8]], Bools] | None = None  # which pixels of one (H, W) or (H, W, 3) are the object


NO_REGIONS = Regions()


def draw_masks(regions: Regions, index: int, *, picture: str, folder: str) -> Masks | None:
    """The masks of one image over its upright picture; None where nothing is known of it or it cannot be read.

    The object is its segmentation where that file is there, else its box; the parts are discs around the visible ones.
    """
    try:
        with Image.open(picture) as stored:
            size, turn = stored.size, upright_turn(stored)
        drawn = _segmentation(regions, index, folder)
    except (OSError, ValueError, SyntaxError):
        return None
    box = _box(regions, index)
    if drawn is None and box is not None:
        drawn = _filled(size, box)
    points = None if regions.parts is None else _discs(size, regions.parts[index], box)
    if drawn is None:
        return None
    return Masks(_turned(drawn, turn), None if points is None else _turned(points, turn))


def bright(values: NDArray[np.uint8]) -> Bools:
    """Grey of more than half: the share of annotators, as CUB's."""
    grey = values if values.ndim == 2 else values[..., 0]
    return np.asarray(grey > 127)


def _turned(mask: Bools, turn: Image.Transpose | None) -> Bools:
    return mask if turn is None else np.asarray(Image.fromarray(mask).transpose(turn))


def _segmentation(regions: Regions, index: int, folder: str) -> Bools | None:
    name = regions.segmentations[index] if regions.segmentations else ""
    path = os.path.join(folder, name)
    if regions.inside is None or not name or not os.path.isfile(path):
        return None
    with Image.open(path) as stored:
        return regions.inside(np.asarray(stored))


def _box(regions: Regions, index: int) -> NDArray[np.float32] | None:
    box = None if regions.boxes is None else regions.boxes[index]
    return None if box is None or bool(np.isnan(box).any()) else box


def _filled(size: tuple[int, int], box: NDArray[np.float32]) -> Bools:
    width, height = size
    left, top = np.floor(box[:2]).clip(0).astype(int)
    right, bottom = np.ceil(box[2:]).clip(0).astype(int)
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def _discs(size: tuple[int, int], points: NDArray[np.float32], box: NDArray[np.float32] | None) -> Bools:
    """(H, W): within the radius of a visible point; without a box the points' own extent tells the object's size."""
    width, height = size
    mask = np.zeros((height, width), bool)
    seen = points[~np.isnan(points).any(1)]
    if not len(seen):
        return mask
    extent = box[2:] - box[:2] if box is not None else np.ptp(seen, axis=0)
    radius = max(1.0, PART_RADIUS * float(extent.max()))
    rows, columns = np.mgrid[:height, :width]
    for x, y in seen:
        mask |= (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    return mask
