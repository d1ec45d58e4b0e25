"""The two random views of a training image, and the one evaluation view.

Parameters are drawn first (`draw_view`, numpy, one definition) and applied afterwards (`apply_view`), so that another
device can apply the same parameters. All images here are uint8; normalisation happens on the training device.
The default values are MoCo v2's (paper section 4); blur is given in pixels of a 224-pixel crop and scaled to the size
in use, so that a small crop is not blurred beyond recognition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from fgssl.config import ViewsConfig

ASPECT = (3 / 4, 4 / 3)  # of a random crop, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
SOLARIZE_THRESHOLD = 128


class View(NamedTuple):
    """What is done to an image to make one random view; pixels of the source image, factors as torchvision's."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    colour: tuple[tuple[str, float], ...]  # jitter operations in the order they are applied; empty = no jitter
    grayscale: bool
    sigma: float  # of the blur, in output pixels; 0 = none
    solarize: bool


def draw_view(rng: np.random.Generator, views: ViewsConfig, *, height: int, width: int, size: int) -> View:
    """Draw the parameters of one view of a (height, width) image; distributions as torchvision's transforms.

    Args:
        rng: Source of randomness; always the same number of draws is taken from it.
        views: Probabilities and ranges.
        height: Of the source image, in pixels.
        width: Of the source image, in pixels.
        size: Side of the view, in pixels.
    """
    top, left, crop_height, crop_width = _draw_crop(rng, views, height, width)
    flip, jitter, gray, blur, solarize = rng.random(5)
    strengths = np.array([views.brightness, views.contrast, views.saturation, views.hue])
    drawn = rng.uniform(-1.0, 1.0, 4) * strengths
    order = rng.permutation(4)
    sigma = rng.uniform(views.blur_sigma_min, views.blur_sigma_max) * size / 224
    names = ("brightness", "contrast", "saturation", "hue")
    # factors are multipliers (never negative), the hue is a shift
    values = [max(0.0, 1.0 + d) for d in drawn[:3]] + [float(drawn[3])]
    colour = tuple((names[i], values[i]) for i in order if strengths[i] > 0) if jitter < views.jitter else ()
    return View(
        top, left, crop_height, crop_width, bool(flip < views.flip), colour, bool(gray < views.grayscale),
        float(sigma) if blur < views.blur else 0.0, bool(solarize < views.solarize),
    )  # fmt: skip


def _draw_crop(rng: np.random.Generator, views: ViewsConfig, height: int, width: int) -> tuple[int, int, int, int]:
    """Area and aspect ratio are drawn until they fit, else the largest centred crop of a legal aspect ratio."""
    area = rng.uniform(views.crop_min, views.crop_max, CROP_TRIES) * height * width
    ratio = np.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), CROP_TRIES))
    position = rng.random(2)
    widths, heights = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (widths >= 1) & (heights >= 1) & (widths <= width) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        h, w = int(heights[first]), int(widths[first])
        return int(position[0] * (height - h + 1)), int(position[1] * (width - w + 1)), h, w
    w = max(1, min(width, round(height * ASPECT[1])))
    h = max(1, min(height, round(width / ASPECT[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def apply_view(image: Tensor, view: View, size: int) -> Tensor:
    """Make one view.

    Args:
        image: (3, H, W) uint8.
        view: What to do.
        size: Side of the result in pixels.

    Returns:
        (3, size, size) uint8.
    """
    out: Tensor = tv.resized_crop(image, view.top, view.left, view.height, view.width, [size, size], antialias=True)
    if view.flip:
        out = out.flip(-1)
    for name, value in view.colour:
        out = _COLOUR[name](out, value)
    if view.grayscale:
        out = tv.rgb_to_grayscale(out, 3)
    if view.sigma > 0:
        out = blur(out, view.sigma)
    if view.solarize:
        out = tv.solarize(out, SOLARIZE_THRESHOLD)
    return out


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """Rotate the hue of a (3, H, W) uint8 image by a fraction of the colour circle, keeping HSV value and chroma.

    The same map as torchvision's `adjust_hue` within rounding, several times as fast: HSV is never formed, each channel
    is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    x = image.float()
    value, low = x.amax(0), x.amin(0)
    chroma = value - low
    red, green, blue = x
    divisor = chroma.clamp(min=1)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )  # in sixths of a turn
    k = (hue + 6 * turns + torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)).remainder_(6)  # (3, H, W)
    weight = torch.minimum(k, 4 - k).clamp_(0, 1)
    return (value - chroma * weight).round_().to(torch.uint8)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of a square (3, S, S) uint8 image as two matrix products; reflecting borders, radius 4 sigma."""
    matrix = _blur_matrix(image.shape[-1], sigma)
    return (matrix @ image.float() @ matrix.T).round_().clamp_(0, 255).to(torch.uint8)


def blur_radius(sigma: float, size: int) -> int:
    """Half-width of the blur kernel in pixels; reflection needs it below the image's side."""
    return max(1, min(round(4 * sigma), size - 1))


def _blur_matrix(size: int, sigma: float) -> Tensor:
    radius = blur_radius(sigma, size)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    columns = torch.arange(size)[:, None] + offsets  # (size, kernel)
    columns = columns.abs()
    columns = torch.where(columns >= size, 2 * (size - 1) - columns, columns)
    return torch.zeros(size, size).scatter_add_(1, columns, kernel.expand(size, -1))


_COLOUR = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": shift_hue,
}

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


class EvaluationView(NamedTuple):
    """Resize the short side to size / crop_fraction, then cut the central square (paper: 256, then 224)."""

    size: int
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> Image.Image:
        """The central (size, size) square of an RGB image, resized once from the original pixels."""
        # One resize with a fractional box does both steps; the box is centred, so nothing shifts by half a pixel.
        side = min(image.size) * min(1.0, self.crop_fraction)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        filter_ = _FILTERS.get(self.interpolation, Image.Resampling.BICUBIC)
        return image.resize((self.size, self.size), filter_, box=(left, top, left + side, top + side))


def resize_short_side(image: Image.Image, side: int) -> Image.Image:
    """Shrink so that the short side is `side` pixels (never enlarge); the long side is bounded to 8 times that."""
    scale = side / min(image.size)
    if scale < 1:
        long_side = min(8 * side, max(side, round(max(image.size) * scale)))
        target = (side, long_side) if image.width <= image.height else (long_side, side)
        return image.resize(target, Image.Resampling.BILINEAR, reducing_gap=3.0)
    return image
