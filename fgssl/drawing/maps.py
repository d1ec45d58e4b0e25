"""What is drawn over a photograph: a coarse map, upsampled and blended; many small ones; an outlined window."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fgssl.drawing.sheets import HAIRLINE, INK, WHITE, fit_image
from fgssl.drawing.text import font, text_width
from fgssl.errors import FgsslError

Map = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
MapStyle = Literal["heat", "dim"]

# Night blue, violet, red, orange, pale yellow. Lightness rises evenly along the whole table, so that the order of two
# colours is seen without a legend, in greyscale print and with any colour vision.
_ANCHORS = (
    (8, 6, 34), (48, 16, 100), (106, 24, 126), (164, 38, 106), (212, 64, 66), (240, 104, 30), (252, 154, 14),
    (254, 206, 44), (255, 248, 150),
)  # fmt: skip
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_CELL_GAP = 6  # between small multiples
_FLAT = 1e-3  # a map that varies by less than this share of its largest value has nothing to show


def colormap(values: Map) -> npt.NDArray[np.uint8]:
    """Colours of values in [0, 1] (clipped): an array (...,) becomes (..., 3) of RGB bytes, dark to light."""
    positions = np.linspace(0.0, 1.0, len(_ANCHORS))
    anchors = np.asarray(_ANCHORS, dtype=np.float64)
    clipped = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    channels = [np.interp(clipped, positions, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


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


def heat(values: Map, size: tuple[int, int], *, low: float | None = None, high: float | None = None) -> FloatArray:
    """A map brought to the size of its image, smoothly, in [0, 1].

    The map is first scaled (its minimum to 0, its maximum to 1), then upsampled bicubically with cells centred where
    the convolution put them (the first cell of w covers the first 1/w of the image), then clipped.

    Args:
        values: (h, w) map over the whole of the image. Places that are not finite count as the lowest.
        size: (width, height) of the image in pixels.
        low: Value shown as 0; the map's minimum by default. Pass `low` and `high` to draw several maps on one scale.
        high: Value shown as 1; the map's maximum by default.

    Returns:
        (height, width). A flat map on its own scale is 0 everywhere: stretching its rounding noise to full contrast
        would show structure that is not there.

    Raises:
        FgsslError: `values` is not one non-empty map.
    """
    grid = _checked(values)
    bottom = float(grid.min()) if low is None else low
    top = float(grid.max()) if high is None else high
    if not top > bottom or (low is None and high is None and is_flat(grid)):
        return np.zeros(size[::-1])
    scaled = ((grid - bottom) / (top - bottom)).astype(np.float32)
    resized = Image.fromarray(scaled).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized, dtype=np.float64), 0.0, 1.0)


def overlay(
    image: Image.Image,
    values: Map,
    *,
    strength: float = 0.55,
    style: MapStyle = "heat",
    low: float | None = None,
    high: float | None = None,
) -> Image.Image:
    """The map over its photograph, at the photograph's size.

    `heat`: the photograph loses most of its colour (a red apple is no hot place) and takes that of the map, shaded by
    its own light, so that edges stay visible under the hottest place. `dim`: the photograph stays as it is where the
    map is high and sinks into dark grey where it is low, as a weighted pooling would see it.

    Args:
        image: The view the map was computed on (the crop, not the whole file).
        values: (h, w) map, as in `heat`. A flat one leaves the photograph exactly as it is, in both styles.
        strength: 0 leaves the photograph, 1 covers the hottest place fully (`dim`: blackens the lowest).
        style: `heat` or `dim`.
        low: As in `heat`.
        high: As in `heat`.
    """
    photograph = image.convert("RGB")
    if low is None and high is None and is_flat(values):
        return photograph.copy()
    weight = heat(values, photograph.size, low=low, high=high)[..., None]  # (H, W, 1)
    pixels = np.asarray(photograph, dtype=np.float64)
    light = (pixels @ _LUMINANCE)[..., None]
    if style == "dim":
        cover = np.clip(1.3 * strength, 0.0, 1.0)
        seen = weight**0.8
        drawn = pixels * seen + light * (1.0 - cover) * (1.0 - seen)
    else:
        grey = np.clip(1.2 * strength, 0.0, 1.0)
        base = pixels * (1.0 - grey) + light * grey
        shaded = colormap(weight[..., 0]) * (0.86 + 0.24 * light / 255.0)
        cover = np.clip(1.5 * strength * np.clip(1.6 * weight, 0.0, 1.0), 0.0, 1.0)
        drawn = base * (1.0 - cover) + shaded * cover
    return Image.fromarray(np.rint(np.clip(drawn, 0.0, 255.0)).astype(np.uint8))


def projection_block(image: Image.Image, projections: Map, size: int) -> Image.Image:
    """The K maps (K, h, w) as numbered small multiples over the image, all on one scale: their maximum is the whole.

    The block is `size` pixels high: as many lines of cells as have at least 96 pixels.
    """
    lines = max(1, (size + _CELL_GAP) // (96 + _CELL_GAP))
    cell = (size - (lines - 1) * _CELL_GAP) // lines
    pitch, across, face = cell + _CELL_GAP, -(-len(projections) // lines), font(11)
    block = Image.new("RGB", (across * pitch - _CELL_GAP, size), WHITE)
    draw = ImageDraw.Draw(block)
    small = fit_image(image, (cell, cell))
    finite = np.asarray(projections, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for number, values in enumerate(projections):
        x, y = number % across * pitch, number // across * pitch
        place = (x + (cell - small.width) // 2, y + (cell - small.height) // 2)
        block.paste(overlay(small, values, low=low, high=high), place)
        draw.rectangle((x, y, x + text_width(str(number), face) + 5, y + 13), fill=WHITE, outline=HAIRLINE)
        draw.text((x + 3, y), str(number), fill=INK, font=face)
    return block


def colour_bar() -> Image.Image:
    """A legend strip from low (left) to high (right), drawn as `overlay` draws it over a middle grey."""
    return overlay(Image.new("RGB", (96, 10), (176, 176, 176)), np.linspace(0.0, 1.0, 96)[None, :])


class Window(NamedTuple):
    """Part of a picture, as fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


def outlined(image: Image.Image, window: Window) -> Image.Image:
    """A copy with a white line within a black one around the window: seen on dark and on bright photographs."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    left, top, right, bottom = (
        round(fraction * (length - 1)) for fraction, length in zip(window, (*image.size, *image.size), strict=True)
    )
    line = max(1, round(max(image.size) / 150))
    for inset, colour, width in ((0, (0, 0, 0), 3 * line), (line, (255, 255, 255), line)):
        pen.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=colour, width=width)
    return drawn
