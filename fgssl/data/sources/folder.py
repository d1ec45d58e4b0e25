"""A folder of images: flat, by class, by split, or by split and class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.data.images import About, Remark
from fgssl.data.sources import listing
from fgssl.data.sources.files import FileImages, PackedNames
from fgssl.data.sources.listing import WalkReport, some, split_of, walk_images
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

STRAY = 10  # pictures in class folders for each one beside them, from which on those beside are strays
MOST_STRAYS = 1000
MOST_WRAPPERS = 16  # folders around everything, one in the other


class Level(NamedTuple):
    """What lies directly in a folder."""

    path: bytes
    pictures: list[bytes]
    filled: list[bytes]  # subfolders with pictures in or below them
    empty: list[bytes]

    def inside(self, name: bytes) -> bytes:
        """The path of one of them."""
        return os.path.join(self.path, name)

    def classes(self) -> list[bytes]:
        """The subfolders that are classes: none where more than a few pictures lie beside them."""
        wanted = STRAY * len(self.pictures)
        if not self.pictures or not self.filled:
            return self.filled
        if len(self.pictures) > MOST_STRAYS:
            return []
        met = sum(1 for _ in islice((p for name in self.filled for p in walk_images(self.inside(name))), wanted))
        return self.filled if met == wanted else []


class FolderSource:
    """Finds the splits and classes of a folder.

    - Split folders: two or more subfolders with images are named like splits, or the only ones with images are, or one
      is named like a test split or holds class folders. Whatever lies beside split folders is left out.
    - Classes are the first folder level of a split (or of the folder itself), however deep the files lie below it.
    - Images that lie directly in the split's folder mean: no labels; unless there are ten times as many in class
      folders, which leaves them out.
    - A single folder around everything ("photos/", "dataset/dataset/", "train/images/") is a wrapper and is entered;
      a single class over all splits tells nothing apart, so there are no labels then either.
    - Run folders of fgssl are passed over.
    """

    def __init__(self, source: str, folder: bytes) -> None:
        self._source = source
        self._report = WalkReport()
        self.remarks: tuple[Remark, ...] = ()
        if listing.is_run_folder(folder):
            raise FgsslError(f"{shown(folder)} is a run of fgssl, not a set of images", "give the photographs")
        try:
            self._levels = self._find_splits(folder)
        except OSError as error:
            problem = f"cannot list the folder {shown(folder)} ({error.strerror})"
            raise FgsslError(problem, "check its permissions") from error
        self.splits = tuple(self._levels)
        self._own = {split: level.classes() for split, level in self._levels.items()}
        # over all splits, so that an id means the same class in every one of them
        found = sorted({name for own in self._own.values() for name in own})
        self._classes = found if len(found) > 1 else []

    def load(self, split: str) -> FileImages:
        """Lists one of the splits. Raises FgsslError where it holds no image."""
        try:
            return self._list(split, self._levels[split], self._own[split])
        except OSError as error:  # a folder went away, or was closed, since its splits were found
            problem = f"cannot list {self._source} ({error.strerror}: {shown(str(error.filename))})"
            raise FgsslError(problem, "check the folder") from error

    def _list(self, split: str, level: Level, own: list[bytes]) -> FileImages:
        named, report = shown(level.path), WalkReport(shown(level.path))
        labelled = bool(self._classes and own)
        if labelled:
            ids = [np.empty(0, np.int64)]
            names = PackedNames(_walk_classes(level.path, own, self._classes, ids, report))
            about = About(np.concatenate(ids), tuple(map(shown, self._classes)))
        else:
            names = PackedNames(walk_images(level.path, report))
            about = About(unlabelled=_unlabelled(level, own))
        if report.told:
            report.told(report.met)
            report.told.end(report.met)
        if not len(names):
            raise _no_image(self._source if len(self.splits) == 1 else named, report)
        remarks = (*self.remarks, *self._remarks(level, report, labelled=labelled))
        about = about._replace(remarks=remarks, skipped=tuple(report.skipped))
        return FileImages(self._source, split, about, folder=level.path, names=names)

    def _remarks(self, level: Level, report: WalkReport, *, labelled: bool) -> Iterator[Remark]:
        named = shown(level.path)
        runs = sorted({*self._report.runs, *report.runs})
        if runs:
            yield Remark("note", f"runs of fgssl are passed over, their pictures are no photographs: {some(runs)}")
        if level.pictures and level.filled and labelled:
            text = f"pictures beside the class folders of {named} are in no class and left out: {some(level.pictures)}"
            yield Remark("warning", text)
        elif level.pictures and level.filled:
            text = f"pictures lie beside the folders of {named} ({some(level.pictures)}), so no folder is a class"
            yield Remark("warning", f"{text}: all pictures are one set without labels")
        if labelled and level.empty:
            yield Remark("note", f"folders of {named} without pictures are no classes: {some(level.empty)}")

    def _find_splits(self, folder: bytes) -> dict[str, Level]:
        for _ in range(MOST_WRAPPERS):
            level = self._level(folder)
            named = {name: found for name in level.filled if (found := split_of(shown(name)))}
            others = [name for name in level.filled if name not in named]
            alone = len(named) == 1 and bool(others)
            if alone and set(named.values()) <= {"train", "training"} and self._level(level.inside(*named)).pictures:
                text = f"the folder {some(named)} of {shown(folder)} is taken for a class like {some(others)}"
                self.remarks += (Remark("warning", f"{text}; where it is a split, give its own path"),)
            elif named:
                for what, names in (("folders", others), ("pictures", level.pictures)):
                    text = f"{what} beside the split folders of {shown(folder)} are in no split and left out"
                    self.remarks += (Remark("warning", f"{text}: {some(names)}"),) if names else ()
                return self._unwrapped({shown(name): self._level(level.inside(name)) for name in named})
            if not level.filled and not level.pictures:
                report = WalkReport()
                list(walk_images(folder, report))
                raise _no_image(self._source, report)
            if level.pictures or len(level.filled) != 1:
                break
            folder = level.inside(level.filled[0])
        return {"all": level}

    def _level(self, folder: bytes) -> Level:
        pictures, folders = listing.scan(folder, self._report)
        filled = [name for name in folders if listing.first_images(os.path.join(folder, name), 1, self._report)]
        return Level(folder, pictures, filled, sorted({*folders} - {*filled}))

    def _unwrapped(self, splits: dict[str, Level]) -> dict[str, Level]:
        """Splits without folders around all of their content: train/train/..., train/images/CLASS/..."""
        for _ in range(MOST_WRAPPERS):
            wrapped = [name for name, level in splits.items() if len(level.filled) == 1 and not level.pictures]
            inner = {name: self._level(splits[name].inside(splits[name].filled[0])) for name in wrapped}
            called = {name: os.path.basename(level.path) for name, level in inner.items()}
            own = {name: level for name, level in inner.items() if split_of(shown(called[name])) == split_of(name)}
            below = {name for level in inner.values() for name in level.filled}
            alike = len(inner) == len(splits) and len(set(called.values())) == 1 and len(below) > 1
            entered = own or (inner if alike else {})
            if not entered:
                break
            splits = splits | entered
        return splits


def _unlabelled(level: Level, own: list[bytes]) -> str:
    """Why a split's folders are no classes."""
    named = shown(level.path)
    if level.pictures and level.filled:
        return f"pictures lie beside the class folders of {named}: {some(level.pictures)}"
    if level.pictures:
        return f"its pictures lie directly in {named}, not in class folders"
    return f"a single class tells nothing apart, and {named} has one class folder: {some(own)}"


def _walk_classes(
    folder: bytes, own: list[bytes], classes: list[bytes], ids: list[NDArray[np.int64]], report: WalkReport
) -> Iterator[bytes]:
    number = {name: index for index, name in enumerate(classes)}
    keys = {name: listing.folder_key(os.path.join(folder, name)) for name in own}
    seen = {
        listing.folder_key(folder),
        *keys.values(),
    }  # a link inside a class to another class must not relabel its images
    walked: set[listing.FolderKey] = set()
    for name in own:
        count = 0
        if keys[name] not in walked:
            walked.add(keys[name])
            seen.discard(keys[name])
            for relative in walk_images(os.path.join(folder, name), report, seen=seen):
                count += 1
                yield os.path.join(name, relative)
        ids.append(np.full(count, number[name], dtype=np.int64))


def _no_image(named: str, report: WalkReport) -> FgsslError:
    if report.skipped and not report.others:
        return FgsslError(f"no image could be reached in {named} ({report.skipped[0]})", "check its permissions")
    if not report.others:
        runs = " but for runs of fgssl" if report.runs else ""
        return FgsslError(f"the folder {named} is empty{runs}", "give a folder with images")
    problem = f"no image among the {sum(report.others.values())} files in {named} ({report.kinds()})"
    return FgsslError(problem, "give a folder with .jpg, .png, .webp, .tif or similar files")
