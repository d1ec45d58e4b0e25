"""What is seen in windows, whose places are known or looked for: the passes of `--pool parts` and `zoom:again`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgssl.rationale.peaks import Peaks, blob_windows, highest_place, moved_windows
from fgssl.rationale.windows import is_flat

ROUNDS = 2  # in which a window moves
LARGER = 1.5  # which it may become in one

Look = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, Z, Z) and windows (N, 3)


def part_features(see: Look, images: Tensor, peaks: Peaks) -> Tensor:
    """What `see` makes of each window: (N, K, D), zero where a picture has no such part. A pass a part, of those."""
    first, *others = zip(peaks.windows.unbind(1), peaks.present.unbind(1), strict=True)
    found = [see(images, first[0])]
    for windows, present in others:
        more, rows = torch.zeros_like(found[0]), present.nonzero()[:, 0]
        if len(rows):
            more[rows] = see(images[rows], windows[rows])
        found.append(more)
    return torch.stack(found, 1)


def look_again(attend: Look, images: Tensor, windows: Tensor) -> Tensor:
    """Windows moved and resized by the map (N, H, W) that `attend` has of what they show, ROUNDS times: (N, 3).

    A flat map moves nothing.
    """
    for _ in range(ROUNDS):
        attention = attend(images, windows)
        within = blob_windows(attention, highest_place(attention), most=LARGER)
        windows = torch.where(is_flat(attention)[:, None], windows, moved_windows(windows, within))
    return windows
