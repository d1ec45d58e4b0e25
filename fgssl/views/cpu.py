"""Views on the CPU: random ones, cropped by torch's uint8 kernel and coloured by numpy, and evaluation's, by Pillow.

The colours are those of `fgssl.views.device`, in memory that stays in a core's cache; what changes nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fgssl.views.device import BLUE, GREEN, LEAST_SIGMA, RED, blur_radius, blurred
from fgssl.views.draw import CONTRAST, HIDDEN, HUE, ORDERS, SATURATION, Views

Levels = NDArray[np.float32]
_FILTERS = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos", "nearest")}
_SUPPORT = 3  # pixels that the widest of them, lanczos, reaches
WIDE = 8  # a blur whose radius is a larger part of the view than one WIDE-th is quicker as a product of matrices


def make_views(
    pictures: Sequence[NDArray[np.uint8]], views: Views, size: int, *, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """A view of each picture (H, W, 3), of which only the crop is read: (M, 3, S, S) levels, uint8 or whole float32."""
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


class Painter:
    """Colours views of one size S; the levels it hands out are overwritten by the next view."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._levels, self._spare = np.empty((2, 3, size, size), np.float32)
        self._planes = np.empty((5, size, size), np.float32)
        self._padded = np.empty((3, 3 * size * (size + 2 * (size // WIDE))), np.float32)  # of the blur, flat

    def paint(self, crop: NDArray[np.uint8], views: Views, row: int, out: NDArray[np.float32 | np.uint8]) -> None:
        """Colour a resized (3, S, S) crop as a row of `views` says; whole levels 0 to 255 are written to `out`."""
        sigma = float(views.sigma[row])
        np.copyto(self._levels, crop)
        levels = self.jitter(self._levels, int(views.order[row]), views.factors[row].tolist())
        if views.grayscale[row]:
            levels = self._luminance(levels)[None]
        if sigma > LEAST_SIGMA:
            levels = self.blurred(levels, sigma)
        if views.solarize[row]:
            levels = np.rint(levels)
            levels = np.minimum(levels, 255 - levels)  # inverts from 128 on
        np.rint(levels, out=out, casting="unsafe")
        top, left, bottom, right = views.hidden[row].tolist()
        out[:, top:bottom, left:right] = np.array(HIDDEN, out.dtype)[:, None, None]

    def jitter(self, levels: Levels, order: int, factors: list[float]) -> Levels:
        """Colour jitter of (3, S, S), changed in place or not; order and factors as in `Views`."""
        for operation in ORDERS[order] if order >= 0 else ():
            factor = factors[operation]
            if factor == (0 if operation == HUE else 1):
                continue
            if operation == HUE:
                levels = self.shifted_hue(levels, factor)
                continue
            if operation == CONTRAST:
                red, green, blue = levels.reshape(3, -1).sum(1).tolist()
                levels *= factor
                levels += (1 - factor) * (RED * red + GREEN * green + BLUE * blue) / self.size**2
            elif operation == SATURATION:
                gray = self._luminance(levels, 1 - factor)
                levels *= factor
                levels += gray
            else:  # brightness
                levels *= factor
            if factor > 1:  # a mean of levels is a level
                np.clip(levels, 0, 255, out=levels)
        return levels

    def _luminance(self, levels: Levels, scale: float = 1.0) -> Levels:
        """(3, S, S) -> (S, S), multiplied by `scale`."""
        gray: Levels = self._planes[0]
        part = self._planes[1]
        np.multiply(levels[0], scale * RED, out=gray)
        for channel, weight in ((levels[1], GREEN), (levels[2], BLUE)):
            gray += np.multiply(channel, scale * weight, out=part)
        return gray

    def shifted_hue(self, levels: Levels, turns: float) -> Levels:
        """The hue rotated by a fraction of the colour circle, keeping HSV value and chroma: (3, S, S) elsewhere.

        Whole sixths of a turn only exchange channels (two sixths) or reflect them between the largest and the least
        (three). What is left, t sixths with |t| <= 1 / 2, moves a channel x by the channels y towards and z away from
        which the hue goes: x - y + max(value + low - t chroma - z, low + t chroma), cut to [low, value].
        """
        value, low, shift, least, part = self._planes
        sixths = round(6 * turns)
        rest = 6 * turns - sixths
        odd = sixths % 2
        source, towards = -(sixths - 3 * odd) // 2, 1 if rest >= 0 else -1
        np.maximum(np.maximum(levels[0], levels[1], out=value), levels[2], out=value)
        np.minimum(np.minimum(levels[0], levels[1], out=low), levels[2], out=low)
        np.subtract(value, low, out=shift)
        shift *= abs(rest)
        np.add(low, shift, out=least)
        if not odd:
            np.subtract(np.add(value, low, out=part), shift, out=shift)
        for channel, out in enumerate(self._spare):
            x, y, z = (levels[(channel + source + step * towards) % 3] for step in range(3))
            if odd:
                x, y = y, x
                np.subtract(z, shift, out=out)
            else:
                np.subtract(shift, z, out=out)
            np.maximum(out, least, out=out)
            out += np.subtract(x, y, out=part)
            np.minimum(np.maximum(out, low, out=out), value, out=out)
        self._levels, self._spare = self._spare, self._levels
        return self._levels

    def blurred(self, levels: Levels, sigma: float) -> Levels:
        """Gaussian blur, reflecting at the borders: (C, S, S) elsewhere."""
        radius = blur_radius(sigma, self.size)
        if radius > self.size // WIDE:
            return np.asarray(blurred(torch.from_numpy(levels)[None], torch.tensor([sigma]), radius)[0])
        weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
        total = 2 * sum(weights) - weights[0]
        weights = [weight / total for weight in weights]
        size, wide = self.size, self.size + 2 * radius
        for axis, shape, stride in ((2, (size, wide), 1), (1, (wide, size), size)):
            padded = self._padded[0, : len(levels) * size * wide].reshape(-1, *shape)
            rows, source = padded.swapaxes(1, axis), levels.swapaxes(1, axis)
            rows[:, radius : radius + size] = source
            rows[:, :radius] = source[:, radius:0:-1]
            rows[:, radius + size :] = source[:, -2 : -2 - radius : -1]
            summed = self._weighted(padded.reshape(-1), weights, stride).reshape(-1, *shape)
            levels = summed.swapaxes(1, axis)[:, :size].swapaxes(1, axis)
        return levels

    def _weighted(self, flat: Levels, weights: list[float], stride: int) -> Levels:
        """Sums of neighbours `stride` apart, at the place of the first; rows are one long row, padding between them."""
        middle = stride * (len(weights) - 1)
        length = len(flat) - 2 * middle
        out: Levels = self._padded[1, : len(flat)]
        part, found = self._padded[2, :length], out[:length]
        np.multiply(flat[middle : middle + length], weights[0], out=found)
        for number, weight in enumerate(weights[1:], 1):
            before, after = middle - number * stride, middle + number * stride
            np.add(flat[before : before + length], flat[after : after + length], out=part)
            part *= weight
            found += part
        return out


class EvaluationView(NamedTuple):
    """timm's evaluation transform: the short side resized to size / crop_pct, then the central square, as whole levels.

    Its rounding included, so that `timm.data.create_transform` of the config beside the weights gives the same pixels.
    """

    size: int
    crop_pct: float = 0.875  # the paper's: 256, then 224
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> Image.Image:
        """The central (size, size) square of an RGB image, resized once from the original pixels."""
        # torchvision's Resize cuts the long side off to a whole pixel, its CenterCrop rounds half a pixel to even
        short = math.floor(self.size / min(1.0, self.crop_pct))
        resized = [int(short * side / min(image.size)) for side in image.size]  # width, height
        starts = [round((side - self.size) / 2) for side in resized]
        # One resize with a fractional box does both steps, without the rest of a long strip.
        corners = [
            edge * own / side
            for edges in (starts, [start + self.size for start in starts])
            for edge, own, side in zip(edges, image.size, resized, strict=True)
        ]
        filter_ = _FILTERS.get(self.interpolation, Image.Resampling.BICUBIC)
        # Pillow 13 orders its two passes by the shape of what it is given, and between them rounds: of a square, as of
        # most whole pictures, rows come first. So it is given no more than the filter reaches.
        reach = math.ceil(_SUPPORT * max(1.0, min(image.size) / short)) + 1
        left, top = (max(0, math.floor(corner) - reach) for corner in corners[:2])
        right, bottom = (min(s, math.ceil(corner) + reach) for s, corner in zip(image.size, corners[2:], strict=True))
        ends = min(corners[2], image.width), min(corners[3], image.height)
        box = (corners[0] - left, corners[1] - top, ends[0] - left, ends[1] - top)
        return image.crop((left, top, right, bottom)).resize((self.size, self.size), filter_, box=box)


def resize_short_side(image: Image.Image, side: int) -> Image.Image:
    """Shrink so that the short side is at most `side` pixels (never enlarge) and the long one at most 8 times that.

    A strip of 100 x 1,000,000 pixels is a file of kilobytes and would be 300 MB in the cache of decoded pictures.
    """
    short, long = sorted(image.size)
    scale = min(1.0, side / short)
    if scale < 1 or long > 8 * side:
        short, long = (side if scale < 1 else short), min(8 * side, max(side, round(long * scale)))
        target = (short, long) if image.width <= image.height else (long, short)
        return image.resize(target, Image.Resampling.BILINEAR, reducing_gap=3.0)
    return image
