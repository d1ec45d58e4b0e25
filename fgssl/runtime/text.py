"""Foreign text on its way out: names of files and classes, words from the hub, what a file says of itself.

Inside fgssl a name is what it is, so that it can be opened and compared. It is made safe where it leaves: by `shown`
for a terminal, log or message, `csv_text` for a spreadsheet, `json_text` for JSON, `fgssl.drawing.text` for a picture.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

# the joiner and the variant selector belong to emoji and to scripts that join; after a plain letter they only hide
_GLUE = re.compile("(?<=[^\x00-\x7f\u200d])[\u200d\ufe0f]|\ufe0f(?=\u20e3)")
# letters and marks that count as printable and show nothing
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001  the wide ones count in East Asian spreadsheets


def shown(name: str | bytes | os.PathLike[str]) -> str:
    """Any text as one line that a terminal only shows: no control, no bidirectional, no invisible character.

    Those, line breaks and bytes that are not UTF-8 become backslash escapes; every ordinary name stays as it is, and
    what is shown already, too. A file name may come as bytes or as `os.fsdecode` gives it.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else os.fspath(name)
    if text.isascii() and text.isprintable():
        return text
    kept = {match.start() for match in _GLUE.finditer(text)}
    return "".join(c if place in kept else _visible(c) for place, c in enumerate(text))


def _visible(character: str) -> str:
    if character.isprintable() and not _UNSEEN.match(character):
        return character
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV. Strings are shown, and quoted by ' where a spreadsheet would run them; numbers stay numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([csv_cell(value) if isinstance(value, str) else value for value in row])
    return text.getvalue()


def csv_cell(value: str) -> str:
    """A string as it may stand in a spreadsheet."""
    cell = shown(value)
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def json_text(value: Any, *, indent: int | None = 2) -> str:
    r"""JSON that holds names as they are, in ASCII; a byte that is not UTF-8 as the surrogate that reads back as it."""
    return json.dumps(value, indent=indent)
