"""The map of an embedding: a point a picture, with thumbnails, groups, and the neighbours of a chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.drawing.maps import Window
from fgssl.errors import FgsslError
from fgssl.report.sections import Section, render, short

LONGEST_NAME = 120  # characters: there are thousands of them, and a page has 5 MB
Rows = NDArray[np.integer[Any]] | Sequence[Sequence[int]]


class Colouring(NamedTuple):
    """One way to colour the points: by groups with names, or by a number."""

    title: str  # "class", "cluster", "distance to the nearest"
    values: Sequence[int] | Sequence[float] | NDArray[Any]  # (N,) places in `names`, -1 for none; or numbers
    names: Sequence[str] | None = None  # of the groups; None for numbers


class Neighbourhood(NamedTuple):
    """The nearest points of every point by one encoder."""

    title: str  # "after training"
    rows: Rows  # (N, k), nearest first


def embedding_map(
    title: str,
    positions: NDArray[Any],
    *,
    names: Sequence[str],
    thumbnails: Sequence[str | None] = (),
    colourings: Sequence[Colouring] = (),
    neighbours: Sequence[Neighbourhood] = (),
    windows: Sequence[Sequence[Window]] = (),
    told: str = "",
) -> Section:
    """A plane of points that is zoomed and dragged, by mouse, touch or keyboard.

    Pointing at one shows its picture and name; choosing one lists its neighbours, one line a `Neighbourhood` (the start
    before the trained one, say). Pictures take the place of points where there is room for them.

    Args:
        positions: (N, 2), any scale.
        names: (N,) as on the disk: they are escaped here.
        thumbnails: (N,) data: addresses, see `fgssl.report.thumbnails`; None for a point without.
        colourings: The first is shown first; the user chooses.
        neighbours: Rows of the same N points.
        windows: (N,) parts of each picture, outlined wherever its thumbnail is shown; or nothing.
        told: How the layout was made, what was sampled.

    Raises FgsslError: positions of another shape, or parts of another length.
    """
    places = np.asarray(positions, np.float64)
    count = len(names)
    lengths = [
        len(thumbnails) or count,
        len(windows) or count,
        *(len(each.values) for each in colourings),
        *(len(n.rows) for n in neighbours),
    ]
    if places.shape != (count, 2) or any(length != count for length in lengths):
        raise FgsslError(f"an embedding map of {count} names, positions {places.shape} and parts of {lengths}",
                         "give one row a picture to each")  # fmt: skip
    middle, extent = places.mean(0) if count else np.zeros(2), float(np.ptp(places, axis=0).max()) if count else 0.0
    scaled = np.nan_to_num((places - middle) / (extent or 1.0))
    content = {
        "x": scaled[:, 0].round(4).tolist(),
        "y": scaled[:, 1].round(4).tolist(),
        "names": [short(name, LONGEST_NAME) for name in names],
        "thumbnails": list(thumbnails),
        "windows": [[_percent(window) for window in each] for each in windows],
        "colourings": [_colouring(each) for each in colourings],
        "neighbours": [{"title": each.title, "rows": np.asarray(each.rows).tolist()} for each in neighbours],
    }
    body = render("embedding.html", content=content, count=count, told=told, colourings=[c.title for c in colourings])
    return Section(title, body, ("embedding",))


def _percent(window: Window) -> list[int]:
    """Left, top, width and height in percent of the picture."""
    left, top, right, bottom = (round(100 * min(1.0, max(0.0, edge))) for edge in window)
    return [left, top, right - left, bottom - top]


def _colouring(each: Colouring) -> dict[str, Any]:
    if each.names is None:
        values: list[Any] = [float(f"{value:.4g}") for value in np.asarray(each.values, np.float64)]
        return {"title": each.title, "values": values, "names": None}
    return {
        "title": each.title,
        "values": [*map(int, each.values)],
        "names": [short(name, LONGEST_NAME) for name in each.names],
    }
