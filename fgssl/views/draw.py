"""Parameters of random views, drawn for a whole batch at once.

Blur is given in pixels of a 224-pixel crop and scaled to the size in use.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.config.schema import ViewsConfig

ASPECT = (3 / 4, 4 / 3)  # of a random crop, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
DRAWS = 2 * CROP_TRIES + 13  # uniform numbers that one view takes, whatever is drawn
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
HIDDEN = (124, 116, 104)  # levels of what is hidden: ImageNet's mean, which normalising makes nearly nothing
ORDERS = tuple(itertools.permutations(range(4)))  # of the jitter's operations


Sizes = NDArray[np.int64]  # (M,)


class Views(NamedTuple):
    """What is done to M images to make a random view of each; pixels of the source image, factors as torchvision's."""

    box: NDArray[np.int64]  # (M, 4) top, left, height, width of the crop
    flip: NDArray[np.bool_]  # (M,)
    order: NDArray[np.int64]  # (M,) of the jitter's operations: position in ORDERS; -1 = no jitter
    factors: NDArray[np.float32]  # (M, 4) of brightness, contrast and saturation, and the hue's shift in turns
    grayscale: NDArray[np.bool_]  # (M,)
    sigma: NDArray[np.float32]  # (M,) of the blur, in output pixels; 0 = none
    solarize: NDArray[np.bool_]  # (M,)
    hidden: NDArray[np.int64]  # (M, 4) first row and column of a patch without content, and the ends; 0 0 0 0: none

    def take(self, rows: NDArray[np.int64]) -> Views:
        """The views of some rows."""
        return Views._make(column[rows] for column in self)


def draw_views(
    randoms: NDArray[np.float64],
    config: ViewsConfig,
    *,
    heights: Sizes,
    widths: Sizes,
    size: int,
    windows: NDArray[np.float64] | None = None,
    hidden: NDArray[np.float64] | None = None,
) -> Views:
    """Turn (M, DRAWS) uniform numbers into views, `size` pixels wide; distributions as torchvision's transforms.

    `windows` (M, 3), row and column of the middle and side in (0, 1) of the picture, are where the middle of a crop
    lies, as near as the picture's borders let it; NaN for one that lies anywhere. Nothing but its place depends on it.
    What a crop shows of the windows `hidden`, of the same form, has its content taken away.
    """
    crops, strengths = randoms[:, : 2 * CROP_TRIES + 2], randoms[:, -6:-2]
    (flip, jitter, gray, blur, solarize), (order, sigma) = randoms[:, 2 * CROP_TRIES + 2 : -6].T, randoms[:, -2:].T
    ranges = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    factors = (2 * strengths - 1) * ranges
    factors[:, :HUE] = np.maximum(0.0, 1.0 + factors[:, :HUE])  # multipliers, never negative; the hue is a shift
    low, high = config.blur_sigma_min, config.blur_sigma_max
    box = _draw_crops(crops, config, heights.astype(np.int64), widths.astype(np.int64), windows)
    flipped = flip < config.flip
    return Views(
        box,
        flipped,
        np.where(jitter < config.jitter, (order * len(ORDERS)).astype(np.int64), -1),
        factors.astype(np.float32),
        gray < config.grayscale,
        np.where(blur < config.blur, (low + sigma * (high - low)) * size / 224, 0.0).astype(np.float32),
        solarize < config.solarize,
        np.zeros_like(box) if hidden is None else _patches(hidden, box, flipped, np.stack([heights, widths], 1), size),
    )


def _draw_crops(
    randoms: NDArray[np.float64],
    config: ViewsConfig,
    heights: Sizes,
    widths: Sizes,
    windows: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    """Area and aspect ratio are drawn until they fit, else the largest centred crop of a legal aspect ratio."""
    drawn, position = randoms[:, :-2].reshape(len(randoms), 2, CROP_TRIES), randoms[:, -2:]
    full_height, full_width = heights[:, None], widths[:, None]
    area = (config.crop_min + drawn[:, 0] * (config.crop_max - config.crop_min)) * full_height * full_width
    ratio = np.exp(math.log(ASPECT[0]) + drawn[:, 1] * math.log(ASPECT[1] / ASPECT[0]))
    tried_height, tried_width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (tried_height >= 1) & (tried_width >= 1) & (tried_height <= full_height) & (tried_width <= full_width)
    first = fits.argmax(1)
    rows = np.arange(len(randoms))
    found = fits[rows, first]
    widest = np.clip(np.rint(heights * ASPECT[1]), 1, widths)
    tallest = np.clip(np.rint(widths / ASPECT[0]), 1, heights)
    height = np.where(found, tried_height[rows, first], tallest).astype(np.int64)
    width = np.where(found, tried_width[rows, first], widest).astype(np.int64)
    starts = []
    for axis, (side, own) in enumerate(((heights, height), (widths, width))):
        first, last = _starts(axis, side, own, windows)
        starts.append(np.where(found, first + position[:, axis] * (last - first + 1), (side - own) // 2))
    return np.stack([*(start.astype(np.int64) for start in starts), height, width], 1)


def _starts(axis: int, side: Sizes, own: Sizes, windows: NDArray[np.float64] | None) -> tuple[Sizes, Sizes]:
    """First and last pixel where crops of `own` pixels may begin in pictures of `side`."""
    most = side - own
    if windows is None:
        return np.zeros_like(most), most
    anywhere, middle, half = np.isnan(windows[:, 2]), windows[:, axis] * side, windows[:, 2] * side / 2
    # cut to the picture both ends are the same where no crop of this size has its middle in the window
    ends = (np.nan_to_num(middle + reach - own / 2).clip(0, most) for reach in (-half, half))
    first, last = (rounded(end).astype(np.int64) for rounded, end in zip((np.ceil, np.floor), ends, strict=True))
    return np.where(anywhere, 0, first), np.where(anywhere, most, np.maximum(first, last))


def _patches(
    windows: NDArray[np.float64], box: NDArray[np.int64], flip: NDArray[np.bool_], sides: Sizes, size: int
) -> NDArray[np.int64]:
    """(M, 3) windows of pictures of (M, 2) sides, as their crops show them in `size` pixels: (M, 4) as in `Views`."""
    half = windows[:, 2:] / 2
    ends = np.stack([(windows[:, :2] + reach) * sides for reach in (-half, half)])  # (2, M, 2) in the picture's pixels
    shown = np.rint((ends - box[:, :2]) / box[:, 2:] * size).clip(0, size)
    shown[:, flip, 1] = size - shown[::-1, flip, 1]
    empty = np.isnan(windows[:, 2]) | (shown[0] >= shown[1]).any(1)
    return np.where(empty[:, None], 0, np.nan_to_num(shown.transpose(1, 0, 2)).reshape(-1, 4)).astype(np.int64)
