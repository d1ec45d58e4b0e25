"""Where a picture is looked at again, enlarged (ours).

The window of `--pool zoom` has the side of the smallest crop in training. Its middle is the mean place of the map times
a Gaussian around the picture's centre: objects stand there more often than not, and where the map says little, or there
is none, it stays in the middle. Of trained weights it is the window that holds most of the map of `colocalization`. It
is cut between pixels, so that rounding never moves it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.schema import ViewsConfig

CENTRE_SIGMA = 0.25  # of the map's side
PLACES = 40  # a side in which a map is looked through for its fullest window
ABOVE_EVEN = 1.3  # the highest place of a map is so many times its mean: below, the map is flat
LEAST_SHARE = 0.4  # of the view's side: closer looks miss the object more often than they help


def window_share(views: ViewsConfig) -> float:
    """Side of the window relative to that of the view, in (0, 1]: of the smallest crop in training."""
    return max(LEAST_SHARE, math.sqrt(views.crop_min))


def centre_prior(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """A Gaussian around the middle, the same for every picture: (H, W), summing to 1."""
    rows, columns = ((torch.arange(size, device=device) + 0.5) / size - 0.5 for size in (height, width))
    weights = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * CENTRE_SIGMA**2))
    return weights / weights.sum()


def window_centres(attention: Tensor, share: float) -> Tensor:
    """(N, H, W) -> (N, 2) row and column, in (0, 1) over the picture, of each window's middle; `share` is its side."""
    height, width = attention.shape[1:]
    weights = attention * centre_prior(height, width, device=attention.device)
    total = weights.sum((1, 2))
    rows, columns = ((torch.arange(size, device=attention.device) + 0.5) / size for size in (height, width))
    middle = torch.stack([(weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)], 1) / total[:, None]
    return torch.where(total[:, None] > 0, middle, 0.5).clamp(share / 2, 1 - share / 2)


def cut_windows(images: Tensor, centres: Tensor, size: int, *, sides: Tensor | None = None) -> Tensor:
    """Windows (N, 3, size, size) float32 around centres (N, 2), cut from (N, 3, Z, Z) images between pixels.

    `sides` (N,), shares of the image's, make windows of their own sizes, resized; else a pixel is a pixel.
    """
    side = images.shape[-1]
    # averaged, so that none is skipped; the same for all sides, so that no window depends on those beside it
    finer = 1 if sides is None else max(1, math.ceil(side / size))
    count = finer * size
    offsets = torch.arange(count, device=images.device) + 0.5 - count / 2  # in pixels from the middle
    steps = offsets / side if sides is None else sides[:, None] * offsets / count
    rows, columns = (2 * (centres[:, axis, None] + steps) - 1 for axis in (0, 1))  # (N, count), -1 to 1
    shape = (images.shape[0], count, count)  # not len(), which would fix the batch of an exported graph
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], 3)  # x, y
    padding = "border"
    if images.device.type == "mps":  # which knows it since torch 2.13: the same is reached by staying inside
        grid, padding = grid.clamp(1 / side - 1, 1 - 1 / side), "zeros"
    cut: Tensor = functional.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)
    return functional.avg_pool2d(cut, finer) if finer > 1 else cut


def fullest_windows(maps: Tensor, share: float) -> Tensor:
    """(N, H, W) not negative -> (N, 2) as `window_centres`: of the window with most of the map in it, else the middle.

    `share` is the window's side. Places are squares, so that a window may hold a part of one.
    """
    count = max(PLACES, *maps.shape[1:])
    finer = functional.interpolate(maps[:, None], (count, count), mode="bilinear")
    side = max(1, round(share * count))
    sums = functional.avg_pool2d(finer, side, 1)[:, 0]  # of the windows that lie in the picture
    rows = sums.shape[1]
    best = sums.flatten(1).argmax(1)
    middle = torch.stack([best // rows, best % rows], 1) / count + side / 2 / count
    return torch.where(maps.flatten(1).amax(1, keepdim=True) > 0, middle, 0.5).clamp(share / 2, 1 - share / 2)


def is_flat(maps: Tensor) -> Tensor:
    """Of maps (N, H, W), not negative: whether none of their places stands out, (N,) boolean."""
    return maps.flatten(1).amax(1) <= ABOVE_EVEN * maps.mean((1, 2))


def crop_windows(maps: Tensor, share: float) -> Tensor:
    """(N, H, W) not negative -> (N, 3): middle and side of the fullest window; NaN where the map is flat."""
    windows = torch.cat([fullest_windows(maps, share), maps.new_full((len(maps), 1), share)], 1)
    return windows.masked_fill(is_flat(maps)[:, None], torch.nan)
