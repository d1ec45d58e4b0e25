"""Names of many files in one buffer: a million paths without a million Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class PackedNames:
    """A read-only sequence of byte strings held in one buffer.

    A Python list of a million paths costs some 120 MB and is copied page by page into every forked worker, because
    reading an object writes its reference count. One buffer and its offsets are shared and pickle as two blocks.

    Args:
        names: The byte strings, in order; consumed once.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        buffer = bytearray()
        lengths: list[NDArray[np.int64]] = []
        block: list[int] = []
        for name in names:
            buffer += name
            block.append(len(name))
            if len(block) == 65536:  # numbers leave Python objects early, so that listing stays lean
                lengths.append(np.array(block, dtype=np.int64))
                block = []
        lengths.append(np.array(block, dtype=np.int64))
        self._buffer = buffer
        self._offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        return bytes(self._buffer[int(self._offsets[index]) : int(self._offsets[index + 1])])


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
