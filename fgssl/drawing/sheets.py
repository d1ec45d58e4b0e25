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
_STROKES = {"check": (((4, 9), (8, 13), (14, 5)),), "cross": (((5, 5), (13, 13)), ((5, 13), (13, 5)))}


class Panel(NamedTuple):
    """One picture of a sheet."""

    image: Image.Image  # any size and mode; scaled to its box without distortion
    caption: str = ""  # under the picture; escaped, wrapped and shortened to its width as needed
    border: Colour | None = None  # None for a hairline
    mark: Mark | None = None  # in the corner, in the border's colour: says it without colour too


class Key(NamedTuple):
    """One entry of a legend: a swatch (or none) and its meaning."""

    swatch: Image.Image | None
    text: str


class _Grid(NamedTuple):
    """Where columns of panels start, the box of a picture, and the width of the sheet, in pixels."""

    starts: list[int]
    width: int
    height: int
    across: int

    def face(self, added: int = 0) -> Font:
        """The font that suits the panels."""
        return font(max(11, min(16, round(self.height / 16) + 1)) + added)


def sheet(
    rows: Sequence[Sequence[Panel | None]],
    *,
    column_titles: Sequence[str] = (),
    title: str | None = None,
    legend: Sequence[Key] = (),
    footer: str | None = None,
    panel_size: int = 224,
    panel_width: int | None = None,
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
        panel_size: Height of the box of every picture in pixels, and its width unless `panel_width` says otherwise.
        panel_width: Width of the boxes.
        separators: Columns (from 1) with a thin vertical line before them.
        rules: Thin horizontal lines between rows.
        caption_lines: The most lines of a caption.

    Raises:
        FgsslError: No panel at all, or an image without pixels.
    """
    if all(panel is None for row in rows for panel in row):
        raise FgsslError("there is no image to draw", "pass at least one")
    box = panel_width or panel_size
    gaps = [box + (GROUP_GAP if column in separators else GAP) for column in range(1, max(map(len, rows)))]
    starts = list(accumulate(gaps, initial=MARGIN))
    right = starts[-1] + box
    grid = _Grid(starts, box, panel_size, max(right + MARGIN, _NARROWEST if title or legend or footer else 0))
    head = [_words_band(title, grid.across, 22, INK)] if title else []
    head += [_legend_band(legend, grid.across)] if legend else []
    bands = [(band, 8 if number < len(head) else 16) for number, band in enumerate(head, 1)]  # and the space below
    bands += [(_titles_band(column_titles, grid), 0)] if column_titles else []
    first = len(bands)
    bands += [(_row_band(row, grid, caption_lines), _ROW_GAP) for row in rows]
    bands[-1] = (bands[-1][0], 14 if footer else 0)
    last = len(bands) - 1
    bands += [(_words_band(footer, grid.across, 13, QUIET), 0)] if footer else []
    tops = list(accumulate((band.height + space for band, space in bands), initial=MARGIN))
    canvas = Image.new("RGB", (grid.across, tops[-1] + MARGIN), WHITE)
    for (band, _), top in zip(bands, tops, strict=False):
        canvas.paste(band, (0, top))
    draw = ImageDraw.Draw(canvas)
    for below in tops[first + 1 : last + 1] if rules else ():
        draw.line((MARGIN, below - _ROW_GAP // 2, right, below - _ROW_GAP // 2), fill=HAIRLINE)
    for line in (starts[column] - GROUP_GAP // 2 for column in separators):
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
    return image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def _write(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], at: tuple[int, int], face: Font, colour: Colour, within: int = 0
) -> None:
    """Lines of text one below the other from `at`, centred in `within` pixels where that is not 0."""
    for number, line in enumerate(lines):
        indent = (within - text_width(line, face)) // 2 if within else 0
        draw.text((at[0] + indent, at[1] + number * line_height(face)), line, fill=colour, font=face)


def _row_band(row: Sequence[Panel | None], grid: _Grid, caption_lines: int) -> Image.Image:
    """One row: pictures centred in a common height (the tallest one's), captions below."""
    face = grid.face()
    placed = [
        (panel, fit_image(panel.image, (grid.width, grid.height)),
         fit_lines(panel.caption, face, grid.width, lines=caption_lines), start)
        for panel, start in zip(row, grid.starts, strict=False)
        if panel is not None
    ]  # fmt: skip
    height = max((picture.height for _, picture, *_ in placed), default=0)
    text = max((len(caption) for _, _, caption, _ in placed), default=0) * line_height(face)
    band = Image.new("RGB", (grid.across, height + 2 * BORDER + (text + 4 if text else 0)), WHITE)
    draw = ImageDraw.Draw(band)
    for panel, picture, caption, start in placed:
        x, y = start + (grid.width - picture.width) // 2, BORDER + (height - picture.height) // 2
        edge, right = BORDER if panel.border else 1, x + picture.width - 1
        frame = (x - edge, y - edge, right + edge, y + picture.height - 1 + edge)
        draw.rectangle(frame, fill=panel.border or HAIRLINE)
        band.paste(picture, (x, y))
        if panel.mark:
            draw.rectangle((right - 18, y, right, y + 18), fill=panel.border or GREY)
            for stroke in _STROKES[panel.mark]:
                points = [(right - 18 + across, y + down) for across, down in stroke]
                draw.line(points, fill=WHITE, width=2, joint="curve")
        _write(draw, caption, (start, height + 2 * BORDER + 2), face, QUIET, grid.width)
    return band


def _titles_band(titles: Sequence[str], grid: _Grid) -> Image.Image:
    """Column titles, centred over their columns, in at most two lines each; the last line sits on the pictures."""
    face = grid.face(1)
    wrapped = [fit_lines(title, face, grid.width, lines=2) for title, _ in zip(titles, grid.starts, strict=False)]
    tallest = max(map(len, wrapped))
    band = Image.new("RGB", (grid.across, tallest * line_height(face) + 6), WHITE)
    for lines, start in zip(wrapped, grid.starts, strict=False):
        at = (start, (tallest - len(lines)) * line_height(face))
        _write(ImageDraw.Draw(band), lines, at, face, INK, grid.width)
    return band


def _words_band(text: str, across: int, size: int, colour: Colour) -> Image.Image:
    """A paragraph across the sheet."""
    face = font(size)
    wrapped = fit_lines(text, face, across - 2 * MARGIN, lines=12)
    band = Image.new("RGB", (across, len(wrapped) * line_height(face) + 2), WHITE)
    _write(ImageDraw.Draw(band), wrapped, (MARGIN, 0), face, colour)
    return band


def _legend_band(keys: Sequence[Key], across: int) -> Image.Image:
    """Legend entries, flowing left to right and wrapped to the sheet; the first one without a swatch starts a line."""
    face, room = font(13), across - 2 * MARGIN
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
    band = Image.new("RGB", (across, bottom + 2), WHITE)
    for key, lines, indent, x, y in placed:
        if key.swatch:
            band.paste(key.swatch, (MARGIN + x, y + (line_height(face) - key.swatch.height) // 2 + 1))
        _write(ImageDraw.Draw(band), lines, (MARGIN + x + indent, y), face, QUIET)
    return band
