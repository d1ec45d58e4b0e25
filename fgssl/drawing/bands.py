"""The horizontal bands a sheet is stacked from: words, legend, column titles, one row of captioned pictures."""

from __future__ import annotations

from collections.abc import Sequence
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


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, transparent parts on white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*WHITE, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def fit_image(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """The image as RGB, scaled up or down to the largest size within `box` (width, height) at its own aspect ratio."""
    if min(image.size) < 1:
        raise FgsslError(f"an image to draw has no pixels ({image.width}x{image.height})")
    scale = min(box[0] / image.width, box[1] / image.height)
    size = (
        min(box[0], max(1, round(image.width * scale))),
        min(box[1], max(1, round(image.height * scale))),
    )
    picture = on_white(image)
    if size == picture.size:
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def text_size(panel_size: int) -> int:
    """Pixels of caption text that suit a panel of `panel_size` pixels."""
    return max(11, min(16, round(panel_size / 16) + 1))


class Columns(NamedTuple):
    """Where each column of panels starts, and how wide it is; `lines` are the x of the separators."""

    starts: list[int]
    widths: list[int]
    lines: list[int]
    right: int


def place_columns(sizes: Sequence[int], *, separators: Sequence[int], left: int) -> Columns:
    """Columns of the given widths side by side from `left`; a separator runs before each column in `separators`."""
    starts, lines, x = [], [], left
    for column, size in enumerate(sizes):
        if column and column in separators:
            lines.append(x + GROUP_GAP // 2)
            x += GROUP_GAP
        elif column:
            x += GAP
        starts.append(x)
        x += size
    return Columns(starts, list(sizes), lines, x)


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], at: tuple[int, int], face: Font, colour: Colour
) -> None:
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * line_height(face)), line, fill=colour, font=face)


def _draw_centred(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, width: int, *, face: Font, colour: Colour
) -> None:
    for number, line in enumerate(lines):
        start = x + (width - text_width(line, face)) // 2
        draw.text((start, y + number * line_height(face)), line, fill=colour, font=face)


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, right: int, top: int, colour: Colour) -> None:
    """A filled square in the upper right corner of a picture, with a white check or cross."""
    side = 18
    left = right - side
    draw.rectangle((left, top, right, top + side), fill=colour)
    if mark == "check":
        points = [(left + 4, top + 9), (left + 8, top + 13), (left + 14, top + 5)]
        draw.line(points, fill=WHITE, width=2, joint="curve")
    else:
        draw.line((left + 5, top + 5, left + 13, top + 13), fill=WHITE, width=2)
        draw.line((left + 5, top + 13, left + 13, top + 5), fill=WHITE, width=2)


def row_band(
    row: Sequence[Panel | None], columns: Columns, sheet_width: int, panel_size: int, caption_lines: int, title: str
) -> Image.Image:
    """One row: pictures centred in a common height (the tallest one's), captions below."""
    face = font(text_size(panel_size))
    fitted = [
        (fit_image(panel.image, (width, panel_size)), fit_lines(panel.caption, face, width, lines=caption_lines))
        if panel is not None
        else None
        for panel, width in zip(row, columns.widths, strict=True)
    ]
    height = max((entry[0].height for entry in fitted if entry), default=0)
    text = max((len(entry[1]) for entry in fitted if entry), default=0) * line_height(face)
    band = Image.new("RGB", (sheet_width, height + 2 * BORDER + (text + 4 if text else 0)), WHITE)
    draw = ImageDraw.Draw(band)
    for panel, entry, start, width in zip(row, fitted, columns.starts, columns.widths, strict=True):
        if panel is None or entry is None:
            continue
        picture, caption = entry
        x, y = start + (width - picture.width) // 2, BORDER + (height - picture.height) // 2
        edge = BORDER if panel.border else int(panel.framed)
        frame = (x - edge, y - edge, x + picture.width - 1 + edge, y + picture.height - 1 + edge)
        draw.rectangle(frame, fill=panel.border or HAIRLINE)
        band.paste(picture, (x, y))
        if panel.mark:
            _draw_mark(draw, panel.mark, x + picture.width - 1, y, panel.border or GREY)
        _draw_centred(draw, caption, start, height + 2 * BORDER + 2, width, face=face, colour=QUIET)
    if title:
        _draw_upright(band, title, height)
    return band


def _draw_upright(band: Image.Image, title: str, height: int) -> None:
    """A row's title, turned to read upwards, left of its pictures."""
    face = font(14)
    for line in fit_lines(title, face, height):
        label = Image.new("RGB", (text_width(line, face), line_height(face)), WHITE)
        ImageDraw.Draw(label).text((0, 0), line, fill=INK, font=face)
        turned = label.transpose(Image.Transpose.ROTATE_90)
        band.paste(turned, (MARGIN, BORDER + (height - turned.height) // 2))


def titles_band(titles: Sequence[str], columns: Columns, sheet_width: int, panel_size: int) -> Image.Image:
    """Column titles, centred over their columns, in at most two lines each."""
    face = font(text_size(panel_size) + 1)
    wrapped = [fit_lines(title, face, width, lines=2) for title, width in zip(titles, columns.widths, strict=True)]
    tallest = max(len(lines) for lines in wrapped)
    band = Image.new("RGB", (sheet_width, tallest * line_height(face) + 6), WHITE)
    draw = ImageDraw.Draw(band)
    for lines, start, width in zip(wrapped, columns.starts, columns.widths, strict=True):
        top = (tallest - len(lines)) * line_height(face)  # the last line sits on the pictures
        _draw_centred(draw, lines, start, top, width, face=face, colour=INK)
    return band


def words_band(text: str, sheet_width: int, size: int, colour: Colour) -> Image.Image:
    """A paragraph across the sheet."""
    face = font(size)
    wrapped = fit_lines(text, face, sheet_width - 2 * MARGIN, lines=12)
    band = Image.new("RGB", (sheet_width, len(wrapped) * line_height(face) + 2), WHITE)
    _draw_lines(ImageDraw.Draw(band), wrapped, (MARGIN, 0), face, colour)
    return band


def legend_band(keys: Sequence[Key], sheet_width: int) -> Image.Image:
    """Legend entries, flowing left to right and wrapped to the sheet; the first one without a swatch starts a line."""
    face, room = font(13), sheet_width - 2 * MARGIN
    pitch = line_height(face) + 4
    placed: list[tuple[Key, list[str], int, int]] = []
    x, y, bottom, swatched = 0, 0, 0, False
    for key in keys:
        swatch = key.swatch.width + 7 if key.swatch else 0
        lines = fit_lines(key.text, face, room - swatch, lines=8)
        width = swatch + max((text_width(line, face) for line in lines), default=0)
        if x and (x + width > room or (swatched and not key.swatch)):
            x, y = 0, bottom
        placed.append((key, lines, x, y))
        bottom = max(bottom, y + (len(lines) - 1) * line_height(face) + pitch)
        x += width + 24
        swatched = key.swatch is not None
    band = Image.new("RGB", (sheet_width, bottom + 2), WHITE)
    draw = ImageDraw.Draw(band)
    for key, lines, x, y in placed:
        if key.swatch:
            band.paste(key.swatch, (MARGIN + x, y + (line_height(face) - key.swatch.height) // 2 + 1))
        _draw_lines(draw, lines, (MARGIN + x + (key.swatch.width + 7 if key.swatch else 0), y), face, QUIET)
    return band
