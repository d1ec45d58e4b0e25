"""Operations on colours, in place, for a batch of views on any device: (N, 3, S, S) float32 levels 0 to 255.

For GPUs; the CPU takes one view after another (`fgssl.views.paint`). They compute what torchvision computes on uint8,
but do not round in between. Only additions, products and comparisons of single numbers are used, and sums in double
precision: a view does not depend on the views beside it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fgssl.views.draw import BRIGHTNESS, CONTRAST, HUE, ORDERS, SATURATION

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # of the luminance, as torchvision has them
SOLARIZE_THRESHOLD = 128
LEAST_SIGMA = 0.25  # in pixels; a smaller blur changes a level by at most 4 * 255 * exp(-0.5 / sigma^2) = 0.35: nothing


def jitter(levels: Tensor, order: int, factors: Tensor) -> None:
    """Colour jitter of views that share the order of its operations.

    Args:
        levels: (N, 3, S, S), changed in place.
        order: Position in ORDERS; -1 does nothing.
        factors: (N, 4) of brightness, contrast and saturation, and the hue's shift in turns.
    """
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


def luminance(levels: Tensor) -> Tensor:
    """(N, 3, ...) -> (N, 1, ...)"""
    red, green, blue = (levels[:, i : i + 1] for i in range(3))
    return (red * RED).add_(green * GREEN).add_(blue * BLUE)


def shift_hue(levels: Tensor, turns: Tensor) -> None:
    """Rotate the hue by fractions of the colour circle, (N, 1, 1, 1), keeping HSV value and chroma.

    HSV is never formed: each channel is value - chroma * w, where w is 0 within a sixth of a turn of the channel's own
    hue, 1 beyond a third, and linear between. Multiplied by the chroma throughout, nothing needs a division.
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


def solarized(levels: Tensor) -> Tensor:
    """Bright pixels inverted."""
    return torch.where(levels.round() >= SOLARIZE_THRESHOLD, 255 - levels, levels)


def blurred(levels: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of square views as two matrix products, reflecting at the borders.

    Args:
        levels: (N, 3, S, S).
        sigma: (N,) in pixels; 0 leaves a view as it is.
        radius: Half-width of the kernels in pixels, below S, from `blur_radius` of the largest sigma.
    """
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
    columns = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)).abs()
    return torch.where(columns >= size, 2 * (size - 1) - columns, columns).to(device)


def blur_radius(sigma: float, size: int) -> int:
    """Half-width of the blur kernel in pixels; reflection needs it below the image's side."""
    return max(1, min(round(4 * sigma), size - 1))
