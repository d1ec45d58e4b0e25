"""Rows of captioned pictures on a white sheet: measured first, then drawn, so that nothing overlaps or is clipped."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from fgssl.drawing.bands import (
    HAIRLINE,
    INK,
    MARGIN,
    QUIET,
    Key,
    Panel,
    legend_band,
    place_columns,
    row_band,
    titles_band,
    words_band,
)
from fgssl.errors import FgsslError

_ROW_GAP = 14
_NARROWEST = 440  # of a sheet with a title or a legend: words need room
_ROW_TITLE = 26  # width of the strip of turned row titles


def sheet(
    rows: Sequence[Sequence[Panel | None]],
    *,
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    title: str | None = None,
    legend: Sequence[Key] = (),
    footer: str | None = None,
    panel_size: int = 224,
    column_widths: Sequence[int] | None = None,
    separators: Sequence[int] = (),
    rules: bool = False,
    caption_lines: int = 2,
) -> Image.Image:
    """A grid of panels on white, with a title, a legend and a footer.

    Args:
        rows: Panels, or None for an empty place; shorter rows are filled up with empty places. A row is as high as
            its tallest picture.
        column_titles: One for each column (missing ones are empty).
        row_titles: One for each row, turned, at the left.
        title: The heading.
        legend: Swatches with their meanings, under the heading.
        footer: A closing paragraph.
        panel_size: Height of the box of every picture, and its width where `column_widths` does not say otherwise.
        column_widths: Width of each column's boxes, in pixels.
        separators: Columns (from 0) with a thin vertical line before them.
        rules: Thin horizontal lines between rows.
        caption_lines: The most lines of a caption.

    Raises:
        FgsslError: No panel at all, or an image without pixels.
    """
    count = max((len(row) for row in rows), default=0)
    if count == 0 or all(panel is None for row in rows for panel in row):
        raise FgsslError("there is no image to draw", "pass at least one")
    left = MARGIN + (_ROW_TITLE if row_titles else 0)
    columns = place_columns(column_widths or [panel_size] * count, separators=separators, left=left)
    worded = title or legend or footer
    width = max(columns.right + MARGIN, _NARROWEST if worded else 0)

    head = [words_band(title, width, 22, INK)] if title else []
    head += [legend_band(legend, width)] if legend else []
    body = [titles_band(_filled(column_titles, count), columns, width, panel_size)] if column_titles else []
    turned = _filled(row_titles or (), len(rows))
    for row, row_title in zip(rows, turned, strict=True):
        padded = [*row, *[None] * (count - len(row))]
        body.append(row_band(padded, columns, width, panel_size, caption_lines, row_title))
    foot = [words_band(footer, width, 13, QUIET)] if footer else []
    return _stacked(head, body, foot, titled=bool(column_titles), lines=columns.lines, right=columns.right, rules=rules)


def _filled(titles: Sequence[str], count: int) -> list[str]:
    return [*titles, *[""] * count][:count]


def _stacked(
    head: Sequence[Image.Image],
    body: Sequence[Image.Image],
    foot: Sequence[Image.Image],
    *,
    titled: bool,
    lines: Sequence[int],
    right: int,
    rules: bool,
) -> Image.Image:
    """The bands one under the other on white, with the separators over the whole body."""
    places: list[tuple[Image.Image, int]] = []
    crossings: list[int] = []
    y = MARGIN
    for band in head:
        places.append((band, y))
        y += band.height + 8
    y += 8 if head else 0
    start = y
    for number, band in enumerate(body):
        places.append((band, y))
        y += band.height
        if number == len(body) - 1 or (titled and number == 0):
            continue
        crossings += [y + _ROW_GAP // 2] if rules else []
        y += _ROW_GAP
    end = y
    y += 14 if foot else 0
    for band in foot:
        places.append((band, y))
        y += band.height
    canvas = Image.new("RGB", (places[0][0].width, y + MARGIN), (255, 255, 255))
    for band, top in places:
        canvas.paste(band, (0, top))
    draw = ImageDraw.Draw(canvas)
    for x in lines:
        draw.line((x, start, x, end), fill=HAIRLINE)
    for crossing in crossings:
        draw.line((MARGIN, crossing, right, crossing), fill=HAIRLINE)
    return canvas


def contact_sheet(
    images: Sequence[Image.Image],
    *,
    columns: int | None = None,
    captions: Sequence[str] = (),
    title: str | None = None,
    footer: str | None = None,
    panel_size: int = 160,
) -> Image.Image:
    """Images in reading order, `columns` a row (by default a block somewhat wider than high).

    Raises:
        FgsslError: No image, or fewer than one column.
    """
    if columns is not None and columns < 1:
        raise FgsslError(f"a contact sheet needs at least 1 column, not {columns}")
    wide = columns or min(len(images), max(1, round((1.5 * len(images)) ** 0.5)))
    words = _filled(captions, len(images))
    panels = [Panel(image, word) for image, word in zip(images, words, strict=True)]
    rows = [panels[first : first + wide] for first in range(0, len(panels), wide or 1)]
    return sheet(rows, title=title, footer=footer, panel_size=panel_size)
