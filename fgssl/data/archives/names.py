"""Which archive a source names, and which one a plain folder is: by the files that lie there, before any is read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from fgssl.errors import FgsslError
from fgssl.registry import ARCHIVES
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from fgssl.data.archives.layout import Layout

MOST_FOLDERS = 16  # in a folder that may hold an archive one level deeper


class Named(NamedTuple):
    """`NAME:FOLDER` or `NAME/LEVEL:FOLDER` in parts."""

    archive: str
    level: str  # "" for what the settings or the archive say
    folder: str


def parse_named(source: str) -> Named | None:
    """A source that names an archive; None for all others."""
    name, colon, folder = source.partition(":")
    archive, _, level = name.partition("/")
    return Named(archive, level, folder) if colon and archive in ARCHIVES else None


def found_in(folder: str) -> str | None:
    """The archive that a plain folder is taken for: that with most of its marks in it or right in it, at least two."""
    places = [folder, *_folders_in(folder)]
    scores = {name: max(marks_in(layout, place) for place in places) for name, layout in ARCHIVES.items()}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 1 else None


def require_folder(named: Named) -> None:
    """Raises FgsslError where the folder of a named archive is not there."""
    if not os.path.isdir(os.path.expanduser(named.folder)):
        problem = f"no folder {shown(named.folder)}" if named.folder else f"{named.archive}: names no folder"
        raise FgsslError(problem, f"write {named.archive}:FOLDER, the unpacked archive")


def absolute(source: str) -> str:
    """The same source with the folder of its archive from the root on, for who opens it from elsewhere later."""
    named = parse_named(source)
    if named is None or not os.path.isdir(path := os.path.expanduser(named.folder)):
        return source
    return f"{source.partition(':')[0]}:{os.path.abspath(path)}"


def marks_in(layout: Layout, root: str, *, named: bool = False) -> int:
    """How many of the files by which an archive is known lie in a folder, or where its user has named it."""
    marks = (*layout.marks, *layout.lists) if named else layout.marks
    return sum(os.path.exists(os.path.join(root, mark)) for mark in marks)


def root_of(layout: Layout, folder: str) -> str:
    """Where most of the marks lie: in the folder, or one or two deeper, as mirrors pack a folder in a folder."""
    inner = _folders_in(folder)
    places = [folder, *inner, *(path for outer in inner for path in _folders_in(outer))]
    return max(places, key=lambda place: marks_in(layout, place, named=True))  # the outermost of equals


def _folders_in(folder: str) -> list[str]:
    """Folders right in one, none where there are many: a set of class folders, not an archive's."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []
    return found if len(found) <= MOST_FOLDERS else []
