"""The archive behind `--data cub:FOLDER`, or found in a plain FOLDER: its splits, images and what is marked on them.

Counts are held against the published ones: another copy of a data set does not give the numbers of papers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import numpy as np

from fgssl.data.archives.layout import Contents, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.names import marks_in, root_of
from fgssl.data.archives.regions import draw_masks
from fgssl.data.images import About, ImageSet, Masks, Remark
from fgssl.data.sources.files import FileImages, PackedNames
from fgssl.data.sources.folder import FolderSource
from fgssl.data.sources.listing import some
from fgssl.errors import FgsslError
from fgssl.registry import ARCHIVES
from fgssl.runtime.text import shown

MOST_MISSING = 0.1  # of a split's images, as of unreadable ones
DRAWN = "drawn-by-fgssl.txt"  # in an archive that rehearsal.py drew: nobody takes it for the real one


class ArchiveSource:
    """An unpacked archive: by its lists, or, where none of them is there, by its class folders.

    Args:
        source: As the user wrote it.
        level: What counts as the class; None is the archive's usual.

    Raises FgsslError, naming the culprit: no folder, a list missing or damaged, lists that do not fit each other.
    """

    def __init__(self, source: str, name: str, folder: str, *, level: str | None = None) -> None:
        self.source, self.layout = source, ARCHIVES[name]
        level = level or self.layout.levels[0]
        if level not in self.layout.levels:
            known = ", ".join(self.layout.levels)
            raise FgsslError(f"{self.layout.title} has no classes by '{shown(level)}'", f"its levels: {known}")
        self.level, self.remarks = level, ()  # type: str, tuple[Remark, ...]
        self.root = root_of(self.layout, folder)
        self._folders = (
            None if marks_in(self.layout, self.root, named=True) else _class_folders(self.source, self.layout, folder)
        )
        self._contents = None if self._folders else _read(name, self.root, level, _state(self.layout, self.root))
        self.drawn = os.path.exists(os.path.join(self.root, DRAWN))
        self.splits = self._folders.splits if self._folders else tuple(self._contents.splits if self._contents else ())

    def role(self, split: str) -> str | None:
        """One of the layout's two splits, where all that it joins are there."""
        return split if set(split.split("+")) <= set(self.splits) else None

    def load(self, split: str) -> ImageSet:
        """The images of a split. Raises FgsslError where more than a tenth of them is missing."""
        if self._folders or self._contents is None:
            images: ImageSet = self._folders.load(split) if self._folders else NotImplemented
            text = (
                f"{self.source} has none of the lists of {self.layout.title}: read by its class folders, nothing marked"
            )
            images.remarks = (*images.remarks, Remark("note", text), *self._counted(images, split))
            return images
        found, names = self._contents.splits[split], self._contents.class_names
        labels = None if found.labels is None else np.asarray(found.labels, np.int64)
        about = About(labels, tuple(map(shown, names)) if labels is not None else None, found.unlabelled)
        images = ArchiveImages(self.source, split, about, folder=self.root, found=found)
        images.remarks = (*self._counted(images, split), *self._present(found, split))
        return images

    def _counted(self, images: ImageSet, split: str) -> Iterator[Remark]:
        """A sentence where images or classes are not as many as published."""
        title, editions = self.layout.title, self.layout.counts.get(split, ())
        if self.drawn:
            yield Remark(
                "note", f"{self.source} is a drawn rehearsal of {title}, not the data set: its numbers mean nothing"
            )
        elif editions:
            published = min(editions, key=lambda each: abs(each.images - len(images)))
            labels = images.labels if self.level == self.layout.levels[0] else None
            classes = published.classes if labels is None else len(np.unique(labels))
            if (len(images), classes) != published:
                here = f"{len(images):,} images of {classes:,} classes"
                there = f"{published.images:,} of {published.classes:,}"
                text = f"{split} of {self.source} has {here}, {title} as published {there}"
                yield Remark("warning", f"{text}: its numbers do not compare with those of papers")

    def _present(self, found: Split, split: str) -> Iterator[Remark]:
        """A sentence where a few images are missing; raises FgsslError where many are."""
        absent = _absent(self.root, found)
        if not absent:
            return
        count = f"{len(absent):,} of {len(found.names):,} images of {split} that {self.layout.title} lists are missing"
        if len(absent) > MOST_MISSING * len(found.names):
            problem = f"{count} in {shown(self.root)}, such as {shown(absent[0])}"
            raise FgsslError(problem, "unpack the images beside the lists; they may come as an archive of their own")
        yield Remark("warning", f"{count}: {some(absent)}")


class ArchiveImages(FileImages):
    """The images of one split, with what its archive has marked on them."""

    def __init__(self, source: str, split: str, about: About, *, folder: str, found: Split) -> None:
        names = PackedNames(map(os.fsencode, found.names))
        super().__init__(source, split, about, folder=os.fsencode(folder), names=names)
        self.folder, self.regions = os.path.abspath(folder), found.regions

    def masks(self, index: int) -> Masks | None:
        return draw_masks(self.regions, index, picture=self.content(index), folder=self.folder)


def _state(layout: Layout, root: str) -> tuple[int, ...]:
    """Times of change of the marks and of the files beside them: what was read is read again where one changed."""
    paths = {os.path.join(root, mark) for mark in (*layout.marks, *layout.lists)}
    with os.scandir(root) as entries:
        paths |= {entry.path for entry in entries if entry.name.endswith((".txt", ".mat", ".json"))}
    return tuple(os.stat(path).st_mtime_ns if os.path.exists(path) else 0 for path in sorted(paths))


@functools.lru_cache(maxsize=2)  # a verb opens a source several times, and the largest lists take seconds
def _read(name: str, root: str, level: str, state: tuple[int, ...]) -> Contents:
    layout: Layout = ARCHIVES[name]
    contents = layout.read(Lists(layout.title, root), level)
    if empty := [split for split, found in contents.splits.items() if not len(found.names)]:
        raise FgsslError(f"{layout.title} in {shown(root)} lists no image in {empty[0]}", "unpack the archive again")
    return contents


def _class_folders(source: str, layout: Layout, folder: str) -> FolderSource:
    """The common mirror of a data set, folders of classes in folders of splits; FgsslError where it is none either."""
    try:
        found = FolderSource(source, os.fsencode(folder))
        if len(found.splits) > 1:
            return found
    except FgsslError:
        pass
    lists = ", ".join(layout.marks[:3])
    problem = (
        f"no {layout.title} in {shown(folder)}: neither its lists ({lists}) nor train/ and test/ with class folders"
    )
    raise FgsslError(problem, f"give the unpacked archive ({layout.address})")


def _absent(root: str, found: Split) -> list[str]:
    """Listed images that are not there; one look into each folder, not at each file."""
    there: dict[str, set[str]] = {}
    absent = []
    for name in found.names:
        folder, _, file = name.rpartition("/")
        if folder not in there:
            try:
                there[folder] = set(os.listdir(os.path.join(root, folder)))
            except OSError:
                there[folder] = set()
        if file not in there[folder]:
            absent.append(name)
    return absent
