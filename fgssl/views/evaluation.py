"""The one view of evaluation, and how pictures are shrunk before they are kept."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

_FILTERS = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos", "nearest")}


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
