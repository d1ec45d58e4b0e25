"""Walks folders for image files: the same order on every file system, and nothing in a folder can break it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fgssl.runtime.progress_events import Told
from fgssl.runtime.text import shown

EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .apng .tif .tiff .ppm .pgm .pbm .pnm .mpo .avif .avifs"
    b" .jp2 .j2k .jpx .heic .heif".split()
)
"""File extensions taken for images, in lower case. HEIC is listed so that it is named as unreadable, not overlooked."""

_MAX_NOTED = 100
TELL_EVERY = 1024  # entries of a folder


@dataclass
class WalkReport:
    """What a walk saw besides images.

    Args:
        folder: What is walked, for those who wait.

    Attributes:
        others: Number of other files by extension ("" for none).
        skipped: "path: reason" of folders and special files that were passed over; the first hundred.
        skipped_count: How many there were in all.
    """

    folder: str = "the folder"
    others: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    skipped_count: int = 0

    def __post_init__(self) -> None:
        self.told = Told(f"listing {self.folder}")
        self.met = 0

    def meet(self, entries: int) -> None:
        """So many more files and folders were looked at."""
        self.met += entries
        self.told(self.met)

    def skip(self, path: bytes, reason: str) -> None:
        """Notes a path that was passed over."""
        self.skipped_count += 1
        if len(self.skipped) < _MAX_NOTED:
            self.skipped.append(f"{shown(path)}: {reason}")

    def kinds(self) -> str:
        """The other files in words, most frequent first: "12 .txt, 3 without extension"."""
        return ", ".join(f"{count} {kind or 'without extension'}" for kind, count in self.others.most_common(5))


@dataclass
class FolderEntries:
    """One folder: names of its image files and of its subfolders, both sorted by their bytes."""

    images: list[bytes]
    folders: list[bytes]


def scan(folder: bytes, report: WalkReport | None = None) -> FolderEntries:
    """Lists one folder.

    Hidden files, `__MACOSX` and thumbnail folders are left out. Links count as what they lead to; a broken link with
    an image's name counts as an image, so that a run names it as unreadable rather than losing it in silence.

    Args:
        folder: Path as bytes.
        report: Where to note what is neither image nor folder.

    Raises:
        OSError: The folder cannot be listed.
    """
    images: list[bytes] = []
    folders: list[tuple[bool, bytes]] = []
    with os.scandir(folder) as entries:
        number = 0
        for number, entry in enumerate(entries, 1):
            if number % TELL_EVERY == 0 and report is not None:
                report.meet(TELL_EVERY)
            kind, name = _kind(entry), entry.name
            if kind == "image":
                images.append(name)
            elif kind == "folder":
                folders.append((entry.is_symlink(), name))
            elif kind == "other" and report is not None:
                report.others[shown(os.path.splitext(name)[1].lower())] += 1
            elif kind == "special" and report is not None:
                report.skip(os.path.join(folder, name), "not a regular file")
    if report is not None:
        report.meet(number % TELL_EVERY)
    images.sort()
    folders.sort()  # real folders before links, so that content reached twice keeps its real place
    return FolderEntries(images, [name for _, name in folders])


_IGNORED = frozenset({b"__MACOSX", b"@eaDir"})


def _kind(entry: os.DirEntry[bytes]) -> str:
    """ "folder", "image", "other", "special" (a pipe, say) or "ignored"."""
    name = entry.name
    if name.startswith(b".") or name in _IGNORED:
        return "ignored"
    try:
        if entry.is_dir():
            return "folder"
        is_file = entry.is_file()
    except OSError:  # a link to itself, or no permission to look
        is_file = False
    # a full test of the extension only where the quick one does not settle it: a million names pass here
    if not (name.endswith(b".jpg") or os.path.splitext(name)[1].lower() in EXTENSIONS):
        return "other"
    return "image" if is_file or entry.is_symlink() else "special"


FolderKey = tuple[int, int]
"""What a folder is, whatever path led to it: device and number."""


def folder_key(folder: bytes) -> FolderKey:
    """The key of a folder; raises OSError where it cannot be reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def walk_images(
    root: bytes, report: WalkReport | None = None, *, seen: set[FolderKey] | None = None
) -> Iterator[bytes]:
    """All image files below a folder, as paths relative to it.

    Within a folder files come first, then subfolders, each sorted by bytes: the order does not depend on the file
    system or locale. A folder reached twice through links is listed once, which also ends every loop.

    Args:
        root: Folder to walk, as bytes.
        report: Where to note other files and folders that could not be listed.
        seen: Folders to leave out; those listed are added.

    Yields:
        Relative paths as bytes.
    """
    seen = set() if seen is None else seen
    waiting = [b""]
    while waiting:
        relative = waiting.pop()
        folder = os.path.join(root, relative) if relative else root
        try:
            key = folder_key(folder)
            if key in seen:
                continue
            seen.add(key)
            entries = scan(folder, report)
        except OSError as error:
            if report is not None:
                report.skip(folder, error.strerror or "cannot be listed")
            continue
        for name in entries.images:
            yield os.path.join(relative, name)
        waiting.extend(os.path.join(relative, name) for name in reversed(entries.folders))


def lies_flat(folder: bytes) -> bool:
    """Whether image files lie directly in a folder; stops at the first one. Raises OSError where it cannot look."""
    with os.scandir(folder) as entries:
        return any(_kind(entry) == "image" for entry in entries)


def holds_image(root: bytes) -> bool:
    """Whether there is any image file in or below a folder; stops at the first one, without sorting."""
    seen: set[FolderKey] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            key = folder_key(folder)
            if key in seen:
                continue
            seen.add(key)
            with os.scandir(folder) as entries:
                for entry in entries:
                    kind = _kind(entry)
                    if kind == "image":
                        return True
                    if kind == "folder":
                        waiting.append(os.path.join(folder, entry.name))
        except OSError:
            continue
    return False
