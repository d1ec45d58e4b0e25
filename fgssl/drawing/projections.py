"""The maps of a rationale's K projections as one block of numbered small multiples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fgssl.drawing.maps import overlay
from fgssl.drawing.sheets import HAIRLINE, INK, WHITE, fit_image
from fgssl.drawing.text import font, text_width

Map = npt.NDArray[Any]

_GAP = 6


def projection_block(image: Image.Image, projections: Map, size: int) -> Image.Image:
    """The K maps (K, h, w) as numbered small multiples over the image, all on one scale: their maximum is the whole.

    The block is `size` pixels high: as many lines of cells as have at least 96 pixels.
    """
    lines = max(1, (size + _GAP) // (96 + _GAP))
    cell = (size - (lines - 1) * _GAP) // lines
    pitch, across, face = cell + _GAP, -(-len(projections) // lines), font(11)
    block = Image.new("RGB", (across * pitch - _GAP, size), WHITE)
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
