"""Pictures inside a page, as data: addresses, within so many bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from fgssl.drawing.maps import Map, colormap, is_flat

SIDES = (96, 80, 64, 48, 40, 32)  # of a thumbnail, in pixels: the first that fits is taken
QUALITY = 70


def address(picture: Image.Image, *, side: int | None = None, quality: int = QUALITY) -> str:
    """A picture as a data: address (WebP), at most `side` pixels long."""
    ready = picture.convert("RGB")
    if side is not None:
        ready.thumbnail((side, side), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    ready.save(written, "WEBP", quality=quality, method=4)
    return _encoded("webp", written.getvalue())


def thumbnails(pictures: Iterable[Image.Image | None], *, budget: int) -> list[str | None]:
    """Small pictures as data: addresses that take no more than `budget` bytes together.

    They are as large, 96 to 32 pixels, as the budget allows; where even the smallest exceed it, those spread evenly
    over the list keep theirs, and the others are None, as is a picture that is None. Pictures are held small alone,
    so that any number may come from a generator.
    """
    kept = [None if each is None else _small(each, SIDES[0]) for each in pictures]
    present = [place for place, each in enumerate(kept) if each is not None]
    found: list[str | None] = [None] * len(kept)
    if not present:
        return found
    probe = present[:: max(1, len(present) // 32)]
    for side in SIDES:
        # by a few first: all are encoded once or twice, not at every size
        guess = sum(len(_thumbnail(kept[place], side)) for place in probe) / len(probe) * len(present)
        if guess > 1.1 * budget and side != SIDES[-1]:
            continue
        made = [_thumbnail(kept[place], side) for place in present]
        if sum(map(len, made)) <= budget:
            break
    else:
        room = max(1, budget // max(map(len, made)))
        chosen = sorted(set(np.linspace(0, len(present) - 1, min(room, len(present))).round().astype(int).tolist()))
        chosen = chosen if room * max(map(len, made)) <= budget else []
        present, made = [present[place] for place in chosen], [made[place] for place in chosen]
    for place, text in zip(present, made, strict=True):
        found[place] = text
    return found


def spread(total: int, most: int) -> list[int]:
    """At most so many places, spread evenly over `total`, in order."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)).tolist() if total else []


def cells(values: Map, *, opacity: float = 1.0) -> str | None:
    """A map (h, w) as a picture of h x w pixels, one a cell, dark to light from its lowest to its highest value.

    Shown enlarged without smoothing: a 3 x 3 map that is smoothed looks as if it knew more than nine places. None for a
    flat map, which prefers no place.
    """
    if is_flat(values):
        return None
    grid = np.asarray(values, np.float64)
    grid = np.where(np.isfinite(grid), grid, np.nanmin(np.where(np.isfinite(grid), grid, np.nan)))
    scaled = (grid - grid.min()) / np.ptp(grid)
    alpha = np.full((*scaled.shape, 1), round(255 * opacity), np.uint8)
    written = io.BytesIO()
    Image.fromarray(np.concatenate([colormap(scaled), alpha], 2)).save(written, "PNG", optimize=True)
    return _encoded("png", written.getvalue())


def _small(picture: Image.Image, side: int) -> Image.Image:
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _thumbnail(picture: Image.Image | None, side: int) -> str:
    assert picture is not None
    return address(picture, side=side, quality=QUALITY if side > 48 else 60)


def _encoded(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
