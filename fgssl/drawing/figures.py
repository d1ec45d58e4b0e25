"""The figures fgssl writes: pairs of views, the overview of a run, explained images, search results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from fgssl.drawing.maps import Map, Window, colour_bar, is_flat, outlined, overlay, projection_block
from fgssl.drawing.sheets import GREEN, GREY, INK, RED, WHITE, Colour, Key, Mark, Panel, fit_image, sheet

SCALE_WORDS = "low to high, each map on its own scale"
RATIONALE_WORDS = "Rationale: the weight the fitted branch gives each place when features are pooled"
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


class QueryRow(NamedTuple):
    """One query, its maps (h, w) where there are any, and what was found for it, best first."""

    image: Image.Image
    caption: str = ""
    hits: Sequence[Neighbour] = ()
    rationale: Map | None = None
    gradcam: Map | None = None


class ExplainRow(NamedTuple):
    """One image to explain: its view, its maps (h, w), those of its projections (K, h, w), and what zoom looks at."""

    image: Image.Image
    caption: str = ""
    gradcam: Map | None = None
    rationale: Map | None = None
    projections: Map | None = None
    window: Window | None = None


def view_pairs_sheet(
    pairs: Sequence[tuple[Image.Image, Image.Image, Image.Image]],
    captions: Sequence[str] = (),
    *,
    title: str | None = "View pairs",
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


def overview_sheet(rows: Sequence[QueryRow], *, title: str | None = "Overview") -> Image.Image:
    """What a run learned to look at, and what it finds alike: each test image, its maps, its nearest neighbours.

    Columns of maps that no row has are left out. Neighbours are framed green and checked where the label agrees, red
    and crossed where it does not, grey without labels.
    """
    size, maps = 144, _maps_of(rows)
    most = max((len(row.hits) for row in rows), default=0)
    grid = [
        [Panel(row.image, row.caption), *_map_panels(row, maps, size), *map(_neighbour_panel, row.hits)] for row in rows
    ]
    scale, words = _map_legend(maps)
    return sheet(
        grid,
        column_titles=["image", *[column for _, column, _ in maps], *_ranks("nearest", most)],
        title=title,
        legend=[*scale, *_label_legend(hit for row in rows for hit in row.hits), *words],
        panel_size=size,
        separators=[1 + len(maps)] if most else [],
        rules=True,
    )


def explain_sheet(
    rows: Sequence[ExplainRow], *, title: str | None = None, panel_size: int | None = None
) -> Image.Image:
    """Image, GradCAM of the self-supervised loss and rationale side by side, and the projections where given.

    Pictures are the larger the fewer they are, unless `panel_size` says how many pixels they have.
    """
    size = panel_size or (448 if len(rows) == 1 else 320 if len(rows) <= 3 else 224)
    maps, widest = _maps_of(rows), 0
    grid = []
    for row in rows:
        image = row.image if row.window is None else outlined(fit_image(row.image, (size, size)), row.window)
        panels: list[Panel | None] = [Panel(image, row.caption), *_map_panels(row, maps, size)]
        if row.projections is not None and len(row.projections):
            block = projection_block(row.image, row.projections, size)
            panels.append(Panel(block, framed=False))
            widest = max(widest, block.width)
        grid.append(panels)
    scale, words = _map_legend(maps)
    words += [Key(None, WINDOW_WORDS)] if any(row.window is not None for row in rows) else []
    return sheet(
        grid,
        column_titles=["image", *[column for _, column, _ in maps], *(["projections, on one scale"] if widest else [])],
        title=title,
        legend=[*scale, *words],
        panel_size=size,
        column_widths=[size] * (1 + len(maps)) + ([widest] if widest else []),
        separators=[1 + len(maps)] if widest else [],
        caption_lines=1 if len(rows) == 1 else 2,
    )


def search_sheet(
    rows: Sequence[QueryRow], *, title: str | None = "Search", footer: str | None = None, panel_size: int = 160
) -> Image.Image:
    """Queries at the left, their hits at the right, up to eight a line; each above its rationale, if any has one."""
    most = max((len(row.hits) for row in rows), default=0)
    wide = max(1, min(most, 8))
    maps = [row.rationale for row in rows] + [hit.rationale for row in rows for hit in row.hits]
    mapped = any(values is not None for values in maps)

    def pair(panel: Panel, values: Map | None) -> Panel:
        return panel._replace(image=_over_map(panel.image, values, panel_size)) if mapped else panel

    grid: list[list[Panel | None]] = []
    for row in rows:
        hits = [pair(_neighbour_panel(hit), hit.rationale) for hit in row.hits]
        for first in range(0, max(1, len(hits)), wide):
            query = pair(Panel(row.image, row.caption, INK), row.rationale) if first == 0 else None
            grid.append([query, *hits[first : first + wide]])
    legend = _label_legend(hit for row in rows for hit in row.hits)
    if mapped:
        legend += [Key(colour_bar(), SCALE_WORDS), Key(None, RATIONALE_WORDS)]
    return sheet(
        grid,
        column_titles=["query", *_ranks("best hit", most if most <= wide else 1)],
        title=title,
        legend=legend,
        footer=footer,
        panel_size=2 * panel_size + _PAIR_GAP if mapped else panel_size,
        column_widths=[panel_size] * (1 + (wide if most else 0)),
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


def _maps_of(rows: Sequence[QueryRow] | Sequence[ExplainRow]) -> list[tuple[str, str, str]]:
    """Those of `_MAPS` that any row has."""
    return [column for column in _MAPS if any(getattr(row, column[0]) is not None for row in rows)]


def _map_panels(row: QueryRow | ExplainRow, maps: Sequence[tuple[str, str, str]], size: int) -> list[Panel | None]:
    """The maps over the image, drawn at the size they are shown at, so that the heat is as sharp as the sheet."""
    image, values = fit_image(row.image, (size, size)), [getattr(row, field) for field, _, _ in maps]
    flat = "flat: no place preferred"
    return [None if map_ is None else Panel(overlay(image, map_), flat if is_flat(map_) else "") for map_ in values]


def _neighbour_panel(neighbour: Neighbour) -> Panel:
    words = ["" if neighbour.score is None else f"{neighbour.score:.2f}", neighbour.caption]
    return Panel(neighbour.image, " · ".join(filter(None, words)), *_FRAMES[neighbour.agrees])


def _map_legend(maps: Sequence[tuple[str, str, str]]) -> tuple[list[Key], list[Key]]:
    """What the colours say, and what each map is."""
    return [Key(colour_bar(), SCALE_WORDS)] if maps else [], [Key(None, words) for _, _, words in maps]


def _label_legend(hits: Iterable[Neighbour]) -> list[Key]:
    """What the frames say, where any hit has a label to compare."""
    if all(hit.agrees is None for hit in hits):
        return []

    def swatch(colour: Colour) -> Image.Image:
        square = Image.new("RGB", (13, 13), WHITE)
        ImageDraw.Draw(square).rectangle((0, 0, 12, 12), outline=colour, width=3)
        return square

    return [Key(swatch(GREEN), "green, check: same class"), Key(swatch(RED), "red, cross: another class")]
