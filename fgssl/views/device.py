"""Views on a GPU (or any device), batched: pictures of differing sizes go over the bus once, as uint8.

The colours, (N, 3, S, S) float32 levels 0 to 255 changed in place, are what torchvision computes on uint8, not rounded
in between. With products and comparisons of single numbers and sums in double precision, no view depends on another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgssl.views.draw import BRIGHTNESS, CONTRAST, HIDDEN, HUE, ORDERS, SATURATION, Views

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # of the luminance, as torchvision has them
SOLARIZE_THRESHOLD = 128
LEAST_SIGMA = 0.25  # in pixels; a smaller blur changes a level by at most 4 * 255 * exp(-0.5 / sigma^2) = 0.35: nothing
CROP_CHUNK = 64  # views cropped at a time: bounds the memory of their padded crops


@dataclass(frozen=True)
class PackedViews:
    """Pictures one behind another, and the views to make of them, sorted by the order of their jitter."""

    pixels: Tensor  # uint8, all bytes of all pictures
    places: Tensor  # (M, 7) int64: first byte and width of the view's picture, crop's top, left, height, width; target
    factors: Tensor  # (M, 12) float32: four of the jitter, then flip, grayscale, sigma, solarize, and what is hidden
    largest: tuple[int, int]  # height and width that hold every crop
    orders: tuple[tuple[int, int], ...]  # order of the jitter, and end of its rows
    strongest_blur: float
    any_solarized: bool
    any_hidden: bool
    size: int

    def pin_memory(self) -> PackedViews:
        """The tensors in page-locked memory."""
        return replace(self, **{key: getattr(self, key).pin_memory() for key in ("pixels", "places", "factors")})

    def make(self, device: torch.device) -> Tensor:
        """Send everything to the device, without waiting for it, and make the views: (M, 3, S, S) uint8."""
        with torch.autocast(device.type, enabled=False):  # levels of half precision would be two apart
            return self._made(*(t.to(device, non_blocking=True) for t in (self.pixels, self.places, self.factors)))

    def _made(self, pixels: Tensor, places: Tensor, factors: Tensor) -> Tensor:
        chunks = zip(torch.split(places, CROP_CHUNK), torch.split(factors[:, 4], CROP_CHUNK), strict=True)
        levels = torch.cat([crop_resized(pixels, *chunk, largest=self.largest, size=self.size) for chunk in chunks])
        start = 0
        for order, end in self.orders:
            jitter(levels[start:end], order, factors[start:end, :4])
            start = end
        gray, sigma, solarize = (factors[:, column].view(-1, 1, 1, 1) for column in (5, 6, 7))
        levels = torch.where(gray > 0, luminance(levels), levels)
        if self.strongest_blur > 0:
            radius = blur_radius(self.strongest_blur, self.size)
            levels = blurred(levels, sigma.flatten(), radius).clamp_(0, 255)
        if self.any_solarized:
            inverted = torch.where(levels.round() >= SOLARIZE_THRESHOLD, 255 - levels, levels)
            levels = torch.where(solarize > 0, inverted, levels)
        if self.any_hidden:
            hide(levels, factors[:, 8:])
        out = torch.empty_like(levels, dtype=torch.uint8)
        return out.index_copy_(0, places[:, 6], levels.round_().to(torch.uint8))


def pack_views(
    pictures: Sequence[NDArray[np.uint8]], sources: NDArray[np.int64], views: Views, size: int
) -> PackedViews:
    """Everything a device needs to make M views of pictures (H, W, 3), `sources` (M,) saying of which each."""
    starts = np.cumsum([0, *(picture.size for picture in pictures)])
    pixels = np.empty(starts[-1], np.uint8)
    for start, picture in zip(starts, pictures, strict=False):
        pixels[start : start + picture.size] = picture.reshape(-1)
    rows = np.argsort(views.order, kind="stable")
    widths = np.array([picture.shape[1] for picture in pictures])
    sorted_views, sources = views.take(rows), sources[rows]
    places = np.column_stack([starts[sources], widths[sources], sorted_views.box, rows])
    switches = (sorted_views.flip, sorted_views.grayscale, sorted_views.sigma, sorted_views.solarize)
    factors = np.column_stack([sorted_views.factors, *switches, sorted_views.hidden]).astype(np.float32)
    ends = np.append(np.flatnonzero(np.diff(sorted_views.order)) + 1, len(rows))
    tensors = torch.from_numpy(pixels), torch.from_numpy(places), torch.from_numpy(factors)
    largest = (int(views.box[:, 2].max()), int(views.box[:, 3].max()))
    orders = tuple((int(sorted_views.order[end - 1]), int(end)) for end in ends)
    whether = (bool(views.solarize.any()), bool(views.hidden.any()))
    return PackedViews(*tensors, largest, orders, float(views.sigma.max()), *whether, size)


def crop_resized(pixels: Tensor, places: Tensor, flip: Tensor, *, largest: tuple[int, int], size: int) -> Tensor:
    """Crop, resize (bilinear, antialiased) and flip: (N, 3, S, S) float32 levels."""
    start, width, top, left, crop_height, crop_width, _ = places.T
    rows, columns = (torch.arange(side, device=pixels.device) for side in largest)
    # beyond a crop's border the matrices below are zero; the index only has to stay inside the buffer
    y = top[:, None] + torch.minimum(rows, crop_height[:, None] - 1)  # (N, H)
    x = left[:, None] + torch.minimum(columns, crop_width[:, None] - 1)  # (N, W)
    pixel = start[:, None, None] + 3 * (y[:, :, None] * width[:, None, None] + x[:, None])  # (N, H, W)
    crops = pixels[pixel.unsqueeze(1) + torch.arange(3, device=pixels.device).view(3, 1, 1)].float()  # (N, 3, H, W)
    vertical = resize_matrix(crop_height, largest[0], size)[:, None]  # (N, 1, S, H)
    horizontal = resize_matrix(crop_width, largest[1], size)
    horizontal = torch.where(flip.view(-1, 1, 1) > 0, horizontal.flip(1), horizontal)[:, None]
    return vertical @ crops @ horizontal.mT


def resize_matrix(lengths: Tensor, longest: int, size: int) -> Tensor:
    """Weights of Pillow's and torch's antialiased bilinear resize of an axis: (N,) lengths -> (N, size, longest)."""
    scale = (lengths / size)[:, None, None]  # (N, 1, 1)
    centre = scale * (torch.arange(size, device=lengths.device) + 0.5)[:, None]  # (N, S, 1)
    source = torch.arange(longest, device=lengths.device)  # (L,)
    weights = (1 - (source + 0.5 - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * (source < lengths[:, None, None])
    return weights / weights.sum(2, keepdim=True)


def jitter(levels: Tensor, order: int, factors: Tensor) -> None:
    """Colour jitter, in place, of (N, 3, S, S) views of one order of operations; arguments as in `Views`."""
    for operation in ORDERS[order] if order >= 0 else ():
        factor = factors[:, operation].view(-1, 1, 1, 1)
        if operation == BRIGHTNESS:
            levels.mul_(factor).clamp_(max=255)
        elif operation == CONTRAST:
            # rows first: sums of few long stretches may be cut between threads, and then round differently
            sums = levels.sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.float64)  # (N, 3, 1, 1)
            mean = luminance(sums).float() / levels[0, 0].numel()
            levels.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255)
        elif operation == SATURATION:
            gray = luminance(levels).mul_(1 - factor)
            levels.mul_(factor).add_(gray).clamp_(0, 255)
        elif operation == HUE:
            shift_hue(levels, factor)


def hide(levels: Tensor, patches: Tensor) -> None:
    """Take the content of patches (N, 4), as in `Views`, out of views (N, 3, S, S), in place."""
    top, left, bottom, right = patches.view(-1, 4, 1).unbind(1)  # (N, 1)
    places = torch.arange(levels.shape[-1], device=levels.device)
    within = [(places >= first) & (places < end) for first, end in ((top, bottom), (left, right))]  # (N, S)
    inside = within[0][:, None, :, None] & within[1][:, None, None, :]
    mean = torch.tensor(HIDDEN, dtype=levels.dtype, device=levels.device).view(3, 1, 1)
    levels.copy_(torch.where(inside, mean, levels))


def luminance(levels: Tensor) -> Tensor:
    """(N, 3, ...) -> (N, 1, ...)"""
    red, green, blue = (levels[:, i : i + 1] for i in range(3))
    return (red * RED).add_(green * GREEN).add_(blue * BLUE)


def shift_hue(levels: Tensor, turns: Tensor) -> None:
    """Rotate the hue by fractions of the colour circle, (N, 1, 1, 1), keeping HSV value and chroma.

    Each channel is value - chroma * w, where w is 0 within a sixth of a turn of the channel's own hue, 1 beyond a
    third, and linear between; all of it is multiplied by the chroma, so that nothing needs a division.
    """
    red, green, blue = (levels[:, i : i + 1] for i in range(3))  # (N, 1, S, S)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    # hue in sixths of a turn times chroma, from the largest channel; the masks are floats, which are quick to multiply
    blue_largest = (red - green).add_(chroma, alpha=4)
    hue = (blue - red).add_(chroma, alpha=2).sub_(blue_largest).mul_(green.clone().eq_(value)).add_(blue_largest)
    hue = (green - blue).sub_(hue).mul_(red.clone().eq_(value)).add_(hue)
    thrice, sum_ = 3 * chroma, value + chroma
    for channel, own in ((red, 3.0), (green, 1.0), (blue, -1.0)):
        shift = (own + 6 * turns + 5).remainder(6) - 5  # so that the distance stays within one turn
        distance = (chroma * shift).add_(hue).abs_().sub_(thrice).abs_()  # from the opposite of the channel's own hue
        torch.clamp(torch.sub(sum_, distance, out=distance), low, value, out=channel)


def blurred(levels: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of views (N, 3, S, S) by `sigma` (N,) pixels, reflecting at the borders, as two matrix products."""
    size, views = levels.shape[-1], len(sigma)
    offsets = torch.arange(-radius, radius + 1, device=levels.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (N, K)
    kernel = kernel * (offsets.abs() <= (4 * sigma).round().clamp(min=1)[:, None])
    kernel = kernel / kernel.sum(1, keepdim=True)
    columns = _reflected(size, radius, levels.device).expand(views, -1, -1)
    matrix = torch.zeros(views, size, size, device=levels.device)
    matrix.scatter_add_(2, columns, kernel[:, None].expand(-1, size, -1))
    matrix = matrix[:, None]  # (N, 1, S, S)
    return matrix @ levels @ matrix.mT


@functools.lru_cache(maxsize=64)
def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """The pixels that a kernel meets from each of `size` pixels of an axis: (S, 2 * radius + 1)."""
    rows, offsets = torch.arange(size, device=device), torch.arange(-radius, radius + 1, device=device)
    columns = (rows[:, None] + offsets).abs()
    return torch.where(columns >= size, 2 * (size - 1) - columns, columns)


def blur_radius(sigma: float, size: int) -> int:
    """Half-width of the blur kernel in pixels; reflection needs it below the image's side."""
    return max(1, min(round(4 * sigma), size - 1))
