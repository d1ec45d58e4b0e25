"""File names as text that can be shown anywhere."""

from __future__ import annotations

import os


def printable(name: bytes | str) -> str:
    """A name as text that any terminal, JSON file or encoder takes.

    File names may hold any bytes. Bytes that are not UTF-8 and characters that do not print (newlines, escape codes)
    become backslash escapes; every ordinary name, emoji and spaces included, stays as it is.

    Args:
        name: A file name as bytes, or as `os.fsdecode` gives it.

    Returns:
        One printable line.
    """
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:  # a surrogate that stands for no byte: text made by hand, not a file name
        raw = name.encode("utf-8", "backslashreplace") if isinstance(name, str) else name
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in _EMOJI_GLUE else _escaped(character) for character in text
    )


# the joiner and the variant selector inside emoji do not count as printable, but belong to the name
_EMOJI_GLUE = frozenset("\u200d\ufe0f")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
