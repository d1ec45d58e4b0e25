"""Pictures for people: maps over photographs, captioned sheets, and the figures of a run. Pillow and NumPy only."""

from __future__ import annotations

from fgssl.drawing.figures import (
    ExplainRow,
    Neighbour,
    QueryRow,
    explain_sheet,
    overview_sheet,
    search_sheet,
    view_pairs_sheet,
)
from fgssl.drawing.maps import Map, Window, colormap, colour_bar, heat, is_flat, overlay
from fgssl.drawing.save import PICTURE, save_png
from fgssl.drawing.sheets import GREEN, GREY, RED, Key, Panel, fit_image, sheet

__all__ = [
    "GREEN",
    "GREY",
    "PICTURE",
    "RED",
    "ExplainRow",
    "Key",
    "Map",
    "Neighbour",
    "Panel",
    "QueryRow",
    "Window",
    "colormap",
    "colour_bar",
    "explain_sheet",
    "fit_image",
    "heat",
    "is_flat",
    "overlay",
    "overview_sheet",
    "save_png",
    "search_sheet",
    "sheet",
    "view_pairs_sheet",
]
