"""The figures fgssl writes: pairs of views, the overview of a run, explained images, search results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from fgssl.drawing.maps import Map, Part, Window, colour_bar, is_flat, outlined, overlay, with_parts
from fgssl.drawing.sheets import GREEN, GREY, INK, RED, WHITE, Colour, Key, Mark, Panel, fit_image, sheet

SCALE_WORDS = "low to high, each map on its own scale; its squares are all the places it knows"
RATIONALE_WORDS = "Rationale: the weight the fitted branch gives each place when features are pooled"
COMMON_WORDS = "Common direction: how far a place lies along what the places of all pictures share"
FLAT_WORDS = "flat: no place preferred"
PARTS_WORDS = "Outlines: what --pool {pool} sees enlarged{by}"
MATCH_WORDS = "Number and colour of a hit's outline are those of the query's likest, with their cosine"
# the maps a row may have: field, title of the column, what the legend says
_MAPS = (
    ("gradcam", "GradCAM of the loss", "GradCAM: where the feature map moves the self-supervised loss of this image"),
    ("rationale", "rationale", RATIONALE_WORDS),
    ("common", "common direction", COMMON_WORDS),
    ("attention", "class token", "Class token: the mean attention that the last block's class token pays each place"),
)
# how a map decides where windows are
_DECISIONS = {
    ("zoom", "rationale"): ", at the mean place of the rationale, drawn to the middle",
    ("zoom", "common"): ", where it holds most of the common direction's map",
    ("parts", "rationale"): ", at the peaks of the rationale",
    ("parts", "common"): ", at the peaks of the common direction's map",
    ("zoom:again", "rationale"): ", moved by the rationale of what it showed",
    ("zoom:again", "common"): ", moved by the common direction's map of what it showed",
    ("zoom", None): ", in the middle",
    ("parts", None): ", in the middle",
    ("zoom:again", None): ", in the middle",
}
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
    map: Map | None = None
    parts: Sequence[Part] = ()  # what was looked at, by the number of the query's part that it is like


class QueryRow(NamedTuple):
    """One query, its maps (h, w) where there are any, and what was found for it, best first."""

    image: Image.Image
    caption: str = ""
    hits: Sequence[Neighbour] = ()
    rationale: Map | None = None
    gradcam: Map | None = None
    common: Map | None = None
    attention: Map | None = None
    map: Map | None = None  # drawn below it on the sheet of a search
    parts: Sequence[Part] = ()


class ExplainRow(NamedTuple):
    """One image to explain: its view, its maps (h, w), what is looked at again, and the map that decides it."""

    image: Image.Image
    caption: str = ""
    gradcam: Map | None = None
    rationale: Map | None = None
    common: Map | None = None
    attention: Map | None = None
    windows: Sequence[Window] = ()
    decided: str | None = None  # by the map of that field


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


def explain_sheet(rows: Sequence[ExplainRow], *, title: str | None = None, pool: str = "zoom") -> Image.Image:
    """Image and maps side by side, the larger the fewer images there are; what `pool` sees enlarged is outlined."""
    size, maps = 448 if len(rows) == 1 else 320 if len(rows) <= 3 else 224, _Maps(rows)
    decided = next((row.decided for row in rows if row.windows), None)
    words = [Key(None, looked_words(pool, decided))] if any(row.windows for row in rows) else []
    grid = [[Panel(_outlined(row.image, row.windows, size), row.caption), *maps.panels(row, size)] for row in rows]
    return sheet(
        grid,
        column_titles=["image", *maps.titles],
        title=title,
        legend=[*maps.scale, *maps.meanings, *words],
        panel_size=size,
        caption_lines=1 if len(rows) == 1 else 2,
    )


def looked_words(pool: str, decided: str | None) -> str:
    """What outlines are, and by which map (`rationale` or `common`) they are where they are."""
    return PARTS_WORDS.format(pool=pool, by=_DECISIONS.get((pool, decided), ""))


def _outlined(image: Image.Image, windows: Sequence[Window], size: int) -> Image.Image:
    """The image with one window as a white line, several in colours and numbered."""
    fitted = fit_image(image, (size, size)) if windows else image
    if len(windows) == 1:
        return outlined(fitted, windows[0])
    return with_parts(fitted, [Part(window, number) for number, window in enumerate(windows, 1)])


def search_sheet(
    rows: Sequence[QueryRow],
    *,
    title: str = "Search",
    footer: str | None = None,
    panel_size: int = 160,
    pool: str = "zoom",
    decided: str | None = None,
) -> Image.Image:
    """Queries at the left, their hits at the right, up to eight a line; each above its `map`, if any has one.

    What `pool` looked at again, by the map of the field `decided`, is outlined and numbered by what is alike.
    """
    most = max((len(row.hits) for row in rows), default=0)
    wide = max(1, min(most, 8))
    mapped = any(row.map is not None or any(hit.map is not None for hit in row.hits) for row in rows)

    def pair(panel: Panel, values: Map | None, parts: Sequence[Part]) -> Panel:
        below = panel.image
        if values is not None and is_flat(values):
            panel = panel._replace(caption=f"{panel.caption} · map {FLAT_WORDS}")
        if parts:
            panel = panel._replace(image=with_parts(fit_image(panel.image, (panel_size, panel_size)), parts))
        return panel._replace(image=_over_map(panel.image, below, values, panel_size)) if mapped else panel

    grid: list[list[Panel | None]] = []
    for row in rows:
        hits = [pair(_neighbour_panel(hit), hit.map, hit.parts) for hit in row.hits]
        for first in range(0, max(1, len(hits)), wide):
            query = pair(Panel(row.image, row.caption, INK), row.map, row.parts) if first == 0 else None
            grid.append([query, *hits[first : first + wide]])
    map_words = COMMON_WORDS if decided == "common" else RATIONALE_WORDS
    map_words += f"; it decides where --pool {pool} looks again" if decided else ""
    map_legend = [Key(colour_bar(), SCALE_WORDS), Key(None, map_words)] if mapped else []
    if any(row.parts for row in rows):
        map_legend += [Key(None, looked_words(pool, decided)), Key(None, MATCH_WORDS)]
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


def _over_map(above: Image.Image, image: Image.Image, values: Map | None, size: int) -> Image.Image:
    """A picture as it was drawn on, above it as it is under its map; without a map the lower place stays white."""
    drawn, picture = fit_image(above, (size, size)), fit_image(image, (size, size))
    both = Image.new("RGB", (drawn.width, 2 * drawn.height + _PAIR_GAP), WHITE)
    both.paste(drawn, (0, 0))
    if values is not None:
        both.paste(overlay(picture, values), (0, drawn.height + _PAIR_GAP))
    return both


class _Maps:
    """The columns of maps that any of the rows has, and their part of the legend."""

    def __init__(self, rows: Sequence[QueryRow] | Sequence[ExplainRow]) -> None:
        columns = [column for column in _MAPS if any(getattr(row, column[0]) is not None for row in rows)]
        self._fields, self.titles = [column[0] for column in columns], [column[1] for column in columns]
        self.scale = [Key(colour_bar(), SCALE_WORDS)] if columns else []
        self.meanings = [Key(None, column[2]) for column in columns]

    def panels(self, row: QueryRow | ExplainRow, size: int) -> list[Panel | None]:
        """The maps over the image, drawn at the size they are shown at, so that the cells are as sharp as the sheet."""
        image, found = fit_image(row.image, (size, size)), list[Panel | None]()
        for field in self._fields:
            map_ = getattr(row, field)
            if map_ is None:
                found.append(None)
                continue
            drawn = overlay(image, map_)
            if isinstance(row, ExplainRow) and row.decided == field:
                drawn = _outlined(drawn, row.windows, size)
            found.append(Panel(drawn, FLAT_WORDS if is_flat(map_) else ""))
        return found


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
