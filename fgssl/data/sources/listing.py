"""Walks folders for image files and tables: the same order on every file system, and nothing in one can break it."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from fgssl.runtime.reporting import Told
from fgssl.runtime.text import shown

EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .apng .tif .tiff .ppm .pgm .pbm .pnm .mpo .avif .avifs"
    b" .jp2 .j2k .jpx .heic .heif".split()
)
"""File extensions taken for images, in lower case. HEIC is listed so that it is named as unreadable, not overlooked."""

SPLIT_WORDS = "(train|training|test|testing|val|valid|validation|dev)"
TELL_EVERY = 1024  # files and folders
_MAX_NOTED = 100
_IGNORED = frozenset({b"__MACOSX", b"@eaDir"})
_SPLIT_NAME = re.compile(SPLIT_WORDS + r"([-_ .]?(sets?|splits?|images?|imgs?|data|folder|\d+))?", re.IGNORECASE)
_SPLIT_WORD = re.compile(f"(?<![a-z]){SPLIT_WORDS}(?![a-z])", re.IGNORECASE)

FolderKey = tuple[int, int]  # what a folder is, whatever path led to it: device and number


class WalkReport:
    """What a walk saw besides images; the listener hears how far it is where the `folder` is given."""

    def __init__(self, folder: str = "") -> None:
        self.others: Counter[str] = Counter()  # number of other files by extension, "" for none
        self.skipped: list[str] = []  # "path: reason" of folders and special files passed over; the first hundred
        self.runs: list[str] = []  # run folders of fgssl, whose pictures are no photographs
        self.told, self.met = Told(f"listing {folder}") if folder else None, 0

    def meet(self) -> None:
        """One more file or folder was looked at."""
        self.met += 1
        if self.told and self.met % TELL_EVERY == 0:
            self.told(self.met)

    def skip(self, path: bytes, reason: str) -> None:
        """Notes a path that was passed over."""
        if len(self.skipped) < _MAX_NOTED:
            self.skipped.append(f"{shown(path)}: {reason}")

    def kinds(self) -> str:
        """The other files in words, most frequent first: "12 .txt, 3 without extension"."""
        return ", ".join(f"{count} {kind or 'without extension'}" for kind, count in self.others.most_common(5))


def scan(
    folder: bytes, report: WalkReport | None = None, *, most: int | None = None
) -> tuple[list[bytes], list[bytes]]:
    """Lists one folder: names of its image files and of its subfolders, both sorted by their bytes.

    Hidden files, `__MACOSX` and thumbnail folders are left out, and all that is in a run folder of fgssl. Links count
    as what they lead to; a broken link with an image's name counts as an image, so that a run names it as unreadable
    rather than losing it in silence. It ends at so many images as `most`. Raises OSError.
    """
    report = report or WalkReport()
    images: list[bytes] = []
    folders: list[tuple[bool, bytes]] = []
    if is_run_folder(folder):
        report.runs.append(shown(folder))
        return [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            report.meet()
            kind, name = _kind(entry), entry.name
            if kind == "image":
                images.append(name)
                if len(images) == most:
                    break
            elif kind == "folder":
                folders.append((entry.is_symlink(), name))
            elif kind == "other":
                report.others[shown(os.path.splitext(name)[1].lower())] += 1
            elif kind == "special":
                report.skip(os.path.join(folder, name), "not a regular file")
    images.sort()
    folders.sort()  # real folders before links, so that content reached twice keeps its real place
    return images, [name for _, name in folders]


def is_run_folder(folder: bytes) -> bool:
    """Whether `fgssl pretrain` wrote a folder: its settings, and its log, results or encoder."""
    written = (b"metrics.jsonl", b"summary.json", b"encoder.safetensors")
    there = os.path.lexists(os.path.join(folder, b"config.yaml"))
    return there and any(os.path.lexists(os.path.join(folder, name)) for name in written)


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


def folder_key(folder: bytes) -> FolderKey:
    """The key of a folder; raises OSError where it cannot be reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def walk_images(
    root: bytes, report: WalkReport | None = None, *, seen: set[FolderKey] | None = None, most: int | None = None
) -> Iterator[bytes]:
    """All image files below a folder, as paths relative to it.

    Within a folder files come first, then subfolders, each sorted by bytes: the order does not depend on the file
    system or locale. A folder reached twice through links is listed once, which also ends every loop; folders in `seen`
    are left out, and those listed are added. What is met besides is noted in `report`; `most` is as of `scan`.
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
            images, folders = scan(folder, report, most=most)
        except OSError as error:
            if report is not None:
                report.skip(folder, error.strerror or "cannot be listed")
            continue
        yield from (os.path.join(relative, name) for name in images)
        waiting.extend(os.path.join(relative, name) for name in reversed(folders))


def first_images(root: bytes, count: int, report: WalkReport | None = None) -> list[bytes]:
    """Up to so many image files in and below a folder, found without listing it to its end."""
    return list(islice(walk_images(root, report, most=count), count))


def split_of(name: str) -> str | None:
    """The split a folder's name tells of ("Train", "test2017", "val_images"), in lower case; None for other names."""
    match = _SPLIT_NAME.fullmatch(name)
    return match[1].lower() if match else None


def is_saved_table(folder: str) -> bool:
    """Whether `save_to_disk` of the `datasets` library wrote a folder."""
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        return True
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_info.json"))


def files_ending(folder: str, *endings: str) -> list[str]:
    """Files in a folder and in the folders directly below it whose names end so, in any case; sorted."""
    found = []
    waiting = [folder]
    for path in waiting:
        with contextlib.suppress(OSError):  # not ours to list
            inside = [os.path.join(path, name) for name in sorted(os.listdir(path)) if not name.startswith(".")]
            found += [file for file in inside if file.lower().endswith(endings)]
            waiting += filter(os.path.isdir, inside if path == folder else ())
    return found


def shards_by_split(path: str, files: Sequence[str], *, anywhere: bool = False) -> dict[str, list[str]]:
    """The shards of each split: that which a shard's name, or its folder's, begins with; else "all".

    "train-00000-of-00002.parquet" is of train; with `anywhere` so is "birds-train-000000.tar", the split's name being
    a word in it.
    """
    splits: dict[str, list[str]] = {}
    for file in files:
        steps = os.path.relpath(file, path).split(os.sep)
        match = next((found for step in reversed(steps) if (found := _shard_split(step, anywhere=anywhere))), None)
        splits.setdefault(match[1].lower() if match else "all", []).append(file)
    return splits


def _shard_split(name: str, *, anywhere: bool) -> re.Match[str] | None:
    return _SPLIT_WORD.search(name) if anywhere else _SPLIT_WORD.match(name)


def some(names: Collection[bytes | str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, islice(names, 3))) + more
