"""A second look: the window of a picture that the rationale points to, embedded beside the whole (`--pool zoom`).

Fine-grained classes differ in details that a whole picture shows too small. The window has the side of the smallest
crop the encoder was trained on, so that it has seen things at this scale. Its middle is the mean place of the
rationale's map times a fixed Gaussian around the picture's centre: objects stand there more often than not, and where
the map says little the window stays in the middle. Without a rationale it always does.

The mean place is continuous in the map, and the window is cut between pixels, so that rounding never moves it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.schema import ViewsConfig

CENTRE_SIGMA = 0.25  # of the map's side
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
    """Middle of each picture's window, kept inside the picture: (N, 2) row and column, in (0, 1) over the picture.

    Args:
        attention: (N, H, W), not negative: the rationale's map.
        share: Side of the window relative to the picture's.
    """
    height, width = attention.shape[1:]
    weights = attention * centre_prior(height, width, device=attention.device)
    total = weights.sum((1, 2))
    rows, columns = ((torch.arange(size, device=attention.device) + 0.5) / size for size in (height, width))
    middle = torch.stack([(weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)], 1) / total[:, None]
    return torch.where(total[:, None] > 0, middle, 0.5).clamp(share / 2, 1 - share / 2)


def cut_windows(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Windows (N, 3, size, size) float32 around `window_centres`, cut from (N, 3, Z, Z) images between pixels."""
    side = images.shape[-1]
    offsets = torch.arange(size, device=images.device) + 0.5 - size / 2  # in pixels from the middle
    rows, columns = (2 * (centres[:, axis, None] + offsets / side) - 1 for axis in (0, 1))  # (N, size), -1 to 1
    shape = (len(images), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], 3)  # x, y
    cut: Tensor = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return cut
