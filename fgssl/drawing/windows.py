"""A window of a picture outlined, so that it is seen on dark and on bright photographs."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageDraw


class Window(NamedTuple):
    """Part of a picture, as fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


def outlined(image: Image.Image, window: Window) -> Image.Image:
    """A copy of the picture with a white line within a black one around the window."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    left, top, right, bottom = (
        round(fraction * (length - 1)) for fraction, length in zip(window, (*image.size, *image.size), strict=True)
    )
    line = max(1, round(max(image.size) / 150))
    for inset, colour, width in ((0, (0, 0, 0), 3 * line), (line, (255, 255, 255), line)):
        pen.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=colour, width=width)
    return drawn
