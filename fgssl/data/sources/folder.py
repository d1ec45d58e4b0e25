"""A folder of images: flat, by class, by split, or by split and class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.data.sources.files import FileImages
from fgssl.data.sources.listing import FolderKey, WalkReport, folder_key, holds_image, lies_flat, scan, walk_images
from fgssl.data.sources.packed import PackedNames
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

SPLIT_NAMES = frozenset(["train", "training", "test", "testing", "val", "valid", "validation", "dev"])
"""Folder names taken for splits, in any case."""


class SplitFolder(NamedTuple):
    """One split of a folder."""

    name: str
    path: bytes


class FolderSource:
    """Finds the splits and classes of a folder.

    - Split folders: two or more subfolders with images are named like splits, or the only ones with images are.
    - Classes are the first folder level of a split (or of the folder itself), however deep the files lie below it.
    - Images that lie directly in the split's folder mean: no labels.
    - A single folder around everything ("photos/", "dataset/dataset/") is a wrapper and is entered; a single class
      over all splits tells nothing apart, so there are no labels then either.

    Args:
        source: The source as the user wrote it.
        folder: Its path, as bytes.
    """

    def __init__(self, source: str, folder: bytes) -> None:
        self._source = source
        self._root = folder
        self._folders = _find_splits(source, folder)

    def splits(self) -> tuple[str, ...]:
        return tuple(split.name for split in self._folders)

    def load(self, split: str) -> FileImages:
        """Lists one split.

        Args:
            split: One of `splits()`.

        Raises:
            FgsslError: The split holds no image.
        """
        try:
            return self._list(next(folder for folder in self._folders if folder.name == split))
        except OSError as error:  # a folder went away, or was closed, since its splits were found
            raise FgsslError(
                f"cannot list {self._source} ({error.strerror}: {shown(str(error.filename))})", "check the folder"
            ) from error

    def _list(self, chosen: SplitFolder) -> FileImages:
        report = WalkReport(shown(chosen.path))
        classes = self._classes()
        own = _class_folders(chosen.path)
        if classes is None or own is None:
            names = PackedNames(walk_images(chosen.path, report))
            labels, class_names = None, None
        else:
            ids: list[NDArray[np.int64]] = []
            names = PackedNames(_walk_classes(chosen.path, own, classes, ids, report))
            labels, class_names = np.concatenate([np.empty(0, np.int64), *ids]), tuple(map(shown, classes))
        report.told.end(report.met)
        if not len(names):
            raise _no_image(self._source if len(self._folders) == 1 else shown(chosen.path), report)
        return FileImages(
            self._source,
            chosen.name,
            folder=chosen.path,
            names=names,
            labels=labels,
            class_names=class_names,
            skipped=tuple(report.skipped),
        )

    def _classes(self) -> list[bytes] | None:
        # over all splits, so that an id means the same class in every one of them
        found = {name for split in self._folders for name in _class_folders(split.path) or ()}
        return sorted(found) if len(found) > 1 else None


def _walk_classes(
    folder: bytes, own: list[bytes], classes: list[bytes], ids: list[NDArray[np.int64]], report: WalkReport
) -> Iterator[bytes]:
    number = {name: index for index, name in enumerate(classes)}
    keys = {name: folder_key(os.path.join(folder, name)) for name in own}
    seen = {folder_key(folder), *keys.values()}  # a link inside a class to another class must not relabel its images
    walked: set[FolderKey] = set()
    for name in own:
        count = 0
        if keys[name] not in walked:
            walked.add(keys[name])
            seen.discard(keys[name])
            for relative in walk_images(os.path.join(folder, name), report, seen=seen):
                count += 1
                yield os.path.join(name, relative)
        ids.append(np.full(count, number[name], dtype=np.int64))


def _class_folders(folder: bytes) -> list[bytes] | None:
    """Subfolders with images, sorted; None where images lie directly in the folder."""
    if lies_flat(folder):
        return None
    return sorted(name for name in scan(folder).folders if holds_image(os.path.join(folder, name)))


def _find_splits(source: str, folder: bytes) -> tuple[SplitFolder, ...]:
    seen: set[FolderKey] = set()
    while True:
        try:
            filled = _class_folders(folder)
            key = folder_key(folder)
        except OSError as error:
            raise FgsslError(
                f"cannot list the folder {shown(folder)} ({error.strerror})", "check its permissions"
            ) from error
        named = [name for name in filled or () if shown(name).lower() in SPLIT_NAMES]
        if named and (len(named) > 1 or named == filled):
            return tuple(SplitFolder(shown(name), os.path.join(folder, name)) for name in named)
        if filled is None or len(filled) != 1 or key in seen:
            if filled == []:
                report = WalkReport()
                list(walk_images(folder, report))
                raise _no_image(source, report)
            return (SplitFolder("all", folder),)
        seen.add(key)
        folder = os.path.join(folder, filled[0])


def _no_image(named: str, report: WalkReport) -> FgsslError:
    if report.skipped and not report.others:
        return FgsslError(f"no image could be reached in {named} ({report.skipped[0]})", "check its permissions")
    if not report.others:
        return FgsslError(f"the folder {named} is empty", "give a folder with images")
    total = sum(report.others.values())
    return FgsslError(
        f"no image among the {total} files in {named} ({report.kinds()})",
        "give a folder with .jpg, .png, .webp, .tif or similar files",
    )
