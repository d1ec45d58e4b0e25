"""Pictures with where the encoder looks: a slider from the picture to GradCAM and the rationale, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fgssl.drawing.figures import COMMON_WORDS, RATIONALE_WORDS, looked_words
from fgssl.drawing.maps import Map, Window
from fgssl.report.pictures import address, cells
from fgssl.report.sections import Section, render, short

SIDE = 288  # of a picture, in pixels
_TITLES = ("GradCAM of the loss", "rationale", "common direction", "class token")
TOLD = f"""Each square is one place of the encoder's feature map, as coarse as it is, coloured from the map's own \
lowest to its highest value. GradCAM: where the map moves the self-supervised loss of this picture. \
{RATIONALE_WORDS}."""


class Explained(NamedTuple):
    """A picture as the encoder sees it, its maps (h, w) where there are any, and the windows that it sees enlarged."""

    picture: Image.Image
    name: str
    gradcam: Map | None = None
    rationale: Map | None = None
    common: Map | None = None
    attention: Map | None = None
    windows: Sequence[Window] = ()


def maps(
    title: str, rows: Sequence[Explained], *, told: str = "", pool: str = "zoom", decided: str | None = None
) -> Section:
    """A slider each, and one for all; maps are drawn as cells, unsmoothed, and a flat one says so.

    `decided` is the field of the map that says where the windows of `pool` are.
    """
    kept = [_row(row) for row in rows]
    most = max((len(row["layers"]) for row in kept), default=0)
    stops = ["picture", *dict.fromkeys(layer[0] for row in kept for layer in row["layers"])]
    windows = any(row["windows"] for row in kept)
    words = [told, *([f"{COMMON_WORDS}."] if any(row.common is not None for row in rows) else [])]
    told = " ".join([*words, *([f"{looked_words(pool, decided)}."] if windows else [])]).strip()
    bar = cells(np.linspace(0.0, 1.0, 64)[None, :])
    return Section(
        title,
        render("maps.html", rows=kept, most=most, stops=stops, windows=windows, bar=bar, told=told, pool=pool),
        ("maps",),
    )


def _row(row: Explained) -> dict[str, Any]:
    """What the template takes."""
    both = zip(_TITLES, (row.gradcam, row.rationale, row.common, row.attention), strict=True)
    layers = [(name, cells(map_), "x".join(map(str, np.shape(map_)))) for name, map_ in both if map_ is not None]
    windows = [boxed(window) for window in row.windows]
    return {"source": address(row.picture, side=SIDE), "name": short(row.name), "layers": layers, "windows": windows}


def boxed(window: Window) -> str:
    """Where a window lies over its picture, as CSS."""
    left, top, right, bottom = (round(100 * min(1.0, max(0.0, part)), 2) for part in window)
    return f"left:{left}%;top:{top}%;width:{round(right - left, 2)}%;height:{round(bottom - top, 2)}%"
