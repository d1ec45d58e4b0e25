"""The maps of a rationale's K projections as one block of numbered small multiples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fgssl.drawing.bands import HAIRLINE, INK, WHITE, fit_image
from fgssl.drawing.maps import overlay
from fgssl.drawing.text import fit_lines, font, text_width

Map = npt.NDArray[Any]

_CELL_GAP = 6


def projection_cell(size: int) -> int:
    """Side of a small multiple: as many lines of at least 96 pixels as a panel is high."""
    lines = max(1, (size + _CELL_GAP) // (96 + _CELL_GAP))
    return (size - (lines - 1) * _CELL_GAP) // lines


def block_width(count: int, cell: int, size: int) -> int:
    """Width in pixels of a block of `count` cells that is `size` pixels high."""
    lines = (size + _CELL_GAP) // (cell + _CELL_GAP)
    across = -(-count // lines)
    return across * (cell + _CELL_GAP) - _CELL_GAP


def projection_block(image: Image.Image, projections: Map, cell: int, size: int) -> Image.Image:
    """The K maps (K, h, w) as numbered small multiples over the image, all on one scale: their maximum is the whole."""
    width = block_width(len(projections), cell, size)
    across = (width + _CELL_GAP) // (cell + _CELL_GAP)
    block = Image.new("RGB", (width, size), WHITE)
    draw = ImageDraw.Draw(block)
    small = fit_image(image, (cell, cell))
    finite = np.asarray(projections, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for number, values in enumerate(projections):
        x, y = number % across * (cell + _CELL_GAP), number // across * (cell + _CELL_GAP)
        place = (x + (cell - small.width) // 2, y + (cell - small.height) // 2)
        block.paste(overlay(small, values, low=low, high=high), place)
        _draw_number(draw, number, x, y)
    return block


def _draw_number(draw: ImageDraw.ImageDraw, number: int, x: int, y: int) -> None:
    face = font(11)
    for line in fit_lines(str(number), face, 60):
        draw.rectangle((x, y, x + text_width(line, face) + 5, y + 13), fill=WHITE, outline=HAIRLINE)
        draw.text((x + 3, y), line, fill=INK, font=face)
