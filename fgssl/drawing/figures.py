"""The figures fgssl writes: pairs of views, the overview of a run, explained images, search results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from fgssl.drawing.bands import GREEN, GREY, INK, RED, WHITE, Key, Panel, fit_image
from fgssl.drawing.maps import MapStyle, colour_bar, is_flat, overlay
from fgssl.drawing.projections import Map, block_width, projection_block, projection_cell
from fgssl.drawing.sheets import sheet
from fgssl.drawing.windows import Window, outlined

GRADCAM_WORDS = "GradCAM: where the feature map moves the self-supervised loss of this image"
RATIONALE_WORDS = "Rationale: the weight the fitted branch gives each place when features are pooled"
_HIGHLIGHT = INK  # frame of a query
_PAIR_GAP = 4  # between a picture and its map below


class Neighbour(NamedTuple):
    """One retrieved image.

    Attributes:
        image: The picture.
        caption: Class or file name.
        agrees: Whether its label is the query's; None where there are no labels.
        score: Similarity to the query, written before the caption; None leaves it out.
        rationale: Its map (h, w), which a search shows below it.
    """

    image: Image.Image
    caption: str = ""
    agrees: bool | None = None
    score: float | None = None
    rationale: Map | None = None


class OverviewRow(NamedTuple):
    """One query of the overview: the view the model saw, its maps (h, w) where there are any, and its neighbours."""

    image: Image.Image
    caption: str = ""
    gradcam: Map | None = None
    rationale: Map | None = None
    neighbours: Sequence[Neighbour] = ()


class ExplainRow(NamedTuple):
    """One image to explain: the view the model saw, its maps (h, w), and the maps of the K projections (K, h, w).

    `window` is the part that `--pool zoom` looks at more closely.
    """

    image: Image.Image
    caption: str = ""
    gradcam: Map | None = None
    rationale: Map | None = None
    projections: Map | None = None
    window: Window | None = None


class SearchRow(NamedTuple):
    """One query of a search, its hits, best first, and its rationale (h, w) where there is one."""

    image: Image.Image
    caption: str = ""
    hits: Sequence[Neighbour] = ()
    rationale: Map | None = None


def view_pairs_sheet(
    pairs: Sequence[tuple[Image.Image, Image.Image, Image.Image]],
    captions: Sequence[str] = (),
    *,
    title: str | None = "View pairs",
    footer: str | None = None,
    panel_size: int = 160,
) -> Image.Image:
    """Each image beside the two random views that training compares; two images a row from four on.

    Args:
        pairs: (image, first view, second view), each as the model would see it.
        captions: One for each image.
        title: The heading.
        footer: What else to say, such as the recipe of the views.
        panel_size: Pixels of a picture.
    """
    wide = 2 if len(pairs) >= 4 else 1
    names = [*captions, *[""] * len(pairs)]
    rows: list[list[Panel | None]] = []
    for number, (image, first, second) in enumerate(pairs):
        if number % wide == 0:
            rows.append([])
        rows[-1] += [Panel(image, names[number]), Panel(first), Panel(second)]
    return sheet(
        rows,
        column_titles=["image", "view 1", "view 2"] * wide,
        title=title,
        footer=footer,
        panel_size=panel_size,
        separators=[3] if wide == 2 else [],
        caption_lines=1,
    )


def overview_sheet(
    rows: Sequence[OverviewRow],
    *,
    title: str | None = "Overview",
    footer: str | None = None,
    panel_size: int = 144,
    rationale_style: MapStyle = "heat",
) -> Image.Image:
    """What a run learned to look at, and what it finds alike: each test image, its maps, its nearest neighbours.

    Columns of maps that no row has are left out. Neighbours are framed green and checked where the label agrees, red
    and crossed where it does not, grey without labels.
    """
    maps = _map_columns(rows, rationale_style)
    neighbours = max((len(row.neighbours) for row in rows), default=0)
    grid = []
    for row in rows:
        own: list[Panel | None] = [Panel(row.image, row.caption)]
        own += [_map_panel(row.image, getattr(row, column.field), column.style, panel_size) for column in maps]
        grid.append(own + [_neighbour_panel(neighbour) for neighbour in row.neighbours])
    ranks = ["nearest", *[f"{rank}" for rank in range(2, neighbours + 1)]] if neighbours else []
    labelled = any(neighbour.agrees is not None for row in rows for neighbour in row.neighbours)
    return sheet(
        grid,
        column_titles=["image", *[column.title for column in maps], *ranks],
        title=title,
        legend=[*_scale_legend(maps), *(_label_legend() if labelled else []), *_map_legend(maps)],
        footer=footer,
        panel_size=panel_size,
        separators=[1 + len(maps)] if neighbours else [],
        rules=True,
    )


def explain_sheet(
    rows: Sequence[ExplainRow],
    *,
    title: str | None = None,
    footer: str | None = None,
    panel_size: int | None = None,
    rationale_style: MapStyle = "heat",
) -> Image.Image:
    """Image, GradCAM of the self-supervised loss and rationale side by side, and the projections where given.

    Args:
        rows: One for each image.
        title: The heading.
        footer: What else to say, such as which positive and negatives the loss used.
        panel_size: Pixels of a picture; by default 448 for one image, 320 for two or three, 224 for more.
        rationale_style: `heat`, or `dim` to darken what the pooling leaves out.
    """
    size = panel_size or (448 if len(rows) == 1 else 320 if len(rows) <= 3 else 224)
    maps = _map_columns(rows, rationale_style)
    most = max((len(row.projections) for row in rows if row.projections is not None), default=0)
    cell = projection_cell(size)
    widths = [size] * (1 + len(maps)) + ([block_width(most, cell, size)] if most else [])
    grid = []
    for row in rows:
        image = row.image if row.window is None else outlined(fit_image(row.image, (size, size)), row.window)
        panels: list[Panel | None] = [Panel(image, row.caption)]
        panels += [_map_panel(row.image, getattr(row, column.field), column.style, size) for column in maps]
        if row.projections is not None and len(row.projections):
            panels.append(Panel(projection_block(row.image, row.projections, cell, size), framed=False))
        grid.append(panels)
    titles = ["image", *[column.title for column in maps], *(["projections, on one scale"] if most else [])]
    return sheet(
        grid,
        column_titles=titles,
        title=title,
        legend=[*_scale_legend(maps), *_map_legend(maps), *_window_legend(rows)],
        footer=footer,
        panel_size=size,
        column_widths=widths,
        separators=[1 + len(maps)] if most else [],
        caption_lines=1 if len(rows) == 1 else 2,
    )


def search_sheet(
    rows: Sequence[SearchRow],
    *,
    title: str | None = "Search",
    footer: str | None = None,
    panel_size: int = 160,
    columns: int | None = None,
) -> Image.Image:
    """Queries at the left, their hits at the right, best first, with scores; each above its rationale, if any has one.

    Args:
        rows: One for each query.
        title: The heading.
        footer: What else to say.
        panel_size: Pixels of a picture.
        columns: Hits on a line; more go on below. By default all, up to 8.
    """
    most = max((len(row.hits) for row in rows), default=0)
    wide = max(1, min(most, columns or 8))
    mapped = any(row.rationale is not None or any(hit.rationale is not None for hit in row.hits) for row in rows)

    def pair(panel: Panel, values: Map | None) -> Panel:
        return panel._replace(image=_over_map(panel.image, values, panel_size)) if mapped else panel

    grid: list[list[Panel | None]] = []
    for row in rows:
        hits = [pair(_neighbour_panel(hit), hit.rationale) for hit in row.hits]
        for first in range(0, max(1, len(hits)), wide):
            query = pair(Panel(row.image, row.caption, _HIGHLIGHT), row.rationale) if first == 0 else None
            grid.append([query, *hits[first : first + wide]])
    ranks = ["best hit", *[f"{rank}" for rank in range(2, most + 1)]] if most else []
    labelled = any(hit.agrees is not None for row in rows for hit in row.hits)
    legend = _label_legend() if labelled else []
    if mapped:
        legend += [Key(colour_bar(), "low to high, each map on its own scale"), Key(None, RATIONALE_WORDS)]
    return sheet(
        grid,
        column_titles=["query", *(ranks if most <= wide else ranks[:1])],
        title=title,
        legend=legend,
        footer=footer,
        panel_size=2 * panel_size + _PAIR_GAP if mapped else panel_size,
        column_widths=[panel_size] * (1 + (wide if most else 0)),
        separators=[1] if most else [],
        rules=len(rows) > 1 and most <= wide,
        caption_lines=3 if mapped else 2,
    )


def _over_map(image: Image.Image, values: Map | None, size: int) -> Image.Image:
    """A picture above the same picture under its map; without a map the lower place stays white."""
    picture = fit_image(image, (size, size))
    both = Image.new("RGB", (picture.width, 2 * picture.height + _PAIR_GAP), WHITE)
    both.paste(picture, (0, 0))
    if values is not None:
        both.paste(overlay(picture, values), (0, picture.height + _PAIR_GAP))
    return both


class _MapColumn(NamedTuple):
    field: str
    title: str
    words: str
    style: MapStyle


def _map_columns(rows: Sequence[OverviewRow] | Sequence[ExplainRow], style: MapStyle) -> list[_MapColumn]:
    columns = (
        _MapColumn("gradcam", "GradCAM of the loss", GRADCAM_WORDS, "heat"),
        _MapColumn("rationale", "rationale", RATIONALE_WORDS, style),
    )
    return [column for column in columns if any(getattr(row, column.field) is not None for row in rows)]


def _map_panel(image: Image.Image, values: Map | None, style: MapStyle, size: int) -> Panel | None:
    """The map over the image, drawn at the size it is shown at, so that the heat is as sharp as the sheet."""
    if values is None:
        return None
    shown = overlay(fit_image(image, (size, size)), values, style=style)
    return Panel(shown, "flat: no place preferred" if is_flat(values) else "")


def _neighbour_panel(neighbour: Neighbour) -> Panel:
    words = ["" if neighbour.score is None else f"{neighbour.score:.2f}", neighbour.caption]
    caption = " · ".join(word for word in words if word)
    if neighbour.agrees is None:
        return Panel(neighbour.image, caption, GREY)
    return Panel(neighbour.image, caption, *((GREEN, "check") if neighbour.agrees else (RED, "cross")))


def _scale_legend(maps: Sequence[_MapColumn]) -> list[Key]:
    heats = any(column.style == "heat" for column in maps)
    return [Key(colour_bar(), "low to high, each map on its own scale")] if heats else []


def _map_legend(maps: Sequence[_MapColumn]) -> list[Key]:
    dark = {"heat": "", "dim": " (dark: little)"}
    return [Key(None, column.words + dark[column.style]) for column in maps]


def _window_legend(rows: Sequence[ExplainRow]) -> list[Key]:
    words = "Outline: the window that --pool zoom sees enlarged, at the map's mean place, drawn to the middle"
    drawn = any(row.window is not None for row in rows)
    return [Key(None, words)] if drawn else []


def _label_legend() -> list[Key]:
    def swatch(colour: tuple[int, int, int]) -> Image.Image:
        square = Image.new("RGB", (13, 13), WHITE)
        ImageDraw.Draw(square).rectangle((0, 0, 12, 12), outline=colour, width=3)
        return square

    return [Key(swatch(GREEN), "green, check: same class"), Key(swatch(RED), "red, cross: another class")]
