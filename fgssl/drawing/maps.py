"""What is drawn over a photograph: the cells of a coarse map, blended, and outlined windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fgssl.drawing.text import font
from fgssl.errors import FgsslError

Map = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# Night blue, violet, red, orange, pale yellow. Lightness rises evenly along the whole table, so that the order of two
# colours is seen without a legend, in greyscale print and with any colour vision.
_ANCHORS = np.array((
    (8, 6, 34), (48, 16, 100), (106, 24, 126), (164, 38, 106), (212, 64, 66), (240, 104, 30), (252, 154, 14),
    (254, 206, 44), (255, 248, 150),
), np.float64)  # fmt: skip
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_STRENGTH = 0.55  # 0 would leave the photograph, 1 cover the hottest place fully
_FLAT = 1e-3  # a map that varies by less than this share of its largest value has nothing to show


def colormap(values: Map) -> npt.NDArray[np.uint8]:
    """Colours of values in [0, 1] (clipped): an array (...,) becomes (..., 3) of RGB bytes, dark to light."""
    positions = np.linspace(0.0, 1.0, len(_ANCHORS))
    channels = [np.interp(values, positions, channel) for channel in _ANCHORS.T]  # clips
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours


def _checked(values: Map) -> FloatArray:
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 2 or grid.size == 0:
        raise FgsslError(f"a map to draw has shape {grid.shape}", "pass one map of shape (height, width)")
    finite = grid[np.isfinite(grid)]
    return np.where(np.isfinite(grid), grid, finite.min() if finite.size else 0.0)


def is_flat(values: Map) -> bool:
    """Whether a map (h, w) prefers no place: it varies by less than a thousandth of its largest absolute value."""
    grid = _checked(values)
    return bool(np.ptp(grid) <= _FLAT * np.abs(grid).max())


def heat(values: Map, size: tuple[int, int]) -> FloatArray:
    """A map brought to the size of its image, cell by cell, in [0, 1]: its minimum is 0, its maximum 1.

    Cells stay visible: a 3 x 3 map that is smoothed looks as if it knew more than nine places. The first cell of w
    covers the first 1/w of the image.

    Args:
        values: (h, w) map over the whole of the image. Places that are not finite count as the lowest.
        size: (width, height) of the image in pixels.

    Returns:
        (height, width). A flat map is 0 everywhere: stretching its rounding noise to full contrast would show
        structure that is not there.

    Raises:
        FgsslError: `values` is not one non-empty map.
    """
    grid = _checked(values)
    if is_flat(grid):
        return np.zeros(size[::-1])
    scaled = (grid - grid.min()) / np.ptp(grid)
    rows, columns = (
        (np.arange(pixels) + 0.5) * cells / pixels for pixels, cells in zip(size[::-1], grid.shape, strict=True)
    )
    drawn: FloatArray = scaled[np.ix_(rows.astype(int), columns.astype(int))]
    return drawn


def overlay(image: Image.Image, values: Map) -> Image.Image:
    """The map (h, w), as in `heat`, over the view it was computed on; a flat one leaves the photograph as it is.

    The photograph loses most of its colour (a red apple is no hot place) and takes that of the map, shaded by its own
    light, so that edges stay visible under the hottest place.
    """
    photograph = image.convert("RGB")
    if is_flat(values):
        return photograph
    weight = heat(values, photograph.size)[..., None]  # (H, W, 1)
    pixels = np.asarray(photograph, dtype=np.float64)
    light, grey = (pixels @ _LUMINANCE)[..., None], 1.2 * _STRENGTH
    base = pixels * (1.0 - grey) + light * grey
    shaded = colormap(weight[..., 0]) * (0.86 + 0.24 * light / 255.0)
    cover = np.clip(1.5 * _STRENGTH * np.clip(1.6 * weight, 0.0, 1.0), 0.0, 1.0)
    drawn = base * (1.0 - cover) + shaded * cover
    return Image.fromarray(np.rint(np.clip(drawn, 0.0, 255.0)).astype(np.uint8))


def colour_bar() -> Image.Image:
    """A legend strip from low (left) to high (right), drawn as `overlay` draws it over a middle grey."""
    return overlay(Image.new("RGB", (96, 10), (176, 176, 176)), np.linspace(0.0, 1.0, 96)[None, :])


class Window(NamedTuple):
    """Part of a picture, as fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


class Part(NamedTuple):
    """A window with a number, which is also a colour's: equal numbers are alike."""

    window: Window
    number: int  # from 1
    likeness: float | None = None  # cosine with what has the same number in the query


# sky blue, yellow, vermilion, green: told apart with any colour vision (Okabe and Ito 2008)
PART_COLOURS = ((86, 180, 233), (240, 228, 66), (213, 94, 0), (0, 158, 115))


def with_parts(image: Image.Image, parts: Sequence[Part]) -> Image.Image:
    """A copy with each part outlined in the colour of its number, which stands in its corner, and its likeness."""
    drawn = image
    for part in parts:
        colour = PART_COLOURS[(part.number - 1) % len(PART_COLOURS)]
        drawn = outlined(drawn, part.window, colour=colour, wide=2)
        face, pen = font(max(11, round(max(image.size) / 14))), ImageDraw.Draw(drawn)
        words = f"{part.number}" if part.likeness is None else f"{part.number}: {part.likeness:.2f}"
        corner = (round(part.window.left * image.width) + 4, round(part.window.top * image.height) + 4)
        box = pen.textbbox(corner, words, font=face)
        pen.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), fill=colour)
        pen.text(corner, words, fill=(0, 0, 0), font=face)
    return drawn


def outlined(
    image: Image.Image, window: Window, *, colour: tuple[int, int, int] = (255, 255, 255), wide: int = 1
) -> Image.Image:
    """A copy with a line within a black one around the window: white is seen on dark and on bright photographs."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    lengths = (*image.size, *image.size)
    left, top, right, bottom = (round(part * (side - 1)) for part, side in zip(window, lengths, strict=True))
    line = max(wide, round(wide * max(image.size) / 150))
    for inset, ink, width in ((0, (0, 0, 0), 3 * line), (line, colour, line)):
        pen.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=ink, width=width)
    return drawn
