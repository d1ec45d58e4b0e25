"""Text on pictures: Pillow's own embedded font, measured, wrapped and shortened so that nothing is ever clipped.

Pillow lays out lines but breaks them at spaces alone and knows no ellipsis; file names need both. The embedded font
knows ASCII and little more. Everything else is brought down to it: accents are dropped, a few signs are spelled out,
and what remains (other scripts, emoji, control characters) appears as its escape.
"""

from __future__ import annotations

import bisect
import math
import re
import unicodedata
from functools import lru_cache

from PIL import ImageFont

from fgssl.runtime.text import shown

Font = ImageFont.FreeTypeFont

_SPELLED = {
    "–": "-", "—": "-", "−": "-", "×": "x", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "ß": "ss", "æ": "ae",  # noqa: RUF001
    "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "ð": "d", "þ": "th", "ı": "i",  # noqa: RUF001
}  # fmt: skip
_MISSING = "\uffff"  # no font has it: what the font draws for it is what it draws for every character it lacks
_LONGEST = 1000  # characters; more never fit on a sheet, and measuring them costs time
_BREAK_AFTER = re.compile(r"(?<=[ \-_/\\.,])")


@lru_cache(maxsize=32)
def font(size: int) -> Font:
    """The embedded font at `size` pixels."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)  # every Pillow wheel has FreeType
    return found


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    if unicodedata.category(character).startswith("C"):  # control, surrogate, unassigned
        return False
    face = font(24)
    return character == " " or bytes(face.getmask(character)) != bytes(face.getmask(_MISSING))


@lru_cache(maxsize=4096)
def _printable_character(character: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    for candidate in (character, _SPELLED.get(character), plain):
        if candidate and all(map(_drawable, candidate)):
            return candidate
    return character.encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    """The text in characters the font has; line breaks stay, everything else it lacks is escaped (never an error)."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c if c == "\n" else _printable_character(c) for c in composed)


def text_width(text: str, face: Font) -> int:
    """Width in pixels that `text` (one line) takes when drawn at x = 0."""
    if not text:
        return 0
    left, _, right, _ = face.getbbox(text)
    return math.ceil(max(right, face.getlength(text)) - min(left, 0))


def line_height(face: Font) -> int:
    """Distance in pixels from one line of text to the next."""
    return sum(face.getmetrics())


def _fits(text: str, face: Font, width: int) -> bool:
    # no character is narrower than a pixel, and measuring a long text is slow
    return len(text) <= width and text_width(text, face) <= width


def _longest_prefix(text: str, face: Font, width: int) -> int:
    """Number of leading characters (at least 1) that fit in `width`."""
    return 1 + bisect.bisect_left(range(2, len(text) + 1), True, key=lambda n: not _fits(text[:n], face, width))


def wrap(text: str, face: Font, width: int, *, limit: int | None = None) -> list[str]:
    """Breaks printable text into lines of at most `width` pixels, after spaces and the joints of file names.

    A longer stretch is cut where the line ends. After `limit` lines the rest is not looked at: one line too many says
    that it does not fit.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in _BREAK_AFTER.split(paragraph):
            if line and not _fits((line + piece).rstrip(), face, width):
                lines.append(line.rstrip())
                line = ""
            line += piece
            while len(line) > 1 and not _fits(line.rstrip(), face, width):
                cut = _longest_prefix(line, face, width)
                lines.append(line[:cut])
                line = line[cut:]
                if limit is not None and len(lines) > limit:
                    return lines
        lines.append(line.rstrip())
    return lines


def fit_lines(text: str, face: Font, width: int, *, lines: int = 1) -> list[str]:
    """Any text in at most `lines` lines of `width` pixels, its middle an ellipsis where it must be (none: no line).

    Both ends of a file name tell something: the class in front, the number behind. What is not printable is escaped.
    """
    text = printable(shown(text))
    if not text.strip():
        return []

    def wrapped(candidate: str) -> list[str] | None:
        found = wrap(candidate, face, width, limit=lines)
        return found if len(found) <= lines and all(_fits(line, face, width) for line in found) else None

    def shortened(kept: int) -> list[str] | None:
        head, tail = text[: (kept + 1) // 2], text[len(text) - kept // 2 :]
        return wrapped(head.rstrip() + "…" + tail.lstrip())

    if len(text) <= _LONGEST and (whole := wrapped(text)) is not None:
        return whole
    counts = range(min(len(text), _LONGEST, lines * width) + 1)
    too_many = bisect.bisect_left(counts, True, key=lambda kept: shortened(kept) is None)
    return (shortened(too_many - 1) or []) if too_many else []
