"""Pictures for people: maps over photographs, captioned sheets, and the figures of a run. Pillow and NumPy only."""

from __future__ import annotations

from fgssl.drawing.bands import GREEN, GREY, RED, Key, Panel, fit_image
from fgssl.drawing.figures import (
    ExplainRow,
    Neighbour,
    OverviewRow,
    SearchRow,
    explain_sheet,
    overview_sheet,
    search_sheet,
    view_pairs_sheet,
)
from fgssl.drawing.maps import colormap, colour_bar, heat, is_flat, overlay
from fgssl.drawing.projections import Map
from fgssl.drawing.save import PICTURE, save_png
from fgssl.drawing.sheets import contact_sheet, sheet
from fgssl.drawing.windows import Window, outlined

__all__ = [
    "GREEN",
    "GREY",
    "PICTURE",
    "RED",
    "ExplainRow",
    "Key",
    "Map",
    "Neighbour",
    "OverviewRow",
    "Panel",
    "SearchRow",
    "Window",
    "colormap",
    "colour_bar",
    "contact_sheet",
    "explain_sheet",
    "fit_image",
    "heat",
    "is_flat",
    "outlined",
    "overlay",
    "overview_sheet",
    "save_png",
    "search_sheet",
    "sheet",
    "view_pairs_sheet",
]
