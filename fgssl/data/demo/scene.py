"""The demo set's pictures but for their birds: the paper they are drawn on, backgrounds, distractors and light.

Nothing in this file knows the class of a picture, so nothing in it can tell the class. Points are in pixels of the
finished picture, x to the right and y down; the paper is SUPERSAMPLE times finer.
"""

from __future__ import annotations

import colorsys
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 128
SUPERSAMPLE = 3
SCENERY, OBJECT, PARTS = 0, 1, 2  # the layers a shape can belong to; where several meet in a pixel, the highest counts
BACKDROP = 150.0  # the grey that backgrounds are drawn towards
BACKGROUND_CONTRAST = 0.25

Colour: TypeAlias = tuple[int, int, int]
Points: TypeAlias = npt.NDArray[np.float64]  # (P, 2)
FloatMap: TypeAlias = npt.NDArray[np.float32]


class Paper:
    """A picture and, drawn with the same calls, the layer that is visible at each of its fine pixels."""

    def __init__(self, background: Image.Image, side: int = IMAGE_SIZE) -> None:
        self.side, fine = side, (side * SUPERSAMPLE, side * SUPERSAMPLE)
        sized = background.resize((side, side), Image.Resampling.BICUBIC)
        self.picture = sized.resize(fine, Image.Resampling.NEAREST)
        self.layers = Image.new("L", fine, SCENERY)
        self._pens = (ImageDraw.Draw(self.picture), ImageDraw.Draw(self.layers))

    def polygon(self, points: Points, colour: Colour, layer: int = SCENERY) -> None:
        self._draw("polygon", points * SUPERSAMPLE, colour, layer)

    def line(self, points: Points, colour: Colour, width: float, layer: int = SCENERY) -> None:
        thick = max(1, round(width * SUPERSAMPLE))
        self._draw("line", points * SUPERSAMPLE, colour, layer, width=thick, joint="curve")

    def disc(self, centre: Points, radius: float, colour: Colour) -> None:
        middle, reach = centre * SUPERSAMPLE, radius * SUPERSAMPLE
        self._draw("ellipse", np.concatenate([middle - reach, middle + reach]), colour, SCENERY)

    def _draw(self, shape: str, fine: Points, colour: Colour, layer: int, **options: Any) -> None:
        for pen, fill in zip(self._pens, (colour, layer), strict=True):
            getattr(pen, shape)(fine.ravel().tolist(), fill=fill, **options)

    def fill(self, texture: Image.Image, stencil: Image.Image, layer: int) -> None:
        """Paste a texture of the picture's size wherever the stencil (fine, black and white) is set."""
        self.picture.paste(texture.resize(stencil.size, Image.Resampling.NEAREST), (0, 0), stencil)
        self.layers.paste(layer, (0, 0), stencil)

    def visible_layers(self) -> npt.NDArray[np.uint8]:
        """The highest layer that shows in each pixel of the finished picture (S, S): a touched pixel counts."""
        fine, steps = np.asarray(self.layers), range(SUPERSAMPLE)
        rows = np.maximum.reduce([fine[step::SUPERSAMPLE] for step in steps])
        return np.asarray(np.maximum.reduce([rows[:, step::SUPERSAMPLE] for step in steps]))


def colour_of(hue: float, saturation: float, value: float) -> Colour:
    """RGB of a hue in turns and a saturation and value that are clipped to 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def noise(rng: np.random.Generator, rows: int, columns: int, side: int = IMAGE_SIZE) -> FloatMap:
    """Smooth random values of about 0..1: a (rows, columns) grid blown up to (side, side)."""
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))


def blend(first: Colour, second: Colour, weight: FloatMap) -> FloatMap:
    """Mix two colours by a map (S, S) of weights of the second -> (S, S, 3)."""
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return start + np.clip(weight, 0, 1)[..., None] * (end - start)


def to_picture(values: FloatMap) -> Image.Image:
    """Round a map (S, S, 3) of 0..255 to an RGB picture."""
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


class Season(NamedTuple):
    """The hues of one picture's plants and wood."""

    leaf: float
    leaf_saturation: float
    wood: Colour


def draw_season(rng: np.random.Generator) -> Season:
    """A season by chance, from spring green to autumn red."""
    leaf = float(rng.choice([0.24, 0.28, 0.33, 0.38, 0.14, 0.08, 0.03])) + rng.uniform(-0.025, 0.025)
    wood = colour_of(rng.uniform(0.04, 0.11), rng.uniform(0.1, 0.5), rng.uniform(0.25, 0.6))
    return Season(leaf, rng.uniform(0.25, 0.75), wood)


def leaf_colour(rng: np.random.Generator, season: Season, brightness: float = 1.0) -> Colour:
    """The colour of one leaf: near the season's, at a brightness by chance."""
    hue = season.leaf + rng.normal(0, 0.025)
    return colour_of(hue, season.leaf_saturation + rng.uniform(-0.15, 0.15), brightness * rng.uniform(0.35, 0.85))


def background(rng: np.random.Generator, season: Season) -> Image.Image:
    """One of six out-of-focus backgrounds: sky, foliage, bark, meadow, water, stone."""
    painters = (_sky, _foliage, _foliage, _bark, _meadow, _water, _stone)
    picture = painters[int(rng.integers(len(painters)))](rng, season)
    # out of focus: one that tells every picture from every other would leave an encoder no reason to look at the bird
    values = np.asarray(picture.filter(ImageFilter.BoxBlur(4)), np.float32)
    return to_picture(BACKDROP + BACKGROUND_CONTRAST * (values - BACKDROP))


def _sky(rng: np.random.Generator, season: Season) -> Image.Image:
    hue = float(rng.choice([0.55, 0.58, 0.61, 0.05, 0.92])) + rng.uniform(-0.03, 0.03)
    top = colour_of(hue, rng.uniform(0.15, 0.65), rng.uniform(0.55, 0.95))
    bottom = colour_of(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.02, 0.35), rng.uniform(0.75, 1.0))
    height = np.tile(np.linspace(0, 1, IMAGE_SIZE, dtype=np.float32)[:, None], IMAGE_SIZE)
    clouds = 0.6 * noise(rng, 4, 3) + 0.4 * noise(rng, 12, 8) - rng.uniform(0.35, 0.8)
    return to_picture(blend(top, bottom, height) + 160 * np.maximum(clouds, 0)[..., None])


def _foliage(rng: np.random.Generator, season: Season) -> Image.Image:
    depth = noise(rng, 3, 3)
    picture = to_picture(blend(leaf_colour(rng, season, 0.5), leaf_colour(rng, season, 1.1), depth))
    pen = ImageDraw.Draw(picture)
    brightness = rng.uniform(0.6, 1.2)
    for _ in range(int(rng.integers(16, 40))):
        (x, y), size = rng.uniform(0, IMAGE_SIZE, 2), rng.uniform(3, 14)
        pen.ellipse((x - size, y - size, x + size, y + size), fill=leaf_colour(rng, season, brightness))
    return picture.filter(ImageFilter.BoxBlur(rng.uniform(1.0, 5.0)))


def _bark(rng: np.random.Generator, season: Season) -> Image.Image:
    grain = 0.5 * noise(rng, 5, 24) + 0.3 * noise(rng, 14, 60) + 0.4 * noise(rng, 3, 4) - 0.1
    values = blend(shade(season.wood, 0.45), shade(season.wood, 1.45), grain)
    moss = rng.uniform(0.0, 0.9) * np.clip(4 * noise(rng, 7, 6) - 2.2, 0, 1)[..., None]
    return to_picture(values * (1 - moss) + moss * np.asarray(leaf_colour(rng, season), np.float32))


def _meadow(rng: np.random.Generator, season: Season) -> Image.Image:
    height = np.linspace(0, 1, IMAGE_SIZE, dtype=np.float32)[:, None]
    weight = 0.6 * height + 0.5 * noise(rng, 4, 4) + 0.3 * noise(rng, 8, 48) - 0.2
    picture = to_picture(blend(leaf_colour(rng, season, 1.3), leaf_colour(rng, season, 0.7), weight))
    pen = ImageDraw.Draw(picture)
    brightness = rng.uniform(0.7, 1.3)
    for _ in range(int(rng.integers(15, 50))):
        x, top, lean = rng.uniform(0, IMAGE_SIZE), rng.uniform(10, 120), rng.normal(0, 14)
        blade = (x - 1.5, IMAGE_SIZE, x + lean, top, x + 1.5, IMAGE_SIZE)
        pen.polygon(blade, fill=leaf_colour(rng, season, brightness))
    return picture.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 2.5)))


def _water(rng: np.random.Generator, season: Season) -> Image.Image:
    hue = float(rng.choice([0.47, 0.53, 0.58])) + rng.uniform(-0.03, 0.03)
    deep = colour_of(hue, rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.6))
    bright = colour_of(hue, rng.uniform(0.05, 0.4), rng.uniform(0.6, 1.0))
    ripples = 0.5 * noise(rng, 40, 6) + 0.35 * noise(rng, 14, 3) + 0.4 * noise(rng, 3, 2) - 0.15
    return to_picture(blend(deep, bright, ripples))


def _stone(rng: np.random.Generator, season: Season) -> Image.Image:
    base = colour_of(rng.uniform(0, 1), rng.uniform(0, 0.2), rng.uniform(0.35, 0.85))
    grain = 0.5 * noise(rng, 5, 5) + 0.3 * noise(rng, 16, 16) + 0.25 * noise(rng, 64, 64) - 0.05
    return to_picture(blend(shade(base, 0.55), shade(base, 1.3), grain))


def branch(paper: Paper, start: Points, end: Points, width: float, colour: Colour, bend: float) -> None:
    """A tapering branch with a lit upper and a dark lower side; `bend` is the sag of its middle in pixels."""
    steps = np.linspace(0, 1, 9)[:, None]
    spine = start + steps * (end - start) + np.array([0.0, 1.0]) * bend * np.sin(np.pi * steps)
    along = (end - start) / max(float(np.hypot(*(end - start))), 1.0)
    down = np.array([-along[1], along[0]]) * (1 if along[0] >= 0 else -1)
    side = down * width * (1 - 0.45 * steps)
    paper.polygon(np.concatenate([spine - side / 2, (spine + side / 2)[::-1]]), colour)
    paper.polygon(np.concatenate([spine + side * 0.15, (spine + side / 2)[::-1]]), shade(colour, 0.65))
    paper.polygon(np.concatenate([spine - side / 2, (spine - side * 0.25)[::-1]]), shade(colour, 1.3))


_LEAF = np.array([(0, 0), (0.2, 0.16), (0.5, 0.24), (0.8, 0.13), (1, 0), (0.8, -0.13), (0.5, -0.24), (0.2, -0.16)])


def distractor(paper: Paper, rng: np.random.Generator, season: Season, centre: Points, *, scale: float = 1.0) -> None:
    """A leaf (or two), a few berries or a flower of random colours near a point."""
    kind = rng.integers(4)
    angle, size = rng.uniform(0, 2 * np.pi), scale * rng.uniform(12, 24)
    if kind <= 1:
        for turn in (angle, angle + rng.uniform(0.6, 2.0))[: int(rng.integers(1, 3))]:
            across = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))]) * size
            colour = leaf_colour(rng, season, 1.1)
            paper.polygon(_LEAF @ across + centre, colour)
            paper.polygon(_LEAF[:5] @ across + centre, shade(colour, 0.8))
            paper.line(np.array([(0, 0), (0.95, 0)]) @ across + centre, shade(colour, 1.35), 0.7)
    elif kind == 2:
        colour = colour_of(rng.uniform(0, 1), rng.uniform(0.5, 0.95), rng.uniform(0.3, 0.95))
        for offset in scale * rng.uniform(-6, 6, (int(rng.integers(2, 6)), 2)):
            paper.disc(centre + offset, scale * 3.2, shade(colour, 0.75))
            paper.disc(centre + offset - scale * 0.4, scale * 2.6, colour)
            paper.disc(centre + offset - scale * 1.1, scale * 0.8, shade(colour, 1.6))
    else:
        colour = colour_of(rng.uniform(0, 1), rng.uniform(0.05, 0.8), rng.uniform(0.7, 1.0))
        for turn in angle + np.arange(5) * 2 * np.pi / 5:
            paper.disc(centre + scale * 3.4 * np.array([np.cos(turn), np.sin(turn)]), scale * 2.9, colour)
        paper.disc(centre, scale * 2.2, colour_of(0.13, 0.85, 0.85))


def light(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Random exposure, colour of the light, slope of the light, dappled shadow and sensor noise, pixel by pixel."""
    side = picture.width
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    slope = rng.uniform(-0.22, 0.22, 2).astype(np.float32)
    gain = 1 + slope[0] * axis[None, :] + slope[1] * axis[:, None]
    if rng.random() < 0.4:
        gain = gain * (1 - rng.uniform(0.15, 0.45) * np.clip(6 * noise(rng, 5, 5, side) - 3, 0, 1))
    tint = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    haze = rng.uniform(0, 22)
    values = np.asarray(picture, np.float32) * gain[..., None] * tint.astype(np.float32) * (1 - haze / 255) + haze
    grain = rng.standard_normal((side, side), dtype=np.float32) * rng.uniform(1, 5)
    return to_picture(values.astype(np.float32) + grain[..., None])
