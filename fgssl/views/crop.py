"""Views on the CPU: one after another, crop and resize by torch's uint8 kernel, then the colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgssl.views.draw import Views
from fgssl.views.paint import Painter


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
    painter = Painter(size)
    # on one thread: others would spend more on taking Python's lock in turns than such short operations take
    for row in range(len(pictures)):
        crop = crop_resized(pictures[row], views.box[row], size, bool(views.flip[row]))
        painter.paint(crop.numpy(), views, row, out[row].numpy())
    return out


def crop_resized(picture: NDArray[np.uint8], box: NDArray[np.int64], size: int, flip: bool = False) -> Tensor:
    """A crop of an (H, W, 3) picture resized (bilinear, antialiased): (3, S, S) uint8."""
    top, left, height, width = box.tolist()
    # copied: the cache is read-only
    crop = torch.from_numpy(np.array(picture[top : top + height, left : left + width]))
    planes = crop.permute(2, 0, 1).unsqueeze(0)  # channels_last, which the uint8 kernel is quickest on
    out = torch.nn.functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)[0]
    return out.flip(-1) if flip else out
