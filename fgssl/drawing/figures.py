"""The figures fgssl writes: pairs of views, the overview of a run, explained images, search results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from fgssl.drawing.maps import Map, Part, Window, colour_bar, is_flat, outlined, overlay, with_parts
from fgssl.drawing.sheets import GREEN, GREY, INK, RED, WHITE, Colour, Key, Mark, Panel, fit_image, sheet

SCALE_WORDS = "low to high, each map on its own scale"
RATIONALE_WORDS = "Rationale: the weight the fitted branch gives each place when features are pooled"
PARTS_WORDS = "Outlines: the parts that were looked at; number and colour of a hit's are those of the query's likest"
WINDOW_WORDS = "Outline: the window that --pool zoom sees enlarged, at the map's mean place, drawn to the middle"
# the maps a row may have: field, title of the column, what the legend says
_MAPS = (
    ("gradcam", "GradCAM of the loss", "GradCAM: where the feature map moves the self-supervised loss of this image"),
    ("rationale", "rationale", RATIONALE_WORDS),
)
# of a hit, by whether its label agrees: a frame and a mark
_FRAMES: dict[bool | None, tuple[Colour, Mark | None]] = {
    None: (GREY, None), True: (GREEN, "check"), False: (RED, "cross")
}  # fmt: skip
_PAIR_GAP = 4  # between a picture and its map below


class Neighbour(NamedTuple):
    """One retrieved image; whether its label agrees with the query's, its similarity, its map (h, w), where known."""

    image: Image.Image
    caption: str = ""
    agrees: bool | None = None
    score: float | None = None
    rationale: Map | None = None
    parts: Sequence[Part] = ()  # what was looked at, by the number of the query's part that it is like


class QueryRow(NamedTuple):
    """One query, its maps (h, w) where there are any, and what was found for it, best first."""

    image: Image.Image
    caption: str = ""
    hits: Sequence[Neighbour] = ()
    rationale: Map | None = None
    gradcam: Map | None = None
    parts: Sequence[Part] = ()


class ExplainRow(NamedTuple):
    """One image to explain: its view, its maps (h, w), and what zoom looks at."""

    image: Image.Image
    caption: str = ""
    gradcam: Map | None = None
    rationale: Map | None = None
    window: Window | None = None


def view_pairs_sheet(
    pairs: Sequence[tuple[Image.Image, Image.Image, Image.Image]],
    captions: Sequence[str] = (),
    *,
    title: str = "View pairs",
) -> Image.Image:
    """Each image beside the two random views that training compares, all as the model would see them."""
    wide = 2 if len(pairs) >= 4 else 1
    panels = [Panel(image) for views in pairs for image in views]
    for number, caption in enumerate(captions):
        panels[3 * number] = panels[3 * number]._replace(caption=caption)
    return sheet(
        [panels[first : first + 3 * wide] for first in range(0, len(panels), 3 * wide)],
        column_titles=["image", "view 1", "view 2"] * wide,
        title=title,
        panel_size=160,
        separators=[3] if wide == 2 else [],
        caption_lines=1,
    )


def overview_sheet(rows: Sequence[QueryRow], *, title: str = "Overview") -> Image.Image:
    """What a run learned to look at, and what it finds alike: each test image, its maps, its nearest neighbours.

    Columns of maps that no row has are left out. Neighbours are framed green and checked where the label agrees, red
    and crossed where it does not, grey without labels.
    """
    size, maps = 144, _Maps(rows)
    most = max((len(row.hits) for row in rows), default=0)
    return sheet(
        [[Panel(row.image, row.caption), *maps.panels(row, size), *map(_neighbour_panel, row.hits)] for row in rows],
        column_titles=["image", *maps.titles, *_ranks("nearest", most)],
        title=title,
        legend=[*maps.scale, *_label_legend(rows), *maps.meanings],
        panel_size=size,
        separators=[1 + len(maps.titles)] if most else [],
        rules=True,
    )


def explain_sheet(rows: Sequence[ExplainRow], *, title: str | None = None) -> Image.Image:
    """Image, GradCAM of the self-supervised loss and rationale side by side, the larger the fewer images there are."""
    size, maps = 448 if len(rows) == 1 else 320 if len(rows) <= 3 else 224, _Maps(rows)
    grid = []
    for row in rows:
        image = row.image if row.window is None else outlined(fit_image(row.image, (size, size)), row.window)
        grid.append([Panel(image, row.caption), *maps.panels(row, size)])
    windows = [Key(None, WINDOW_WORDS)] if any(row.window is not None for row in rows) else []
    return sheet(
        grid,
        column_titles=["image", *maps.titles],
        title=title,
        legend=[*maps.scale, *maps.meanings, *windows],
        panel_size=size,
        caption_lines=1 if len(rows) == 1 else 2,
    )


def search_sheet(
    rows: Sequence[QueryRow], *, title: str = "Search", footer: str | None = None, panel_size: int = 160
) -> Image.Image:
    """Queries at the left, their hits at the right, up to eight a line; each above its rationale, if any has one."""
    most = max((len(row.hits) for row in rows), default=0)
    wide = max(1, min(most, 8))
    mapped = any(row.rationale is not None or any(hit.rationale is not None for hit in row.hits) for row in rows)

    def pair(panel: Panel, values: Map | None, parts: Sequence[Part]) -> Panel:
        if parts:
            panel = panel._replace(image=with_parts(fit_image(panel.image, (panel_size, panel_size)), parts))
        return panel._replace(image=_over_map(panel.image, values, panel_size)) if mapped else panel

    grid: list[list[Panel | None]] = []
    for row in rows:
        hits = [pair(_neighbour_panel(hit), hit.rationale, hit.parts) for hit in row.hits]
        for first in range(0, max(1, len(hits)), wide):
            query = pair(Panel(row.image, row.caption, INK), row.rationale, row.parts) if first == 0 else None
            grid.append([query, *hits[first : first + wide]])
    map_legend = [Key(colour_bar(), SCALE_WORDS), Key(None, RATIONALE_WORDS)] if mapped else []
    map_legend += [Key(None, PARTS_WORDS)] if any(row.parts for row in rows) else []
    return sheet(
        grid,
        column_titles=["query", *_ranks("best hit", most if most <= wide else 1)],
        title=title,
        legend=[*_label_legend(rows), *map_legend],
        footer=footer,
        panel_size=2 * panel_size + _PAIR_GAP if mapped else panel_size,
        panel_width=panel_size,
        separators=[1] if most else [],
        rules=len(rows) > 1 and most <= wide,
        caption_lines=3 if mapped else 2,
    )


def _ranks(first: str, count: int) -> list[str]:
    return [first, *map(str, range(2, count + 1))][:count]


def _over_map(image: Image.Image, values: Map | None, size: int) -> Image.Image:
    """A picture above the same picture under its map; without a map the lower place stays white."""
    picture = fit_image(image, (size, size))
    both = Image.new("RGB", (picture.width, 2 * picture.height + _PAIR_GAP), WHITE)
    both.paste(picture, (0, 0))
    if values is not None:
        both.paste(overlay(picture, values), (0, picture.height + _PAIR_GAP))
    return both


class _Maps:
    """The columns of maps that any of the rows has, and their part of the legend."""

    def __init__(self, rows: Sequence[QueryRow] | Sequence[ExplainRow]) -> None:
        columns = [column for column in _MAPS if any(getattr(row, column[0]) is not None for row in rows)]
        self._fields, self.titles = [column[0] for column in columns], [column[1] for column in columns]
        self.scale = [Key(colour_bar(), SCALE_WORDS)] if columns else []
        self.meanings = [Key(None, column[2]) for column in columns]

    def panels(self, row: QueryRow | ExplainRow, size: int) -> list[Panel | None]:
        """The maps over the image, drawn at the size they are shown at, so that the heat is as sharp as the sheet."""
        image, maps = fit_image(row.image, (size, size)), [getattr(row, field) for field in self._fields]
        flat = "flat: no place preferred"
        return [None if map_ is None else Panel(overlay(image, map_), flat if is_flat(map_) else "") for map_ in maps]


def _neighbour_panel(neighbour: Neighbour) -> Panel:
    words = ["" if neighbour.score is None else f"{neighbour.score:.2f}", neighbour.caption]
    return Panel(neighbour.image, " · ".join(filter(None, words)), *_FRAMES[neighbour.agrees])


def _label_legend(rows: Sequence[QueryRow]) -> list[Key]:
    """What the frames say, where any hit has a label to compare."""
    if all(hit.agrees is None for row in rows for hit in row.hits):
        return []
    keys = []
    for colour, words in ((GREEN, "green, check: same class"), (RED, "red, cross: another class")):
        square = Image.new("RGB", (13, 13), WHITE)
        ImageDraw.Draw(square).rectangle((0, 0, 12, 12), outline=colour, width=3)
        keys.append(Key(square, words))
    return keys
