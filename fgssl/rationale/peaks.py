"""Several windows of a map, as many and as large as the map says (ours): `--pool parts`, and `zoom:again`.

A peak draws its window to the middle of what lies around it by mean shift (Comaniciu and Meer 2002) under a Gaussian
kernel; the spread that is left of it, with the kernel's own taken out, is the window's size. What a window covers is
gone for the next one. A flat map has no peaks: its only window is that of `--pool zoom`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.rationale.windows import ABOVE_EVEN, LEAST_SHARE, is_flat

MOST_PARTS = 3
KERNEL = 0.2  # standard deviation, of the map's side
SHIFTS = 4
SPREADS = 4.0  # side of a window, in deviations of what it shows: 1.15 of an even square's
LEAST_PEAK = 0.5  # of the highest, for another window


class Peaks(NamedTuple):
    """Windows of each picture, the highest peak's first."""

    windows: Tensor  # (N, K, 3) row and column of the middle, and side, in (0, 1) of the picture
    present: Tensor  # (N, K) boolean; the first always is


def find_peaks(attention: Tensor, usual: Tensor) -> Peaks:
    """Up to MOST_PARTS windows of each map (N, H, W), summing to 1; `usual` (N, 3) is the one window of a flat map."""
    height, width = attention.shape[1:]
    remaining, even = attention.clone(), 1 / (height * width)
    rows, columns = _places(attention)
    highest, flat = attention.flatten(1).amax(1), is_flat(attention)
    windows, present = list[Tensor](), list[Tensor]()
    for number in range(MOST_PARTS):
        value, place = remaining.flatten(1).max(1)
        start = torch.stack([rows[place // width], columns[place % width]], 1)
        found = blob_windows(remaining, start)
        windows.append(torch.where(flat[:, None], usual, found) if number == 0 else found)
        enough = (value >= LEAST_PEAK * highest) & (value >= ABOVE_EVEN * even) & ~flat
        present.append(torch.ones_like(flat) if number == 0 else enough & present[-1])
        row, column, side = windows[-1].unbind(1)
        inside = (rows - row[:, None]).abs()[:, :, None] <= side[:, None, None] / 2
        inside = inside & ((columns - column[:, None]).abs()[:, None, :] <= side[:, None, None] / 2)
        remaining = remaining.masked_fill(inside, 0)
        remaining = remaining.flatten(1).scatter(1, place[:, None], 0).view_as(attention)
    return Peaks(torch.stack(windows, 1), torch.stack(present, 1))


def blob_windows(attention: Tensor, start: Tensor, *, least: float = LEAST_SHARE, most: float = 1.0) -> Tensor:
    """The window (N, 3) of what lies around places (N, 2) of maps (N, H, W), inside the picture; side within bounds."""
    rows, columns = _places(attention)
    centre = start
    for _ in range(SHIFTS + 1):
        near = _near(rows, centre[:, 0])[:, :, None] * _near(columns, centre[:, 1])[:, None, :] * attention
        total = near.sum((1, 2)).clamp(min=1e-30)
        down, across = near.sum(2), near.sum(1)
        moved = torch.stack([(down * rows).sum(1), (across * columns).sum(1)], 1) / total[:, None]
        variance = torch.stack([
            (down * (rows - moved[:, :1]).square()).sum(1), (across * (columns - moved[:, 1:]).square()).sum(1),
        ], 1).amax(1) / total  # fmt: skip
        centre = torch.where(near.sum((1, 2))[:, None] > 1e-30, moved, start)
    # a Gaussian of variance v under the kernel's has 1 / (1 / v + 1 / k)
    bare = variance / (1 - variance / KERNEL**2).clamp(min=0.02)
    side = (SPREADS * bare.sqrt()).clamp(least, most)
    half = (side / 2).clamp(max=0.5)[:, None]
    return torch.cat([torch.minimum(torch.maximum(centre, half), 1 - half), side[:, None]], 1)


def highest_place(attention: Tensor) -> Tensor:
    """(N, H, W) -> (N, 2) row and column, in (0, 1), of the highest place."""
    rows, columns = _places(attention)
    place = attention.flatten(1).argmax(1)
    return torch.stack([rows[place // len(columns)], columns[place % len(columns)]], 1)


def moved_windows(windows: Tensor, within: Tensor) -> Tensor:
    """Windows (N, 3) of the picture, and others within each of them, as windows of the picture inside it: (N, 3)."""
    side = (windows[:, 2] * within[:, 2]).clamp(LEAST_SHARE, 1)
    centre = windows[:, :2] + windows[:, 2:] * (within[:, :2] - 0.5)
    half = (side / 2)[:, None]
    return torch.cat([torch.minimum(torch.maximum(centre, half), 1 - half), side[:, None]], 1)


def _places(attention: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = ((torch.arange(size, device=attention.device) + 0.5) / size for size in attention.shape[1:])
    return rows, columns


def _near(places: Tensor, centre: Tensor) -> Tensor:
    """The kernel around (N,) centres at each place: (N, P)."""
    return torch.exp(-(places - centre[:, None]).square() / (2 * KERNEL**2))
