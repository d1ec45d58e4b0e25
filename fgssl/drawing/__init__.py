"""Pictures for people: maps over photographs, captioned sheets, and the figures of a run. Pillow and NumPy only."""

from fgssl.drawing.curves import curve_sheet
from fgssl.drawing.figures import (
    ExplainRow,
    Neighbour,
    QueryRow,
    explain_sheet,
    overview_sheet,
    search_sheet,
    view_pairs_sheet,
)
from fgssl.drawing.maps import Map, Part, Window, outlined
from fgssl.drawing.save import PAGE, PAGE_START, PICTURE, save_png

__all__ = [
    "PAGE",
    "PAGE_START",
    "PICTURE",
    "ExplainRow",
    "Map",
    "Neighbour",
    "Part",
    "QueryRow",
    "Window",
    "curve_sheet",
    "explain_sheet",
    "outlined",
    "overview_sheet",
    "save_png",
    "search_sheet",
    "view_pairs_sheet",
]
