"""A text file that lists images: one path a line, and optionally a tab and a label."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from fgssl.data.sources.files import FileImages
from fgssl.data.sources.packed import PackedNames
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

_EXAMPLE = "write one image path a line, optionally followed by a tab and a label"


class ListSource:
    """Images named by a text file.

    Paths are relative to the text file's folder, or absolute. Blank lines and lines that start with # do not count.
    Either every line has a label or none has. A path that does not exist is reported when it is read, as any other
    unreadable image.

    Args:
        source: The source as the user wrote it.
        path: The text file.
    """

    def __init__(self, source: str, path: str) -> None:
        self._source = source
        self._path = path

    def splits(self) -> tuple[str, ...]:
        return ("all",)

    def load(self, split: str) -> FileImages:
        """Reads the list.

        Args:
            split: "all".

        Raises:
            FgsslError: The file cannot be read, is not text, names no image, or has labels on some lines only.
        """
        lines = [line for line in self._lines() if line and not line.startswith(b"#")]
        if not lines:
            raise FgsslError(f"the list {self._source} names no image", _EXAMPLE)
        labels, class_names = self._labels(lines)
        return FileImages(
            self._source,
            split,
            folder=os.fsencode(os.path.dirname(self._path) or "."),
            names=PackedNames(line.split(b"\t", 1)[0].rstrip() for line in lines),
            labels=labels,
            class_names=class_names,
        )

    def _lines(self) -> list[bytes]:
        try:
            with open(self._path, "rb") as stream:
                content = stream.read()
        except OSError as error:
            raise FgsslError(f"cannot read the list {self._source} ({error.strerror})", "check the file") from error
        if b"\0" in content:
            raise FgsslError(f"the list {self._source} is not a text file", _EXAMPLE)
        return [line.strip() for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]

    def _labels(self, lines: list[bytes]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
        if not any(b"\t" in line for line in lines):
            return None, None
        for line in lines:
            if b"\t" not in line:
                raise FgsslError(
                    f"the list {self._source} has labels, but none on the line {shown(line)!r}",
                    "give every line a label (a tab before it) or none",
                )
        texts = [shown(line.split(b"\t", 1)[1].strip()) for line in lines]
        names = sorted_classes(set(texts))
        number = {name: index for index, name in enumerate(names)}
        return np.fromiter((number[text] for text in texts), dtype=np.int64, count=len(texts)), names


def sorted_classes(names: set[str]) -> tuple[str, ...]:
    """Class names in order: as numbers where all are whole numbers ("2" before "10"), else as text."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))
