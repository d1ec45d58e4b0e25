"""Views on the CPU: one crop and resize a view by torch's uint8 kernel, then the colours of a few views at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgssl.views.colour import LEAST_SIGMA, blur_radius, blurred, jitter, luminance, solarized
from fgssl.views.draw import Views

CHUNK_BYTES = 1 << 20  # of floats worked on at a time: they stay in a core's cache


def make_views(
    pictures: Sequence[NDArray[np.uint8]], views: Views, size: int, *, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """Make one view of each picture.

    Args:
        pictures: M of (H, W, 3), for instance slices of the decoded cache; only the crops are read.
        views: What to do with each.
        size: Side of the views in pixels.
        dtype: uint8, or float32 for the same levels where they are not sent anywhere (no conversion to and fro).

    Returns:
        (M, 3, S, S) whole levels 0 to 255.
    """
    out = torch.empty(len(pictures), 3, size, size, dtype=dtype)
    crops = _crop_all(pictures, views, size)
    coloured = (views.order >= 0) | views.grayscale | (views.sigma > LEAST_SIGMA) | views.solarize
    for row in np.flatnonzero(~coloured).tolist():
        out[row].copy_(crops[row])
    for rows in _chunks(views.order, np.flatnonzero(coloured), max(1, CHUNK_BYTES // (12 * size * size))):
        levels = torch.empty(len(rows), 3, size, size)
        for place, row in zip(levels, rows.tolist(), strict=True):
            place.copy_(crops[row])
        part = views.take(rows)
        jitter(levels, int(part.order[0]), torch.from_numpy(part.factors))
        for place in range(len(rows)):
            _finish(levels[place : place + 1], part, place)
        for row, view in zip(rows.tolist(), levels.round_(), strict=True):
            out[row].copy_(view)
    return out


def _crop_all(pictures: Sequence[NDArray[np.uint8]], views: Views, size: int) -> list[Tensor]:
    """Every crop, on as many threads as torch uses here: the kernel works on one and leaves Python's lock meanwhile."""
    arguments = (pictures, views.box, [size] * len(pictures), views.flip.tolist())
    threads = min(torch.get_num_threads(), len(pictures) // 8)
    if threads < 2:
        return list(map(crop_resized, *arguments))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(crop_resized, *arguments))


def crop_resized(picture: NDArray[np.uint8], box: NDArray[np.int64], size: int, flip: bool = False) -> Tensor:
    """A crop of an (H, W, 3) picture resized (bilinear, antialiased): (3, S, S) uint8."""
    top, left, height, width = box.tolist()
    # copied: the cache is read-only
    crop = torch.from_numpy(np.array(picture[top : top + height, left : left + width]))
    planes = crop.permute(2, 0, 1).unsqueeze(0)  # channels_last, which the uint8 kernel is quickest on
    out = torch.nn.functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)[0]
    return out.flip(-1) if flip else out


def _chunks(order: NDArray[np.int64], rows: NDArray[np.int64], length: int) -> Iterator[NDArray[np.int64]]:
    """The rows in groups that share the order of their jitter, at most `length` in each."""
    rows = rows[np.argsort(order[rows], kind="stable")]
    for group in np.split(rows, np.flatnonzero(np.diff(order[rows])) + 1):
        for start in range(0, len(group), length):
            yield group[start : start + length]


def _finish(levels: Tensor, views: Views, row: int) -> None:
    """What few views get: (1, 3, S, S) in place."""
    if views.grayscale[row]:
        levels.copy_(luminance(levels))
    sigma = float(views.sigma[row])
    if sigma > LEAST_SIGMA:
        levels.copy_(blurred(levels, torch.tensor([sigma]), blur_radius(sigma, levels.shape[-1])).clamp_(0, 255))
    if views.solarize[row]:
        levels.copy_(solarized(levels))
