"""Two random views of a fixed sample of images, for signals that need no labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fgssl.data.feed.views import Key, ViewDataset

EPOCH = 2**31 - 1  # whose views no run trains on


def view_pairs(views: ViewDataset, count: int) -> Tensor:
    """Two views of up to `count` images spread evenly over a split; unreadable ones are left out.

    Args:
        views: Pixels and the views' distribution; the same one gives the same pairs.
        count: Images to take.

    Returns:
        (2, N, 3, S, S) uint8.
    """
    total = len(views.pixels)
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    readings = [(views.pixels.read(index), Key(EPOCH, index)) for index in chosen.tolist()]
    readable = [(pixels, key) for pixels, key in readings if not isinstance(pixels, str)]
    if not readable:
        return torch.empty(2, 0, 3, views.size, views.size, dtype=torch.uint8)
    return views.make([pixels for pixels, _ in readable], [key for _, key in readable])
