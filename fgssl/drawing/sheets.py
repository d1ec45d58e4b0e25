"""Rows of captioned pictures on a white sheet: bands are measured, then drawn, so that nothing overlaps or is cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw

from fgssl.drawing.text import Font, fit_lines, font, line_height, text_width
from fgssl.errors import FgsslError

Colour = tuple[int, int, int]
Mark = Literal["check", "cross"]

WHITE: Colour = (255, 255, 255)
INK: Colour = (28, 28, 32)
QUIET: Colour = (92, 92, 100)  # captions, legends
HAIRLINE: Colour = (214, 214, 219)
GREEN: Colour = (0, 146, 98)  # a bluish green and an orange red: told apart with any colour vision
RED: Colour = (212, 62, 24)
GREY: Colour = (160, 160, 166)

MARGIN = 22
GAP = 14  # between panels; holds a border on either side
GROUP_GAP = 34  # where a separator runs
BORDER = 4
_ROW_GAP = 14
_NARROWEST = 440  # of a sheet with a title or a legend: words need room


class Panel(NamedTuple):
    """One picture of a sheet.

    Attributes:
        image: Any size and mode; scaled to its box without distortion.
        caption: Under the picture; escaped, wrapped and shortened to its width as needed.
        border: Colour of a frame, or None for a hairline.
        mark: A small check or cross in the corner, in the border's colour: says it without colour too.
        framed: Whether a picture without a border has its hairline.
    """

    image: Image.Image
    caption: str = ""
    border: Colour | None = None
    mark: Mark | None = None
    framed: bool = True


class Key(NamedTuple):
    """One entry of a legend: a swatch (or none) and its meaning."""

    swatch: Image.Image | None
    text: str


Boxes = Sequence[tuple[int, int]]  # where each column of panels starts, and how wide it is


def sheet(
    rows: Sequence[Sequence[Panel | None]],
    *,
    column_titles: Sequence[str] = (),
    title: str | None = None,
    legend: Sequence[Key] = (),
    footer: str | None = None,
    panel_size: int = 224,
    column_widths: Sequence[int] | None = None,
    separators: Sequence[int] = (),
    rules: bool = False,
    caption_lines: int = 2,
) -> Image.Image:
    """A grid of panels on white, with a title, a legend under it and a footer.

    Args:
        rows: Panels, None for an empty place; a shorter row ends in empty places. A row is as high as its pictures.
        column_titles: Of the first columns.
        title: The heading.
        legend: Swatches with their meanings.
        footer: A closing paragraph.
        panel_size: Height of the box of every picture, and its width where `column_widths` does not say otherwise.
        column_widths: Of each column's boxes, in pixels.
        separators: Columns (from 1) with a thin vertical line before them.
        rules: Thin horizontal lines between rows.
        caption_lines: The most lines of a caption.

    Raises:
        FgsslError: No panel at all, or an image without pixels.
    """
    if all(panel is None for row in rows for panel in row):
        raise FgsslError("there is no image to draw", "pass at least one")
    boxes, x = list[tuple[int, int]](), MARGIN
    for column, size in enumerate(column_widths or [panel_size] * max(map(len, rows))):
        x += GROUP_GAP if column in separators else GAP if column else 0
        boxes.append((x, size))
        x += size
    width = max(x + MARGIN, _NARROWEST if title or legend or footer else 0)
    head = [_words_band(title, width, 22, INK)] if title else []
    head += [_legend_band(legend, width)] if legend else []
    bands = [(band, 8 if number < len(head) else 16) for number, band in enumerate(head, 1)]  # and the space below
    bands += [(_titles_band(column_titles, boxes, width, panel_size), 0)] if column_titles else []
    first = len(bands)
    bands += [(_row_band(row, boxes, width, panel_size, caption_lines), _ROW_GAP) for row in rows]
    bands[-1] = (bands[-1][0], 14 if footer else 0)
    last = len(bands) - 1
    bands += [(_words_band(footer, width, 13, QUIET), 0)] if footer else []
    tops = list(accumulate((band.height + space for band, space in bands), initial=MARGIN))
    canvas = Image.new("RGB", (width, tops[-1] + MARGIN), WHITE)
    for (band, _), top in zip(bands, tops, strict=False):
        canvas.paste(band, (0, top))
    draw = ImageDraw.Draw(canvas)
    for below in tops[first + 1 : last + 1] if rules else ():
        draw.line((MARGIN, below - _ROW_GAP // 2, x, below - _ROW_GAP // 2), fill=HAIRLINE)
    for line in (boxes[column][0] - GROUP_GAP // 2 for column in separators):
        draw.line((line, tops[len(head)], line, tops[last] + bands[last][0].height), fill=HAIRLINE)
    return canvas


def fit_image(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """The image as RGB on white, scaled to the largest size within `box` (width, height) at its own aspect ratio."""
    if min(image.size) < 1:
        raise FgsslError(f"an image to draw has no pixels ({image.width}x{image.height})")
    if image.mode != "RGB":
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    scale = min(box[0] / image.width, box[1] / image.height)
    width, height = (min(most, max(1, round(side * scale))) for most, side in zip(box, image.size, strict=True))
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def _text_size(panel_size: int) -> int:
    """Pixels of caption text that suit a panel of `panel_size` pixels."""
    return max(11, min(16, round(panel_size / 16) + 1))


def _write(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], at: tuple[int, int], face: Font, colour: Colour, within: int = 0
) -> None:
    """Lines of text one below the other from `at`, centred in `within` pixels where that is not 0."""
    for number, line in enumerate(lines):
        indent = (within - text_width(line, face)) // 2 if within else 0
        draw.text((at[0] + indent, at[1] + number * line_height(face)), line, fill=colour, font=face)


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, right: int, top: int, colour: Colour) -> None:
    """A filled square in the upper right corner of a picture, with a white check or cross."""
    left = right - 18
    draw.rectangle((left, top, right, top + 18), fill=colour)
    if mark == "check":
        points = [(left + 4, top + 9), (left + 8, top + 13), (left + 14, top + 5)]
        draw.line(points, fill=WHITE, width=2, joint="curve")
    else:
        draw.line((left + 5, top + 5, left + 13, top + 13), fill=WHITE, width=2)
        draw.line((left + 5, top + 13, left + 13, top + 5), fill=WHITE, width=2)


def _row_band(
    row: Sequence[Panel | None], boxes: Boxes, sheet_width: int, panel_size: int, caption_lines: int
) -> Image.Image:
    """One row: pictures centred in a common height (the tallest one's), captions below."""
    face = font(_text_size(panel_size))
    placed = [
        (panel, fit_image(panel.image, (width, panel_size)), fit_lines(panel.caption, face, width, lines=caption_lines),
         start, width)
        for panel, (start, width) in zip(row, boxes, strict=False)
        if panel is not None
    ]  # fmt: skip
    height = max((picture.height for _, picture, *_ in placed), default=0)
    text = max((len(caption) for _, _, caption, *_ in placed), default=0) * line_height(face)
    band = Image.new("RGB", (sheet_width, height + 2 * BORDER + (text + 4 if text else 0)), WHITE)
    draw = ImageDraw.Draw(band)
    for panel, picture, caption, start, width in placed:
        x, y = start + (width - picture.width) // 2, BORDER + (height - picture.height) // 2
        edge = BORDER if panel.border else int(panel.framed)
        frame = (x - edge, y - edge, x + picture.width - 1 + edge, y + picture.height - 1 + edge)
        draw.rectangle(frame, fill=panel.border or HAIRLINE)
        band.paste(picture, (x, y))
        if panel.mark:
            _draw_mark(draw, panel.mark, x + picture.width - 1, y, panel.border or GREY)
        _write(draw, caption, (start, height + 2 * BORDER + 2), face, QUIET, width)
    return band


def _titles_band(titles: Sequence[str], boxes: Boxes, sheet_width: int, panel_size: int) -> Image.Image:
    """Column titles, centred over their columns, in at most two lines each."""
    face = font(_text_size(panel_size) + 1)
    wrapped = [fit_lines(title, face, width, lines=2) for title, (_, width) in zip(titles, boxes, strict=False)]
    tallest = max(map(len, wrapped))
    band = Image.new("RGB", (sheet_width, tallest * line_height(face) + 6), WHITE)
    draw = ImageDraw.Draw(band)
    for lines, (start, width) in zip(wrapped, boxes, strict=False):
        top = (tallest - len(lines)) * line_height(face)  # the last line sits on the pictures
        _write(draw, lines, (start, top), face, INK, width)
    return band


def _words_band(text: str, sheet_width: int, size: int, colour: Colour) -> Image.Image:
    """A paragraph across the sheet."""
    face = font(size)
    wrapped = fit_lines(text, face, sheet_width - 2 * MARGIN, lines=12)
    band = Image.new("RGB", (sheet_width, len(wrapped) * line_height(face) + 2), WHITE)
    _write(ImageDraw.Draw(band), wrapped, (MARGIN, 0), face, colour)
    return band


def _legend_band(keys: Sequence[Key], sheet_width: int) -> Image.Image:
    """Legend entries, flowing left to right and wrapped to the sheet; the first one without a swatch starts a line."""
    face, room = font(13), sheet_width - 2 * MARGIN
    placed: list[tuple[Key, list[str], int, int, int]] = []
    x, y, bottom, swatched = 0, 0, 0, False
    for key in keys:
        indent = key.swatch.width + 7 if key.swatch else 0
        lines = fit_lines(key.text, face, room - indent, lines=8)
        width = indent + max((text_width(line, face) for line in lines), default=0)
        if x and (x + width > room or (swatched and not key.swatch)):
            x, y = 0, bottom
        placed.append((key, lines, indent, x, y))
        bottom = max(bottom, y + max(1, len(lines)) * line_height(face) + 4)
        x += width + 24
        swatched = key.swatch is not None
    band = Image.new("RGB", (sheet_width, bottom + 2), WHITE)
    draw = ImageDraw.Draw(band)
    for key, lines, indent, x, y in placed:
        if key.swatch:
            band.paste(key.swatch, (MARGIN + x, y + (line_height(face) - key.swatch.height) // 2 + 1))
        _write(draw, lines, (MARGIN + x + indent, y), face, QUIET)
    return band
