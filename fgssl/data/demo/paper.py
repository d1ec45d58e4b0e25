"""What the demo set's pictures are drawn with: paper that remembers its layers, frames, smooth shapes and colours.

Points are in pixels of the finished picture, x to the right and y down; the paper is SUPERSAMPLE times finer.
"""

from __future__ import annotations

import colorsys
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

IMAGE_SIZE = 128
SUPERSAMPLE = 3
SCENERY, OBJECT, PARTS = 0, 1, 2  # the layers a shape can belong to; where several meet in a pixel, the highest counts

Tone: TypeAlias = tuple[float, float, float]  # hue, saturation, value
Colour: TypeAlias = tuple[int, int, int]
Points: TypeAlias = npt.NDArray[np.float64]  # (P, 2)
FloatMap: TypeAlias = npt.NDArray[np.float32]


class Paper:
    """A picture and, drawn with the same calls, the layer that is visible at each of its fine pixels.

    Args:
        background: RGB picture of IMAGE_SIZE pixels to draw on.
    """

    def __init__(self, background: Image.Image) -> None:
        fine = IMAGE_SIZE * SUPERSAMPLE
        self.picture = background.resize((fine, fine), Image.Resampling.NEAREST)
        self.layers = Image.new("L", (fine, fine), SCENERY)
        self._pens = (ImageDraw.Draw(self.picture), ImageDraw.Draw(self.layers))

    def polygon(self, points: Points, colour: Colour, layer: int = SCENERY) -> None:
        flat = (points * SUPERSAMPLE).ravel().tolist()
        self._pens[0].polygon(flat, fill=colour)
        self._pens[1].polygon(flat, fill=layer)

    def line(self, points: Points, colour: Colour, width: float, layer: int = SCENERY) -> None:
        flat = (points * SUPERSAMPLE).ravel().tolist()
        thick = max(1, round(width * SUPERSAMPLE))
        self._pens[0].line(flat, fill=colour, width=thick, joint="curve")
        self._pens[1].line(flat, fill=layer, width=thick, joint="curve")

    def disc(self, centre: Points, radius: float, colour: Colour, layer: int = SCENERY) -> None:
        x, y = (centre * SUPERSAMPLE).tolist()
        box = (x - radius * SUPERSAMPLE, y - radius * SUPERSAMPLE, x + radius * SUPERSAMPLE, y + radius * SUPERSAMPLE)
        self._pens[0].ellipse(box, fill=colour)
        self._pens[1].ellipse(box, fill=layer)

    def fill(self, texture: Image.Image, stencil: Image.Image, layer: int) -> None:
        """Paste a texture of IMAGE_SIZE pixels wherever the stencil (fine, black and white) is set."""
        self.picture.paste(texture.resize(stencil.size, Image.Resampling.NEAREST), (0, 0), stencil)
        self.layers.paste(layer, (0, 0), stencil)

    def visible_layers(self) -> npt.NDArray[np.uint8]:
        """The highest layer that shows in each pixel of the finished picture (S, S): a touched pixel counts."""
        fine = np.asarray(self.layers)
        rows = np.maximum.reduce([fine[step::SUPERSAMPLE] for step in range(SUPERSAMPLE)])
        pixels: npt.NDArray[np.uint8] = np.maximum.reduce([rows[:, step::SUPERSAMPLE] for step in range(SUPERSAMPLE)])
        return pixels


def colour_of(hue: float, saturation: float, value: float) -> Colour:
    """The RGB colour of a hue in turns and a saturation and value that are clipped to 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def noise(rng: np.random.Generator, rows: int, columns: int) -> FloatMap:
    """Smooth random values of about 0..1: a (rows, columns) grid blown up to (IMAGE_SIZE, IMAGE_SIZE)."""
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def blend(first: Colour, second: Colour, weight: FloatMap) -> FloatMap:
    """Mix two colours by a map (S, S) of weights of the second -> (S, S, 3)."""
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return start + np.clip(weight, 0, 1)[..., None] * (end - start)


def to_picture(values: FloatMap) -> Image.Image:
    """Round a map (S, S, 3) of 0..255 to an RGB picture."""
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def rotation(angle: float) -> Points:
    """The (2, 2) matrix that turns by an angle in radians."""
    return np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])


class Frame(NamedTuple):
    """An affine map from a shape's own coordinates to pixels of the finished picture."""

    matrix: Points  # (2, 2)
    origin: Points  # (2,)

    def place(self, points: Points) -> Points:
        """Points (P, 2) of this frame in pixels; also one point (2,)."""
        placed: Points = points @ self.matrix.T + self.origin
        return placed

    def turned(self, pivot: Points, angle: float, size: float = 1.0) -> Frame:
        """A frame inside this one: its origin at `pivot`, turned by `angle` radians, `size` times as large."""
        return Frame(self.matrix @ rotation(angle) * size, self.place(pivot))


def smooth(corners: list[tuple[float, float]], steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the corners -> (steps * corners, 2)."""
    p1 = np.array(corners)[:, None]
    p0, p2, p3 = (np.roll(p1, shift, axis=0) for shift in (1, -1, -2))
    t = np.arange(steps)[None, :, None] / steps
    curve: Points = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return 0.5 * curve.reshape(-1, 2)


def shifted(base: Tone, change: Tone) -> Colour:
    """The colour of a tone (hue, saturation, value) moved by another."""
    return colour_of(base[0] + change[0], base[1] + change[1], base[2] + change[2])
