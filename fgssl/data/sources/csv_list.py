"""Images named by a CSV file with a header: a column of paths, and maybe one of labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgssl.data.images import About
from fgssl.data.sources.files import FileImages, PackedNames, classes_of
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from fgssl.config.schema import DataConfig

# names of columns taken for paths and for labels, in this order, in any case
_PATHS = ("path", "file", "filename", "image", "picture")
_LABELS = ("label", "class", "class_name", "category", "species", "target")
_DELIMITERS = ",;\t"  # as spreadsheets write them
_EXAMPLE = "write a header such as path,label and a row a picture"


def csv_images(data: DataConfig, path: str) -> FileImages:
    """The pictures of a CSV file; paths are relative to its folder, or absolute.

    `data.image_column` and `data.label_column` name columns that are called otherwise. Where any row lacks its label
    the pictures count as unlabelled. Raises FgsslError where it is unreadable, empty or has no column of paths.
    """
    source = data.source
    header, rows = _read(source, path)
    place = _column(header, data.image_column, _PATHS, source)
    if place is None:
        problem = f"{source} has no column of paths (its columns: {', '.join(map(shown, header))})"
        raise FgsslError(problem, f"call it {_PATHS[0]} (fgssl pretrain takes another by --set data.image_column=NAME)")
    names = [row[place] if place < len(row) else "" for row in rows]
    if "" in names:
        raise FgsslError(f"{source} has no path in row {names.index('') + 2}", _EXAMPLE)
    label = _column(header, data.label_column, _LABELS, source)
    about = About(unlabelled=f"no column is named like one of classes: {', '.join(map(shown, header))}")
    if label is not None:
        about = _about(rows, label, header)
    folder = os.fsencode(os.path.dirname(path) or ".")
    return FileImages(source, "all", about, folder=folder, names=PackedNames(map(os.fsencode, names)))


def _read(source: str, path: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows that hold anything."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            first = stream.readline()
            if "\0" in first:  # which Python's reader lets pass
                raise ValueError
            stream.seek(0)
            delimiter = max(_DELIMITERS, key=first.count)
            header, *rows = csv.reader(stream, delimiter=delimiter)
    except OSError as error:
        raise FgsslError(f"cannot read {source} ({error.strerror})", "check the file") from error
    except (csv.Error, ValueError) as error:  # ValueError: not even a header
        raise FgsslError(f"{source} is empty or no CSV file", _EXAMPLE) from error
    header, rows = [name.strip() for name in header], [row for row in rows if any(map(str.strip, row))]
    if not rows:
        raise FgsslError(f"{source} names no image", _EXAMPLE)
    return header, rows


def _column(header: Sequence[str], wanted: str | None, known: Sequence[str], source: str) -> int | None:
    """The place of the wanted column, else of the first of the known names. Raises FgsslError where it is not there."""
    if wanted is not None:
        if wanted not in header:
            listed = ", ".join(map(shown, header))
            raise FgsslError(f"{source} has no column {wanted!r}", f"its columns are: {listed}")
        return header.index(wanted)
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in known if name in lower), None)


def _about(rows: Sequence[Sequence[str]], place: int, header: Sequence[str]) -> About:
    labels = [shown(row[place].strip()) if place < len(row) else "" for row in rows]
    if missing := labels.count(""):
        return About(unlabelled=f"the column {header[place]!r} is empty in {missing} of {len(rows)} rows")
    return classes_of(labels)
